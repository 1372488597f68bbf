module github.com/berth-go/berth/benchmarks

go 1.26.0

require (
	github.com/berth-go/berth v0.0.0
	github.com/cloudflare/tableflip v1.2.3
	github.com/gofrs/flock v0.13.1
	github.com/hashicorp/consul/sdk v0.16.3
	github.com/pires/go-proxyproto v0.15.0
	github.com/shirou/gopsutil/v4 v4.26.10
	github.com/soheilhy/cmux v0.1.5
	github.com/stretchr/testify v1.12.1
	golang.org/x/net v0.62.0
	golang.org/x/sys v0.49.0
)

require (
	github.com/coreos/go-systemd/v22 v22.7.0 // indirect
	github.com/ebitengine/purego v0.11.2 // indirect
	github.com/go-ole/go-ole v1.2.6 // indirect
	github.com/lufia/plan9stats v0.0.0-20211012122336-39d0f177ccd0 // indirect
	github.com/power-devops/perfstat v0.0.0-20260805114148-88456608a4f6 // indirect
	github.com/tklauser/go-sysconf v0.4.0 // indirect
	github.com/tklauser/numcpus v0.12.0 // indirect
	github.com/yusufpapurcu/wmi v1.2.4 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/time v0.16.0 // indirect
)

replace github.com/berth-go/berth => ../
