package sockets

// Same tells whether two lines, read at different times, are one socket. On Linux the inode says so; elsewhere it is
// the best that a table without identities allows.
func (s Socket) Same(other Socket) bool {
	if s.Inode != 0 || other.Inode != 0 {
		return s.Inode == other.Inode && s.Network == other.Network
	}
	return s.Network == other.Network && s.Local == other.Local && s.Path == other.Path && s.State == other.State
}
