//go:build unix

package reload

import (
	"context"
	"time"
)

// SuperviseAt is Supervise of a process that calls at with each step, and whose pauses are multiples of another one.
func SuperviseAt(ctx context.Context, config Config, at func(step string), pause time.Duration) (code int, over bool) {
	if pause == 0 {
		return Supervise(ctx, config)
	}
	return supervise(ctx, config, faults{at}, pause)
}
