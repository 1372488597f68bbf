package peek

const hangUp = 0x2000 // POLLRDHUP, poll(2); package unix has it for epoll only
