package server

import (
	"context"
	"fmt"
	"time"

	"github.com/scribe-mail/keysvc/internal/systemd"
)

// receivedSockets takes over the listeners that systemd passed. It comes before the listeners, and
// noSocketsLeft after them.
func (p *process) receivedSockets() component {
	return component{
		name: "sockets of systemd",
		start: func(context.Context) (err error) {
			p.sockets, err = systemd.ReceiveSockets()
			return err
		},
		// What no listener took is closed; this is for starts that fail.
		stop: func(context.Context) error { _ = p.sockets.Close(); return nil },
	}
}

// noSocketsLeft fails if systemd passed a socket that no setting names.
func (p *process) noSocketsLeft() component {
	return component{name: "sockets of systemd", start: func(context.Context) error { return p.sockets.Close() }}
}

// serviceManager tells systemd when the process is ready and when it stops, and gives the signs of
// life that systemd asks for. It is started last, so it is stopped first.
func (p *process) serviceManager() component {
	var every time.Duration
	return component{
		name: "systemd",
		start: func(context.Context) (err error) {
			if every, err = systemd.AliveEvery(); err != nil {
				return fmt.Errorf("the environment variable WATCHDOG_USEC: %w", err)
			}
			return systemd.Ready()
		},
		run: func(ctx context.Context) error {
			if every > 0 {
				p.giveSignsOfLife(ctx, every)
			}
			return nil
		},
		stop: func(ctx context.Context) error {
			p.told(ctx, systemd.Stopping())
			return nil
		},
	}
}

// giveSignsOfLife tells systemd that validations can be decided, until the context ends. A process
// that cannot look up a key any more gives no sign, and is restarted. The disk is not asked, because
// validations go on without one, and a start would not.
func (p *process) giveSignsOfLife(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		p.server.projection.Find("")
		p.told(ctx, systemd.Alive())
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// told logs that systemd could not be told something.
func (p *process) told(ctx context.Context, err error) {
	if err != nil {
		p.log.WarnContext(ctx, "systemd could not be told how the process is", "error", err)
	}
}
