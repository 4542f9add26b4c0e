package connection_test

import (
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/connection"
)

// bounded bounds the streams that wait, and that fail.
func bounded(c *connection.Config) { c.MaxFailed = 1024 }

// TestACrowdOfCallsDelaysItself: a client that opens calls without a message gets no further than its
// share and what its pauses allow, and another is served.
func TestACrowdOfCallsDelaysItself(t *testing.T) {
	r := serveLoopback(t, bounded)
	good := r.dial(t, nil)
	if _, err := ask(t, good, "/t/who", ""); err != nil {
		t.Fatal(err)
	}
	h := r.attack(t).read()
	h.greet()
	const sent = 50_000
	written := make(chan struct{})
	go func() {
		defer close(written)
		for range sent {
			h.call("/t/who", nil)
			if h.buffer.Len() > 4<<10 && !h.flush() {
				return
			}
		}
	}()
	limit := int64(128 * runtime.GOMAXPROCS(0))
	waitUntil(t, "as many streams as may wait", func() bool { return r.set.Streams() > limit })
	for range 100 {
		if _, err := ask(t, good, "/t/who", ""); err != nil {
			t.Fatal(err)
		}
		// Two pieces are read beyond the limit at most for each pause.
		if streams := r.set.Streams(); streams > limit+1000 {
			t.Fatalf("%d streams are open", streams)
		}
	}
	// What the client has sent and nobody has read dies with it.
	_ = h.socket.SetWriteDeadline(time.Now())
	<-written
	_ = h.socket.Close()
	waitUntil(t, "one connection", func() bool { return r.set.Counts().Open == 1 })
}

// TestManyCallsAtOnceAreAllAnswered: a client with far more calls than its share loses none of them.
func TestManyCallsAtOnceAreAllAnswered(t *testing.T) {
	r := serveLoopback(t, bounded)
	for range 3 { // so that the share is a quarter
		if _, err := ask(t, r.dial(t, nil), "/t/who", ""); err != nil {
			t.Fatal(err)
		}
	}
	client := r.dial(t, nil)
	var calls sync.WaitGroup
	for range 900 * runtime.GOMAXPROCS(0) {
		calls.Go(func() {
			if answer, err := ask(t, client, "/t/answer", "10"); err != nil || len(answer) != 10 {
				t.Errorf("%d bytes, %v", len(answer), err)
			}
		})
	}
	calls.Wait()
}

// TestCallsThatWaitForTheirOwnClientEndItsConnection: a connection whose share is used up by calls without
// a message ends, and one whose calls are answered goes on.
func TestCallsThatWaitForTheirOwnClientEndItsConnection(t *testing.T) {
	r := serveLoopback(t, bounded)
	h := r.attack(t).read()
	h.greet()
	for range 1000 * runtime.GOMAXPROCS(0) {
		h.call("/t/who", nil)
	}
	h.flush()
	waitUntil(t, "as many streams as may wait", func() bool { return r.set.Streams() > int64(128*runtime.GOMAXPROCS(0)) })
	good := r.dial(t, nil)
	waitUntil(t, "one connection", func() bool {
		r.clock.pass(100 * time.Millisecond)
		if _, err := ask(t, good, "/t/who", ""); err != nil {
			t.Fatal(err)
		}
		return r.set.Counts().Open == 1
	})
	if closed := r.expectClosed(t, connection.ClosedFlood); closed.Detail != "its calls wait for their requests" {
		t.Errorf("got %+v", closed)
	}
	if _, err := ask(t, good, "/t/who", ""); err != nil {
		t.Error(err)
	}
}

// TestPausedConnectionsCanBeEnded: a pause does not keep a connection open.
func TestPausedConnectionsCanBeEnded(t *testing.T) {
	r := serveLoopback(t, bounded)
	h := r.attack(t)
	h.greet()
	for range 1000 * runtime.GOMAXPROCS(0) {
		h.call("/t/who", nil)
	}
	h.flush()
	waitUntil(t, "as many streams as may wait", func() bool { return r.set.Streams() > int64(128*runtime.GOMAXPROCS(0)) })
	r.set.Each(func(c *connection.Conn) { c.End(connection.ClosedRemoved, "") })
	r.expectClosed(t, connection.ClosedRemoved)
	_ = h.socket.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, h.socket); errors.Is(err, net.ErrClosed) || isTimeout(err) {
		t.Errorf("the client sees no end: %v", err)
	}
	waitUntil(t, "no connection", func() bool { return r.set.Counts().Open == 0 })
}

func isTimeout(err error) bool {
	timeout, is := errors.AsType[net.Error](err)
	return is && timeout.Timeout()
}
