// Package connection has the connections of a keysvc: who is let in, who the peer is while the
// connection is open, and when the connection must end. It stands between the sockets and gRPC:
// above TLS and below HTTP/2.
//
// A listener that Set.Listen returns bounds how many connections there are. Set.Credentials makes
// the handshake of each, asks a callers.Judge who the peer is, and puts a guard between the
// connection and gRPC. Set.Rejudge asks again for every live connection.
package connection

import (
	"container/list"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"

	"github.com/scribe-mail/keysvc/internal/callers"
)

// Conn is a connection that a Set has let in. gRPC reads and writes it.
type Conn struct {
	set      *Set
	listener *Listener
	source   source
	guard    *guard
	// raw is the socket. stream is what gRPC reads and writes: raw, or TLS over it. It is nil
	// until the handshake has ended, and does not change after it.
	raw, stream net.Conn
	// ready reads raw without a buffer that waits with it; nil if it cannot.
	ready readyReader
	// peer is not changed after the handshake.
	peer callers.Peer

	// identity is who the peer is; nil if it is not known. judged is set once the peer was judged.
	// Both are changed under the set's lock.
	identity atomic.Pointer[callers.Identity]
	judged   bool
	// drainLead is how long before the end of its credential the connection is drained.
	drainLead time.Duration

	// young is the connection's place among those whose client has not sent SETTINGS yet; nil if
	// it has. The set's lock protects it, and settled is set when it becomes nil.
	young    *list.Element
	settled  atomic.Bool
	accepted time.Duration
	// state is what the set knows of the source; nil if the source is not counted.
	state *sourceState

	// writing is held while bytes are written. writingSince is the number of the first sweep that
	// could see the write that runs; 0 if none runs.
	writing      sync.Mutex
	writingSince atomic.Int64
	// draining is set once the client was told, or is to be told, to open no more streams here.
	// told is set once it was; writing protects it.
	draining atomic.Bool
	told     bool

	// wakes ends a pause in reading, and pausing is set while there is one.
	wakes   chan struct{}
	pausing atomic.Bool
	// stalled and piece belong to the goroutine that reads. piece is what it reads into, if it cannot
	// wait for something to read.
	stalled stall
	piece   []byte

	// places is how many places of the server's the connection's calls have, of two kinds.
	places [2]atomic.Int64

	closing sync.Once
}

var (
	errHandshake = errors.New("connection: no handshake yet")
	errEnded     = errors.New("connection: ended by the server")
)

// FromContext returns the connection of a call; nil if it is not a connection of a Set.
func FromContext(ctx context.Context) *Conn {
	if peer, has := peer.FromContext(ctx); has {
		if info, is := peer.AuthInfo.(Info); is {
			return info.conn
		}
	}
	return nil
}

// Peer returns what the connection proves about its other end. It must not be changed.
func (c *Conn) Peer() *callers.Peer { return &c.peer }

// Identity returns who the peer is now; nil if it is not known, or if its credential has ended.
func (c *Conn) Identity() *callers.Identity {
	identity := c.identity.Load()
	if identity != nil && !identity.NotAfter.IsZero() && !c.set.config.Now().Before(identity.NotAfter) {
		return nil
	}
	return identity
}

// endOfCredential returns when the peer's credential ends; zero if it does not.
func (c *Conn) endOfCredential() time.Time {
	if identity := c.identity.Load(); identity != nil {
		return identity.NotAfter
	}
	return time.Time{}
}

// PlacesOf returns the number of places that the calls of a peer's connection have: of those calls that
// are refused last, or of the others. The server that gives the places changes the number. A connection
// that is not one of a Set gets a number of its own each time.
func PlacesOf(from *peer.Peer, last bool) *atomic.Int64 {
	if from != nil {
		if info, is := from.AuthInfo.(Info); is {
			if last {
				return &info.conn.places[1]
			}
			return &info.conn.places[0]
		}
	}
	return new(atomic.Int64)
}

// Streams returns how many streams the client has opened that have not ended, without those that are
// apart.
func (c *Conn) Streams() int64 { return c.guard.open.Load() }

// Apart takes a stream of the connection out of the numbers that Streams returns, because it is counted
// elsewhere, until the function that it returns is called.
func (c *Conn) Apart() (over func()) {
	c.guard.addApart(-1)
	return func() { c.guard.addApart(1) }
}

// Waits takes a call of the connection out of those that wait for an answer, until the function that it
// returns is called: the call waits for something else than a processor.
func (c *Conn) Waits() (over func()) {
	c.guard.addApartWaiting(-1)
	return func() { c.guard.addApartWaiting(1) }
}

// End closes the connection at once, and everything that goes on over it. The reason is for the
// log.
func (c *Conn) End(reason Reason, detail string) {
	c.closing.Do(func() {
		// What the client has not read must not stay in the kernel's buffers for minutes.
		if socket, isTCP := c.raw.(*net.TCPConn); isTCP {
			_ = socket.SetLinger(0)
		}
		c.set.report(reason, c.name(), detail)
		c.set.forget(c)
		_ = c.raw.Close()
		c.wake()
	})
}

// Drain tells the client to open no more streams on this connection, and a new connection for
// them. Streams that are open go on.
func (c *Conn) Drain() {
	if c.stream != nil && c.draining.CompareAndSwap(false, true) {
		// A write can wait for the client; but not for longer than the sweep allows.
		go func() {
			c.writing.Lock()
			defer c.writing.Unlock()
			_ = c.tell()
		}()
	}
}

// goAway is a GOAWAY frame with the highest stream id and NO_ERROR: the client opens no more
// streams, and no stream of its own is refused (RFC 9113, section 6.8).
var goAway = []byte{0, 0, 8, frameGoAway, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0}

// tell sends the GOAWAY of a connection that is drained, unless it is in a frame of gRPC: then it
// must be called again after the next write. c.writing must be held.
func (c *Conn) tell() error {
	if c.told || !c.guard.betweenFrames() {
		return nil
	}
	c.told = true
	c.beginWrite()
	defer c.writingSince.Store(0)
	_, err := c.stream.Write(goAway)
	return err
}

// ping asks the client for a sign of life: if it has left, its system says so now. Otherwise nobody
// would notice before everything is read that the client has sent.
func (c *Conn) ping() {
	if !c.writing.TryLock() {
		return
	}
	defer c.writing.Unlock()
	if c.guard.betweenFrames() && c.guard.sending(pingFrame) == nil {
		c.beginWrite()
		defer c.writingSince.Store(0)
		_, _ = c.stream.Write(pingFrame) // the next read fails, too
	}
}

// pingFrame is a PING frame (RFC 9113, section 6.7).
var pingFrame = []byte{0, 0, 8, framePing, 0, 0, 0, 0, 0, 'a', 'r', 'e', ' ', 'y', 'o', 'u', '?'}

// Read implements net.Conn. What it returns has passed the guard.
func (c *Conn) Read(buffer []byte) (int, error) {
	if c.stream == nil {
		return 0, errHandshake
	}
	if err := c.pause(); err != nil {
		return 0, err
	}
	n, err := c.stream.Read(buffer[:c.set.pace.most(len(buffer))])
	if n > 0 {
		if bad := c.pass(buffer[:n]); bad != nil {
			return 0, bad
		}
	}
	return n, err
}

// readyReader is what gRPC looks for in a connection to read it without a buffer that waits with
// it.
type readyReader interface {
	ReadOnReady(size int, pool mem.BufferPool) (buffer *[]byte, n int, err error)
}

// pass shows bytes of the client to the guard, and ends the connection if it must.
func (c *Conn) pass(received []byte) error {
	if err := c.guard.received(received); err != nil {
		c.End(reasonOf(err), err.Error())
		return errEnded
	}
	if !c.settled.Load() && c.guard.isSettled() {
		c.set.settle(c)
	}
	return nil
}

// Write implements net.Conn.
func (c *Conn) Write(buffer []byte) (int, error) {
	if c.stream == nil {
		return 0, errHandshake
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.guard.sending(buffer); err != nil {
		c.End(reasonOf(err), err.Error())
		return 0, errEnded
	}
	c.beginWrite()
	n, err := c.stream.Write(buffer)
	c.writingSince.Store(0)
	c.wake()
	if err == nil && c.draining.Load() {
		err = c.tell()
	}
	return n, err
}

func (c *Conn) beginWrite() { c.writingSince.Store(c.set.swept.Load() + 1) }

// Close implements net.Conn.
func (c *Conn) Close() error {
	err := net.ErrClosed
	c.closing.Do(func() {
		if c.stream != nil {
			err = c.stream.Close()
		} else {
			err = c.raw.Close()
		}
		c.set.forget(c)
		c.wake()
	})
	return err
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(deadline time.Time) error { return c.raw.SetDeadline(deadline) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(deadline time.Time) error { return c.raw.SetReadDeadline(deadline) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(deadline time.Time) error { return c.raw.SetWriteDeadline(deadline) }

// SyscallConn implements syscall.Conn, for gRPC's channelz. Nobody may read or write through it.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if socket, can := c.raw.(syscall.Conn); can {
		return socket.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// name names the peer for the log.
func (c *Conn) name() string { return nameOf(c.source, c.raw) }

// Info is the AuthInfo of a connection.
type Info struct {
	credentials.CommonAuthInfo
	conn *Conn
}

// AuthType implements credentials.AuthInfo.
func (Info) AuthType() string { return "keysvc" }

// CallerPeer implements callers.Presented.
func (i Info) CallerPeer() *callers.Peer { return i.conn.Peer() }

// CallerIdentity implements callers.Identified.
func (i Info) CallerIdentity() *callers.Identity { return i.conn.Identity() }
