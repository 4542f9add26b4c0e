package trio

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// Wire is what connections go through from one process to another. It listens at an address of its own for as long as the
// Trio lives, whatever happens to the process behind it.
type Wire struct {
	// Name says from where to where, as in "m0-m1".
	Name string

	listener net.Listener
	// dial connects to the process behind the wire.
	dial    func(context.Context) (net.Conn, error)
	ctx     context.Context
	end     context.CancelFunc
	running sync.WaitGroup

	// mutex guards what follows.
	mutex sync.Mutex
	state state
	// there and back are how late a slow wire is, to the process and from it.
	there, back time.Duration
	// changed is closed, and made anew, when state or pairs change.
	changed chan struct{}
	pairs   map[*pair]struct{}
}

type state int

const (
	whole state = iota
	cutOff
	held
	slow
)

// underway is how many pieces of a connection are on their way in one direction. Then no more is read.
const underway = 256

// piece is what was read of a connection at once.
type piece struct {
	content []byte
	read    time.Time
	// end is set if nothing comes after it.
	end bool
}

// pair is a connection through the wire.
type pair struct {
	near, far net.Conn
	closed    bool // guarded by the wire's mutex
}

// newWire returns a wire that listens.
func newWire(name string, listener net.Listener, dial func(context.Context) (net.Conn, error)) *Wire {
	w := &Wire{Name: name, listener: listener, dial: dial, changed: make(chan struct{}), pairs: make(map[*pair]struct{})}
	w.ctx, w.end = context.WithCancel(context.Background())
	w.running.Go(w.accept)
	return w
}

// Address returns where the wire listens, as keysvc and its clients take it: host:port, or unix:///path.
func (w *Wire) Address() string {
	address := w.listener.Addr()
	if address.Network() == "unix" {
		return "unix://" + address.String()
	}
	return address.String()
}

// Cut closes all connections, and every new one at once, as if no process listened.
func (w *Wire) Cut() { w.set(cutOff) }

// Hold lets nothing through any more, in either direction, and closes nothing: as a network does that has lost its
// way. What was sent before or meanwhile arrives after Mend, if its sender still wants it.
func (w *Wire) Hold() { w.set(held) }

// Slow lets everything arrive later than it was sent: so much on the way to the process, and so much on the way back. What is
// on its way arrives at once after Mend, and never after Cut.
func (w *Wire) Slow(there, back time.Duration) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.there, w.back = there, back
	w.setLocked(slow)
}

// Mend lets everything through again.
func (w *Wire) Mend() { w.set(whole) }

func (w *Wire) set(next state) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.setLocked(next)
}

// setLocked is set. The mutex is held.
func (w *Wire) setLocked(next state) {
	w.state = next
	if next == cutOff {
		for each := range w.pairs {
			w.drop(each)
		}
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// drop closes a connection. The mutex is held.
func (w *Wire) drop(p *pair) {
	if p.closed {
		return
	}
	p.closed = true
	delete(w.pairs, p)
	reset(p.near)
	if p.far != nil {
		reset(p.far)
	}
}

// reset closes a connection without a farewell.
func reset(connection net.Conn) {
	if tcp, ok := connection.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = connection.Close()
}

func (w *Wire) accept() {
	for {
		near, err := w.listener.Accept()
		if err != nil {
			if w.ctx.Err() != nil {
				return
			}
			continue // such as a connection that was closed before it was accepted
		}
		w.running.Go(func() { w.carry(near) })
	}
}

// carry carries one connection until it ends.
func (w *Wire) carry(near net.Conn) {
	p := &pair{near: near}
	w.mutex.Lock()
	w.pairs[p] = struct{}{}
	if w.state == cutOff || w.ctx.Err() != nil {
		w.drop(p)
	}
	w.mutex.Unlock()
	defer func() {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		w.drop(p)
	}()
	if !w.pass(p, time.Now(), false) {
		return
	}
	far, err := w.dial(w.ctx)
	if err != nil {
		return
	}
	w.mutex.Lock()
	p.far = far
	lost := p.closed
	w.mutex.Unlock()
	if lost {
		reset(far)
		return
	}
	var both sync.WaitGroup
	both.Go(func() { w.pump(p, near, far, false) })
	both.Go(func() { w.pump(p, far, near, true) })
	both.Wait()
}

// pass waits until the wire lets something through that was sent at a time. It reports false if the connection was closed.
func (w *Wire) pass(p *pair, sent time.Time, back bool) bool {
	for {
		w.mutex.Lock()
		state, late, closed, changed := w.state, w.there, p.closed, w.changed
		if back {
			late = w.back
		}
		w.mutex.Unlock()
		left := time.Until(sent.Add(late))
		switch {
		case closed || state == cutOff:
			return false
		case state == whole, state == slow && left <= 0:
			return true
		}
		var arrives <-chan time.Time // never, if the wire is held
		if state == slow {
			arrives = time.After(left)
		}
		select {
		case <-changed:
		case <-arrives:
		case <-w.ctx.Done():
			return false
		}
	}
}

// pump carries one direction.
func (w *Wire) pump(p *pair, from, to net.Conn, back bool) {
	pieces, ended := make(chan piece, underway), make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() { read(from, pieces, ended) })
	defer reading.Wait() // whoever returns early has closed the connection, or found it closed
	defer close(ended)
	for next := range pieces {
		if !w.pass(p, next.read, back) {
			return
		}
		if len(next.content) > 0 {
			if _, err := to.Write(next.content); err != nil {
				w.close(p)
				return
			}
		}
		if next.end {
			// An end is passed on; the other direction may still have something to say.
			if half, ok := to.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
				w.close(p)
			}
			return
		}
	}
}

// read reads a connection until it ends, or until nobody wants the pieces any more.
func read(from net.Conn, pieces chan<- piece, ended <-chan struct{}) {
	buffer := make([]byte, 32<<10)
	for {
		count, err := from.Read(buffer)
		select {
		case pieces <- piece{bytes.Clone(buffer[:count]), time.Now(), err != nil}:
		case <-ended:
			return
		}
		if err != nil {
			return
		}
	}
}

func (w *Wire) close(p *pair) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.drop(p)
}

// remove ends the wire and all of its connections.
func (w *Wire) remove() error {
	w.end()
	err := w.listener.Close()
	w.set(cutOff)
	w.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
