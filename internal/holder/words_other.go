//go:build !windows

package holder

const (
	permissionAdvice = "ports below 1024 need root or, on Linux, CAP_NET_BIND_SERVICE (setcap cap_net_bind_service=+ep PROGRAM): choose another port"
	asRoot           = "run as root"
	killCommand      = "kill "
)
