// Package trio runs three etcds and any number of keysvcs over them, each a process of its own, and breaks
// them: it kills and stops processes, and cuts and mends the wires between any two of them.
//
// A test begins with
//
//	cluster := trio.New(t, trio.Config{Replicas: 3})
//	cluster.Replicas[0].Address() // what clients connect to
//
// and is left with nothing to clean up. A test that has its stores in its own process takes no replicas, and gives
// each store wires of its own with Source. Everything listens on unix sockets in a folder, or with TLS on
// loopback at ports that the library holds, so no two tests meet. Nothing sleeps: every wait is for a
// line of a process, for an answer, or for the end of a context.
package trio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// size is how many members an etcd cluster has here.
const size = 3

// patience is how long New waits for the processes on a busy machine.
const patience = 90 * time.Second

// Config is what a Trio consists of.
type Config struct {
	// Replicas is how many keysvcs are started, one after the other. Default: none.
	Replicas int
	// Programs are the built programs. Default: they are built, once for each test binary.
	Programs *Programs
	// Fsync makes etcd sync what it writes. Without it, killing processes loses nothing, and everything is faster.
	Fsync bool
	// Quota is the max size of etcd's database in bytes. Default: etcd's.
	Quota int64
	// CompactionMode and CompactionRetention are etcd's auto-compaction-mode and auto-compaction-retention, as in
	// "revision" and "1000". Default: no compaction.
	CompactionMode, CompactionRetention string
	// Election is how long the members wait for a leader that is silent, ten heartbeats; in milliseconds. Default: etcd's, 1 s.
	Election time.Duration
	// TLS secures the connections of clients to etcd and to keysvc, on loopback. Connections between members stay on unix
	// sockets. Certs has the certificates.
	TLS bool
	// Direct leaves the wires out, for measurements: processes connect to each other, and clients to a replica, without
	// this process in between. Then nothing can be cut, and there is no TLS.
	Direct bool
	// Arguments are further arguments of keysvc serve, of all replicas.
	Arguments []string
	// FirstArguments are further arguments of the first start of the first replica. Default: --init.
	FirstArguments []string
}

// Trio is a running cluster.
type Trio struct {
	// Members are the etcds, Replicas the keysvcs.
	Members  [size]*Member
	Replicas []*Replica

	config   Config
	programs *Programs
	folder   string
	starter  *starter

	// mutex guards what follows.
	mutex   sync.Mutex
	wires   []*Wire
	sources []*Source
}

// New starts a Trio that ends with the test. If the test fails, the ends of the processes' logs are in its output.
func New(t testing.TB, config Config) *Trio {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cluster, err := Start(ctx, config)
	if err != nil {
		t.Fatalf("starting etcd and keysvc: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(cluster.Logs())
		}
		if err := cluster.Close(); err != nil {
			t.Errorf("ending etcd and keysvc: %v", err)
		}
	})
	return cluster
}

// Start starts etcd and keysvc, and returns when all serve.
func Start(ctx context.Context, config Config) (_ *Trio, err error) {
	if config.Direct && config.TLS {
		return nil, errors.New("a Trio without wires has no TLS")
	}
	if config.Programs == nil {
		if config.Programs, err = Build(ctx); err != nil {
			return nil, err
		}
	}
	folder, err := os.MkdirTemp("", "trio-") // short, as paths of sockets must be
	if err != nil {
		return nil, err
	}
	t := &Trio{config: config, programs: config.Programs, folder: folder, starter: newStarter()}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if config.TLS {
		if err := t.makeCerts(ctx); err != nil {
			return nil, err
		}
	}
	for index := range t.Members {
		if t.Members[index], err = t.newMember(index); err != nil {
			return nil, err
		}
	}
	for _, from := range t.Members {
		for _, to := range t.Members {
			switch {
			case from == to:
			case config.Direct:
				if err := os.Symlink(filepath.Join(to.folder, to.name+":1"), filepath.Join(from.folder, to.name+":1")); err != nil {
					return nil, err
				}
			default:
				wire, err := t.newWire("unix", filepath.Join(from.folder, to.name+":1"), from.name+"-"+to.name, to.dialer(to.name+":1"))
				if err != nil {
					return nil, err
				}
				from.peers[to.Index] = wire
			}
		}
	}
	for _, member := range t.Members {
		if err := member.Start(); err != nil {
			return nil, err
		}
	}
	for _, member := range t.Members {
		if err := member.Ready(ctx); err != nil {
			return nil, err
		}
	}
	for range config.Replicas {
		if _, err := t.AddReplica(ctx); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Close kills all processes, and removes their folder.
func (t *Trio) Close() error {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	var errs []error
	for _, source := range t.sources {
		errs = append(errs, source.close())
	}
	for _, replica := range t.Replicas {
		errs = append(errs, replica.Kill())
	}
	for _, member := range t.Members {
		if member != nil {
			errs = append(errs, member.close())
		}
	}
	for _, wire := range t.wires {
		errs = append(errs, wire.remove())
	}
	t.sources, t.wires = nil, nil
	if t.starter != nil {
		t.starter.close()
		t.starter = nil
	}
	return errors.Join(append(errs, os.RemoveAll(t.folder))...)
}

// Logs returns the ends of the logs of all processes.
func (t *Trio) Logs() string {
	var text strings.Builder
	for _, member := range t.Members {
		fmt.Fprintf(&text, "== %s\n%s\n", member.name, member.tail())
	}
	for _, replica := range t.Replicas {
		fmt.Fprintf(&text, "== %s\n%s\n", replica.name, replica.tail())
	}
	return text.String()
}

// Mend mends all wires.
func (t *Trio) Mend() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for _, wire := range t.wires {
		wire.Mend()
	}
}

// Wires returns all wires, for a test that breaks any of them.
func (t *Trio) Wires() []*Wire {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return append([]*Wire(nil), t.wires...)
}

// newWire adds a wire that listens at an address.
func (t *Trio) newWire(network, address, name string, dial func(context.Context) (net.Conn, error)) (*Wire, error) {
	listener, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("wire %s: %w", name, err)
	}
	wire := newWire(name, listener, dial)
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.wires = append(t.wires, wire)
	return wire, nil
}

// clientWire adds a wire for clients: on loopback for TLS, otherwise a unix socket in a folder.
func (t *Trio) clientWire(folder, name string, secured bool, dial func(context.Context) (net.Conn, error)) (*Wire, error) {
	if secured {
		return t.newWire("tcp", "127.0.0.1:0", name, dial)
	}
	return t.newWire("unix", filepath.Join(folder, name), name, dial)
}
