package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

func init() { programs["fetch"] = func() { os.Exit(fetch()) } }

// fetch asks an HTTP server once, and prints the status, the header and the body.
func fetch() int {
	as := flag.String("as", "", "bearer token")
	password := flag.String("password", "", "of nobody in particular")
	html := flag.Bool("html", false, "as a browser")
	method := flag.String("method", http.MethodGet, "of the request")
	flag.Parse()
	client := http.Client{Timeout: deadline, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if err == nil {
				err = conn.(*net.TCPConn).SetLinger(0) // no TIME_WAIT
			}
			return conn, err
		},
	}}
	request, err := http.NewRequest(*method, flag.Arg(0), nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if *as != "" {
		request.Header.Set("Authorization", "Bearer "+*as)
	}
	if *password != "" {
		request.SetBasicAuth("anybody", *password)
	}
	if *html {
		request.Header.Set("Accept", "text/html")
	}
	response, err := client.Do(request)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer response.Body.Close()
	fmt.Println(response.Status)
	_ = response.Header.Write(os.Stdout)
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func TestURLOf(t *testing.T) {
	for address, url := range map[string]string{
		"127.0.0.1:7460": "http://127.0.0.1:7460/", "[::1]:80": "http://[::1]:80/", "0.0.0.0:80": "http://localhost:80/", "[::]:80": "http://localhost:80/",
	} {
		at, err := net.ResolveTCPAddr("tcp", address)
		require.NoError(t, err)
		require.Equal(t, url, urlOf(at))
	}
	require.Equal(t, "unix:/run/x", urlOf(&net.UnixAddr{Net: "unix", Name: "/run/x"}))
}

func TestToken(t *testing.T) {
	c := console{getenv: func(name string) string {
		require.Equal(t, tokenVariable, name)
		return "short"
	}}
	_, err := c.token("")
	require.EqualError(t, err, "the token of BERTH_SERVE_TOKEN has fewer than 16 characters: write one with head -c 24 /dev/urandom | base64")
	file := t.TempDir() + "/token"
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = c.token(file)
	require.ErrorContains(t, err, "the token of "+file+" has fewer")
	secret := strings.Repeat("s", leastToken)
	require.NoError(t, os.WriteFile(file, []byte(secret+"\n"), 0o600))
	token, err := c.token(file)
	require.NoError(t, err)
	require.Equal(t, secret, token)
	c.getenv = func(string) string { return "" }
	token, err = c.token("")
	require.NoError(t, err)
	require.Empty(t, token)
}

func TestServeDocument(t *testing.T) {
	var stdout bytes.Buffer
	require.NoError(t, console{stdout: &stdout}.writeJSON(serveJSON{URL: "http://127.0.0.1:7460/", Address: "127.0.0.1:7460", PID: 1}))
	document, err := jsonschema.UnmarshalJSON(&stdout)
	require.NoError(t, err)
	schema, err := strictSchema("serve")
	require.NoError(t, err)
	require.NoError(t, schema.Validate(document))
}
