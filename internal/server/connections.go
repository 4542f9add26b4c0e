package server

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/connection"
	"github.com/scribe-mail/keysvc/internal/events"
)

// makeConnections makes the set of the connections of all listeners.
func (s *Server) makeConnections(context.Context) error {
	settings, began := s.config.Settings, monotonic()
	s.connections = connection.New(connection.Config{
		Judge:          s.config.Judge,
		MaxConnections: settings.MaxConnections, MaxPerSource: settings.MaxConnectionsPerSource,
		MaxStreams: settings.MaxStreams, MaxHeaderBytes: settings.MaxHeaderBytes,
		MaxFailed: settings.MaxOpenStreams / 2,
		Silence:   keepaliveTimeout,
		Now:       s.clock.Now,
		Elapsed:   func() time.Duration { return monotonic().Sub(began) },
		Closed: func(closed connection.Closed) {
			s.hooks.ConnectionsClosed(events.ConnectionsClosed{
				Reason: string(closed.Reason), Detail: closed.Detail, Peer: closed.Peer, Count: closed.Count,
			})
		},
	})
	return nil
}

// sweepConnections ends connections that must end, once a second.
func (s *Server) sweepConnections(ctx context.Context) error {
	s.connections.Run(ctx)
	return nil
}

// connectionsOf says what is expected of the connections of a listener, by its address.
func (s *Server) connectionsOf(listener net.Listener, purpose config.Purpose) *connection.Listener {
	wanted := &connection.Listener{Anonymous: purpose.IsOpen()}
	switch listener.Addr().(type) {
	case *net.TCPAddr:
		switch {
		case purpose.IsOpen():
			wanted.Kind = connection.Plaintext // probes of other machines, too
		case s.config.Settings.TLS():
			wanted.Kind = connection.TLS
			wanted.TLS = func() (*tls.Config, error) { return s.proofs.tls, nil }
			wanted.Bearers = s.config.Settings.TLSBearers
		default:
			wanted.Kind = connection.Loopback
		}
	case *net.UnixAddr:
		wanted.Kind = connection.Unix
	default: // in memory, or of a kind that nobody knows
		if s.config.InMemory {
			wanted.Kind = connection.Memory
		}
	}
	return wanted
}
