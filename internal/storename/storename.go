// Package storename names the sockets that this module keeps in systemd's descriptor store.
package storename

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
)

// Prefix begins every name that For gives.
const Prefix = "berth "

// For is the name of a socket by what it was asked for: the name of the service, network and address. That is what the
// next run knows. systemd takes 255 printable ASCII characters without a colon.
func For(name, network, address string) string {
	const limit = 255
	key := Prefix + url.QueryEscape(name) + " " + network + " " + url.QueryEscape(address)
	if len(key) > limit {
		sum := sha256.Sum256([]byte(key))
		key = key[:limit-2*len(sum)] + hex.EncodeToString(sum[:])
	}
	return key
}
