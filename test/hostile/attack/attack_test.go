package attack_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/test/hostile/attack"
)

// TestEveryAttackReachesServer runs each attack until it has a connection and has sent something.
// An attack that does nothing would pass every campaign.
func TestEveryAttackReachesServer(t *testing.T) {
	names := make(map[string]bool)
	for _, one := range attack.All(true) {
		if names[one.Name] || one.What == "" {
			t.Errorf("attack %q: its name is not its own, or it does not say what it does", one.Name)
		}
		names[one.Name] = true
		t.Run(one.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			run := attack.New(attack.Target{Network: "tcp", Address: listen(t), Workspace: "attacked", TLS: secured(one)}, 1)
			over := make(chan struct{})
			go func() {
				defer close(over)
				run.Attack(ctx, one)
			}()
			reached := func() bool {
				return run.Counted.Connections.Load() > 0 && (run.Counted.Written.Load() > 0 || !one.Frames)
			}
			for ticker := time.NewTicker(time.Millisecond); !reached(); {
				select {
				case <-ticker.C:
				case <-ctx.Done():
					t.Fatalf("%d connections, %d bytes", run.Counted.Connections.Load(), run.Counted.Written.Load())
				}
			}
			cancel()
			<-over
		})
	}
}

// secured returns a configuration of TLS for the attacks that need one. They do not get as far as a
// certificate.
func secured(one attack.Attack) *tls.Config {
	if !one.TLS {
		return nil
	}
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
}

// listen accepts connections until the test ends, and reads whatever is sent. It returns the
// address.
func listen(t *testing.T) string {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				_, _ = io.Copy(io.Discard, connection)
			}()
		}
	}()
	return listener.Addr().String()
}
