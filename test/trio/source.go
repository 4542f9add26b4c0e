package trio

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Source is one who uses etcd, with wires of its own to each member: a keysvc, or a store in a test's own process.
type Source struct {
	// Wires lead to the members, in their order. There are none in a Trio with Config.Direct.
	Wires Wires

	trio    *Trio
	secured bool
	clients []*clientv3.Client
}

// Source adds wires to each member. The name is short, and used once.
func (t *Trio) Source(name string) (*Source, error) { return t.source(name, t.config.TLS) }

func (t *Trio) source(name string, secured bool) (*Source, error) {
	folder := filepath.Join(t.folder, name)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	s := &Source{trio: t, secured: secured}
	socket := "client"
	if secured {
		socket = "secure"
	}
	for _, member := range t.Members {
		if t.config.Direct {
			break
		}
		wire, err := t.clientWire(folder, name+"-"+member.name, secured, member.dialer(socket))
		if err != nil {
			return nil, err
		}
		s.Wires = append(s.Wires, wire)
	}
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.sources = append(t.sources, s)
	return s, nil
}

// To returns the wire to a member.
func (s *Source) To(member *Member) *Wire { return s.Wires[member.Index] }

// Endpoints returns the addresses of the members over this source's wires, as --etcd-endpoints takes them.
func (s *Source) Endpoints() []string {
	var endpoints []string
	if s.trio.config.Direct {
		for _, member := range s.trio.Members {
			endpoints = append(endpoints, "unix://"+filepath.Join(member.folder, "client"))
		}
	}
	for _, wire := range s.Wires {
		endpoints = append(endpoints, wire.Address())
	}
	return endpoints
}

// Clients returns a client for each member, over this source's wires, as etcdstore.Config.Members takes them. Close of
// the Trio closes them.
func (s *Source) Clients() ([]*clientv3.Client, error) {
	var secured *tls.Config
	if s.secured {
		var err error
		if secured, err = s.trio.Certs().ClientTLS(); err != nil {
			return nil, err
		}
	}
	var clients []*clientv3.Client
	for _, endpoint := range s.Endpoints() {
		client, err := newClient(endpoint, secured)
		if err != nil {
			return nil, fmt.Errorf("a client of %s: %w", endpoint, err)
		}
		clients = append(clients, client)
		s.trio.mutex.Lock()
		s.clients = append(s.clients, client)
		s.trio.mutex.Unlock()
	}
	return clients, nil
}

// close closes the clients. The mutex of the Trio is held.
func (s *Source) close() error {
	var errs []error
	for _, client := range s.clients {
		errs = append(errs, client.Close())
	}
	s.clients = nil
	return errors.Join(errs...)
}
