// Package attack has clients that try to take a keysvc server away from those who need it. Each
// of them speaks HTTP/2 (RFC 9113) frame by frame, so that it can break the rules of the
// protocol, or keep to them at the server's cost.
package attack

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"
)

// Target is the server that is attacked.
type Target struct {
	// Network and Address are those of net.Dial: "tcp" or "unix".
	Network, Address string
	// TLS is how to reach a server with TLS; nil for a server without it.
	TLS *tls.Config
	// Workspace has 1,000 keys with large labels.
	Workspace string
	// Authorization is the value of the header of that name, which says who calls. Empty: no
	// such header is sent.
	Authorization string
}

// Attack is one way to attack.
type Attack struct {
	// Name is the attack's name, for flags and tables.
	Name string
	// What says in a few words what the attack does.
	What string
	// Frames reports whether the attack speaks HTTP/2, at least for a while.
	Frames bool
	// TLS reports whether the attack is one on TLS.
	TLS bool
	// Young reports whether no connection gets as far as its first settings.
	Young bool
	// Alone reports whether all connections come from one address.
	Alone bool
	// Slice reports whether the attack is one of the slice that `make test` runs.
	Slice bool
	// Ends is how long the server may let the attack go on before it begins to end connections; 0
	// if it need not end any.
	Ends time.Duration
	// run attacks until the context ends.
	run func(ctx context.Context, r *Run)
}

// Run is one run of an attack.
type Run struct {
	target  Target
	seed    uint64
	drawn   atomic.Uint64
	single  bool
	Counted Counts
}

// Counts says what an attack did, and what the server did about it.
type Counts struct {
	// Connections were opened; Refused could not be, or were ended before the server's first
	// frame arrived.
	Connections, Refused atomic.Int64
	// Streams were opened.
	Streams atomic.Int64
	// Written is how many bytes were sent.
	Written atomic.Int64
	// Ended is how many connections the server ended, with a GOAWAY or without one.
	Ended, GoneAway atomic.Int64
	// Answered is how many streams ended with an answer, Reset how many the server reset.
	Answered, Reset atomic.Int64
}

// New returns a run. Equal seeds make equal choices, but the scheduler has a say in their order.
func New(target Target, seed uint64) *Run { return &Run{target: target, seed: seed} }

// Attack attacks until the context ends.
func (r *Run) Attack(ctx context.Context, attack Attack) { attack.run(ctx, r) }

// random returns a source of choices for one goroutine.
func (r *Run) random() *rand.Rand {
	return rand.New(rand.NewPCG(r.seed, r.drawn.Add(1)))
}

// crowd runs workers until the context ends. A worker that returns is run again; the pause
// before that is short, because whoever attacks does not give up.
func (r *Run) crowd(ctx context.Context, workers int, work func(ctx context.Context, random *rand.Rand) error) {
	done := make(chan struct{})
	for range workers {
		random := r.random()
		go func() {
			defer func() { done <- struct{}{} }()
			for ctx.Err() == nil {
				if work(ctx, random) != nil {
					rest(ctx, time.Duration(5+random.IntN(45))*time.Millisecond)
				}
			}
		}()
	}
	for range workers {
		<-done
	}
}

// rest waits, and reports whether the context goes on.
func rest(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// sources are the addresses of the attackers on loopback, from 127.0.0.2 on. The good caller has
// 127.0.0.1.
const sources = 8

// alone returns a run that has one source only.
func (r *Run) alone() *Run {
	r.single = true
	return r
}

// dial opens a connection from one of the sources.
func (r *Run) dial(ctx context.Context, random *rand.Rand) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	if r.target.Network == "tcp" {
		source := random.IntN(sources)
		if r.single {
			source = 0
		}
		dialer.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+source))}
	}
	connection, err := dialer.DialContext(ctx, r.target.Network, r.target.Address)
	if err != nil {
		r.Counted.Refused.Add(1)
		return nil, err
	}
	r.Counted.Connections.Add(1)
	return connection, nil
}

// secure opens a connection from one of the sources, with TLS if the server has it.
func (r *Run) secure(ctx context.Context, random *rand.Rand) (net.Conn, error) {
	raw, err := r.dial(ctx, random)
	if err != nil || r.target.TLS == nil {
		return raw, err
	}
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	secured := tls.Client(raw, r.target.TLS)
	if err := secured.HandshakeContext(limited); err != nil {
		r.Counted.Refused.Add(1)
		_ = raw.Close()
		return nil, err
	}
	return secured, nil
}
