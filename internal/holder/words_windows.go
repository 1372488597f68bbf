package holder

const (
	permissionAdvice = "another program has the port exclusively, or Windows reserved it (netsh interface ipv4 show excludedportrange protocol=tcp): choose another port"
	asRoot           = "run as administrator"
	killCommand      = "taskkill /F /PID "
)
