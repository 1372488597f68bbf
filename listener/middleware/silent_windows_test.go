package middleware_test

// maxDescriptors is how many this process may have: there is no limit to speak of.
func maxDescriptors() int { return 1 << 20 }
