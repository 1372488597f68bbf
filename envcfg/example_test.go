package envcfg_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/berth-go/berth/envcfg"
)

// Load says what an environment means, without listening.
func ExampleLoad() {
	settings, err := envcfg.Load([]string{"APP_ENV=dev", "HOST=127.0.0.1", "FRONTEND_URL=http://localhost:5173"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(settings.Environment, settings.Network, settings.Address, settings.Origins)
	for _, v := range settings.Variables {
		if v.Name == "BERTH_STRATEGY" {
			fmt.Println(v.Value, "is", v.Source)
		}
	}
	// Output:
	// development tcp 127.0.0.1:3000 [http://localhost:5173]
	// reclaim,fallback,failfast is implied by APP_ENV
}

// Everything that is wrong is said at once.
func ExampleLoad_errors() {
	_, err := envcfg.Load([]string{"APP_ENV=prodution", "PROT=8080", "BERTH_GRACE=5"})
	fmt.Println(err)
	// Output:
	// environment variable APP_ENV="prodution": it is no environment; use development (dev), staging (stage) or production (prod), for example APP_ENV=development
	// environment variable BERTH_GRACE="5": the unit is missing: s for seconds, m for minutes; use a duration, 0 or more, for example BERTH_GRACE=10s
	// environment variable PROT="8080": it is probably meant to be PORT, which is not set; rename it, or where it is something else set PORT too, for example PORT=8080
}

// A program changes what it knows better, and listens.
func ExampleSettings_Listen() {
	settings, err := envcfg.Load([]string{"PORT=0", "HOST=127.0.0.1"}) // os.Environ() in a program
	if err != nil {
		fmt.Println(err)
		return
	}
	settings.Config.Name = "example"
	settings.Config.Logger = slog.New(slog.DiscardHandler)
	ln, err := settings.Listen(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()
	fmt.Println(ln.Origin().Kind)
	// Output: bound
}

// Two services share an environment, and each has its own port.
func ExampleLoader() {
	environ := []string{"APP_ENV=staging", "API_PORT=4000", "ADMIN_PORT=5000", "ADMIN_HOST=127.0.0.1"}
	for _, prefix := range []string{"API_", "ADMIN_"} {
		settings, err := envcfg.Loader{Prefix: prefix}.Load(environ)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(settings.Config.Name, settings.Address, settings.Environment)
	}
	// Output:
	// api :4000 staging
	// admin 127.0.0.1:5000 staging
}
