//go:build !linux

package porttest

import (
	"context"
	"time"

	"github.com/berth-go/berth/listener"
)

// share gives the address up: here two sockets cannot have it. Its record keeps those off who know of it.
func share(ctx context.Context, r *listener.Reservation) error { return r.Release(ctx, time.Hour) }
