package connection_test

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/scribe-mail/keysvc/internal/connection"
)

// from opens a connection from an address of the loopback, which sends its SETTINGS if it greets.
func (r *running) from(t *testing.T, address string, greets bool) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	socket, err := dialer.DialContext(t.Context(), "tcp", r.address.String())
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Skipf("this system has no %s: %v", address, err)
	}
	if err != nil {
		return nil // the server has closed it already
	}
	t.Cleanup(func() { _ = socket.Close() })
	if greets {
		h := hostile{t: t, socket: socket}
		h.framer = http2.NewFramer(&h.buffer, nil)
		h.greet()
		h.flush()
	}
	return socket
}

// TestAFewSourcesDoNotTakeAllConnections: four addresses that take what they can leave a fifth one in, and
// one of the largest makes room.
func TestAFewSourcesDoNotTakeAllConnections(t *testing.T) {
	for name, greets := range map[string]bool{"with SETTINGS": true, "without SETTINGS": false} {
		t.Run(name, func(t *testing.T) {
			r := serveLoopback(t, func(c *connection.Config) { c.MaxConnections, c.MaxPerSource = 256, 64 })
			most := 256
			if !greets {
				most = 64 // a quarter may be without SETTINGS
			}
			for index := range most {
				r.from(t, fmt.Sprintf("127.0.0.%d", 2+index%4), greets)
				if greets {
					r.clock.pass(time.Second) // the rate of new connections is another bound
					waitUntil(t, "SETTINGS", func() bool { c := r.set.Counts(); return c.Young == 0 && c.Open == index+1 })
				}
			}
			waitUntil(t, "all connections", func() bool {
				counts := r.set.Counts()
				return counts.Open == most && (counts.Young == 0) == greets
			})
			if greets {
				r.clock.pass(time.Minute)
			}
			if _, err := ask(t, r.dial(t, nil), "/t/who", ""); err != nil {
				t.Errorf("a fifth address: %v", err)
			}
			if greets {
				r.expectClosed(t, connection.ClosedFull)
			} else {
				r.expectClosed(t, connection.ClosedSlow)
			}
			if counts := r.set.Counts(); counts.Open != most {
				t.Errorf("got %+v, want %d connections", counts, most)
			}
		})
	}
}

// TestAFewSourcesDoNotTakeAllNewConnections: addresses that connect as fast as they can leave something of
// the rate to another.
func TestAFewSourcesDoNotTakeAllNewConnections(t *testing.T) {
	r := serveLoopback(t, func(c *connection.Config) { c.MaxConnections, c.MaxPerSource = 128, 64 })
	for index := range 160 {
		socket := r.from(t, fmt.Sprintf("127.0.0.%d", 2+index%4), true)
		if socket == nil {
			continue
		}
		_ = socket.SetReadDeadline(time.Now().Add(patience))
		_, _ = socket.Read(make([]byte, 1)) // the server's SETTINGS, or the end
		_ = socket.Close()
	}
	waitUntil(t, "no connections", func() bool { return r.set.Counts().Open == 0 })
	r.expectClosed(t, connection.ClosedFast)
	if _, err := ask(t, r.dial(t, nil), "/t/who", ""); err != nil {
		t.Errorf("a fifth address: %v", err)
	}
	// They go on, and a fifth address gets in at each attempt.
	for step := range 200 {
		r.clock.pass(100 * time.Millisecond)
		for index := range 8 {
			if socket := r.from(t, fmt.Sprintf("127.0.0.%d", 2+index%4), true); socket != nil {
				_ = socket.SetReadDeadline(time.Now().Add(patience))
				_, _ = socket.Read(make([]byte, 1))
				_ = socket.Close()
			}
		}
		if step%10 != 0 {
			continue
		}
		socket := r.from(t, "127.0.0.9", true)
		if socket == nil {
			t.Fatalf("a fifth address is refused at step %d", step)
		}
		_ = socket.SetReadDeadline(time.Now().Add(patience))
		if _, err := socket.Read(make([]byte, 1)); err != nil {
			t.Fatalf("a fifth address is refused at step %d: %v", step, err)
		}
		_ = socket.Close()
	}
}

// TestACrowdMakesRoomForItself: addresses that fill the room for connections without SETTINGS do not drive out
// the only one of another address, even if it is the oldest.
func TestACrowdMakesRoomForItself(t *testing.T) {
	r := serveLoopback(t, func(c *connection.Config) { c.MaxConnections, c.MaxPerSource = 256, 64 })
	oldest := r.from(t, "127.0.0.2", false)
	for index := range 63 {
		r.from(t, fmt.Sprintf("127.0.0.%d", 3+index%3), false)
	}
	waitUntil(t, "64 connections", func() bool { return r.set.Counts().Young == 64 })
	for index := range 30 {
		r.clock.pass(2 * time.Second)
		r.from(t, fmt.Sprintf("127.0.0.%d", 3+index%3), false)
		r.expectClosed(t, connection.ClosedSlow)
	}
	h := hostile{t: t, socket: oldest}
	h.framer = http2.NewFramer(&h.buffer, nil)
	h.greet()
	if !h.flush() {
		t.Fatal("the oldest was ended")
	}
	_ = oldest.SetReadDeadline(time.Now().Add(patience))
	if n, err := oldest.Read(make([]byte, 1)); n != 1 {
		t.Errorf("the oldest: %v", err)
	}
}
