package envcfg_test

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/envcfg"
	"github.com/berth-go/berth/strategy"
)

// Whatever stands in an environment, Load gives settings that can be used or says what is wrong with what.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{
		"",
		"PORT=8080\nHOST=::1\nAPP_ENV=dev\nBERTH_GRACE=0",
		"LISTEN_ADDRESS=unix:///run/x\nPROT=1\nport=2",
		"LISTEN_ADDRESS=[fe80::1%eth0]:80\nBERTH_LOG=json,debug",
		"BERTH_STRATEGY=wait,reclaim,fallback,failfast\nBERTH_RECLAIM=mine\nBERTH_WAIT=1h\nPORT_RANGES=0,1-2",
		"TEST_MODE_ENABLED=true\nAPP_ENV=test\nBERTH_STRATEGY=reclaim",
		"FRONTEND_URL=https://u:p@[::1]:443/,http://x\nBERTH_NAME=\x00\xff",
		"PORT=\"1\"\nHOST='\nLISTEN_ADDRESS=fd:",
		"P_PORT=1\nP_PROT=2\nP_=3\n=4",
		"BERTH_\x17AIT=0", // a name can have anything in it
	} {
		f.Add(seed, "")
		f.Add(seed, "P_")
		f.Add(seed, "\n_")
	}
	f.Fuzz(func(t *testing.T, text, prefix string) {
		loader := envcfg.Loader{Prefix: prefix}
		environ := strings.Split(text, "\n")
		before := slices.Clone(environ)
		settings, err := loader.Load(environ)
		require.Equal(t, before, environ)
		if err != nil {
			requireUsefulError(t, err, environ)
			require.Empty(t, settings.Variables)
			return
		}
		require.NotNil(t, settings.Config.Strategy)
		require.NotNil(t, settings.Config.Logger)
		require.NotZero(t, settings.Drain)
		require.Contains(t, []envcfg.Environment{envcfg.Development, envcfg.Staging, envcfg.Production, envcfg.Test}, settings.Environment)
		switch settings.Network {
		case "tcp":
			if !strings.HasPrefix(settings.Address, "fd:") {
				_, _, err := net.SplitHostPort(settings.Address)
				require.NoError(t, err)
			}
		case "unix":
			require.NotEmpty(t, settings.Address)
		default:
			require.Fail(t, "no network", settings.Network)
		}
		rows := strings.Split(strings.TrimSuffix(settings.String(), "\n"), "\n")
		require.Len(t, rows, len(settings.Variables)+1)

		// Nobody is stopped in the test mode.
		if slices.ContainsFunc(settings.Variables, func(v envcfg.Variable) bool {
			return strings.HasSuffix(v.Name, "TEST_MODE_ENABLED") && v.Value == "true"
		}) {
			require.Equal(t, strategy.Chain(strategy.Fallback{Ranges: []strategy.Range{{First: 0, Last: 0}}}, strategy.FailFast{}), settings.Config.Strategy)
		}

		// What was read from the environment says the same again.
		var again []string
		for _, v := range settings.Variables {
			if v.Source == "environment" && v.Note == "" {
				again = append(again, v.Name+"="+v.Value)
			}
		}
		if len(prefix) == 0 {
			repeated, err := loader.Load(again)
			require.NoError(t, err)
			require.Equal(t, settings.Address, repeated.Address)
			require.Equal(t, settings.Origins, repeated.Origins)
		}
	})
}

func requireUsefulError(t *testing.T, err error, environ []string) {
	var e *envcfg.Error
	require.True(t, errors.As(err, &e))
	require.NotEmpty(t, e.Variables)
	for _, v := range e.Variables {
		require.True(t, slices.ContainsFunc(environ, func(entry string) bool {
			name, _, _ := strings.Cut(entry, "=")
			return strings.EqualFold(name, v.Name)
		}), "%s is not in the environment", v.Name)
		require.NotEmpty(t, v.Reason)
		require.NotEmpty(t, v.Remedy)
		require.False(t, strings.ContainsFunc(v.Error(), unicode.IsControl), "%q", v.Error())
	}
}
