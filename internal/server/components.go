package server

import (
	"context"
	"fmt"
	"slices"
)

// component is one part of a process. All parts are in one list: components are started
// in its order and stopped in reverse.
type component struct {
	// name names the component in errors.
	name string
	// start makes the component ready; nil if there is nothing to do. A start that returns
	// an error has undone what it did: stop is not called.
	start func(ctx context.Context) error
	// run is called in a goroutine of its own once start has returned; nil if nothing goes on
	// in the background. It returns when its context ends. An error that it returns before
	// that makes the process stop.
	run func(ctx context.Context) error
	// stop undoes start; nil if there is nothing to do. It is called once run has returned. Its
	// context ends when the drain timeout has passed. Other waits have bounds of their own, or
	// none, because Run gives up on a stop that hangs.
	stop func(ctx context.Context) error
}

// components starts and stops a list of components. Its methods are called by one
// goroutine, in this order: start, then failure, then stop.
type components struct {
	running []running
	// failed has the first error of a run.
	failed chan error
}

// running is a component that was started.
type running struct {
	component
	// cancel ends the context of run, and ended is closed when run has returned; both are nil
	// if the component has no run.
	cancel context.CancelFunc
	ended  chan struct{}
}

func newComponents() *components { return &components{failed: make(chan error, 1)} }

// start starts components in order. If one fails, start returns its error, and the components
// before it run until stop.
func (c *components) start(ctx context.Context, list []component) error {
	for _, each := range list {
		if each.start != nil {
			if err := each.start(ctx); err != nil {
				return fmt.Errorf("%s: %w", each.name, err)
			}
		}
		started := running{component: each}
		if each.run != nil {
			c.run(&started)
		}
		c.running = append(c.running, started)
	}
	return nil
}

// run calls a component's run in a goroutine.
func (c *components) run(started *running) {
	// The component lives until stop, not only until the start is over.
	ctx, cancel := context.WithCancel(context.Background())
	started.cancel, started.ended = cancel, make(chan struct{})
	go func(component component, ended chan<- struct{}) {
		defer close(ended)
		if err := component.run(ctx); err != nil && ctx.Err() == nil {
			select {
			case c.failed <- fmt.Errorf("%s: %w", component.name, err):
			default: // the first error has said why the process stops
			}
		}
	}(started.component, started.ended)
}

// failure returns a channel that yields the error of the first component that failed
// while it ran.
func (c *components) failure() <-chan error { return c.failed }

// stop stops the components that were started, in reverse order, one after another. It goes on
// when one fails, and returns all errors as one. Each goroutine that components started has ended
// when it returns. ctx bounds the drain; see component.
func (c *components) stop(ctx context.Context) error {
	var failed error
	for _, each := range slices.Backward(c.running) {
		if each.run != nil {
			each.cancel()
			<-each.ended
		}
		if each.component.stop == nil {
			continue
		}
		if err := each.component.stop(ctx); err != nil {
			failed = joinErrors(failed, fmt.Errorf("stopping %s: %w", each.name, err))
		}
	}
	c.running = nil
	return failed
}

// joinErrors joins two errors, each of which may be nil, into one of one line.
func joinErrors(first, second error) error {
	switch {
	case first == nil:
		return second
	case second == nil:
		return first
	}
	return fmt.Errorf("%w; %w", first, second)
}
