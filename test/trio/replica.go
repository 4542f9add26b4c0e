package trio

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// Replica is a keysvc over the etcds.
type Replica struct {
	process

	// Index is the replica's place in Trio.Replicas.
	Index int
	// Etcd are the replica's wires to the members of etcd.
	Etcd *Source
	// Clients is the wire that clients go through to the replica; nil in a Trio with Config.Direct.
	Clients *Wire
	// Program is the keysvc that Start starts, which a test may change between two starts. Default: the built one.
	Program string
	// Arguments are further arguments of keysvc serve. A test may change them between two starts.
	Arguments []string

	trio  *Trio
	first bool

	// where guards what follows.
	where    sync.Mutex
	listener string
	metrics  string
}

// AddReplica adds a keysvc, starts it, and waits until it serves.
func (t *Trio) AddReplica(ctx context.Context) (*Replica, error) {
	index := len(t.Replicas)
	name := "r" + strconv.Itoa(index)
	source, err := t.source(name, t.config.TLS && t.programs.etcdTLS(ctx))
	if err != nil {
		return nil, err
	}
	r := &Replica{
		process: process{starter: t.starter, name: name, folder: filepath.Join(t.folder, name)},
		Index:   index, Etcd: source, Program: t.programs.Keysvc, Arguments: t.config.Arguments, trio: t, first: index == 0,
	}
	if !t.config.Direct {
		if r.Clients, err = t.clientWire(r.folder, "c-"+name, t.config.TLS, r.dial); err != nil {
			return nil, err
		}
	}
	t.Replicas = append(t.Replicas, r)
	if err := r.Start(); err != nil {
		return nil, err
	}
	return r, r.Ready(ctx)
}

// Name returns the replica's name: r0, r1 and so on.
func (r *Replica) Name() string { return r.name }

// Address returns where clients connect to the replica: unix:///path, or with TLS host:port. It stays the
// same over all starts.
func (r *Replica) Address() string {
	if r.Clients == nil {
		return r.socket()
	}
	return r.Clients.Address()
}

// socket returns where the replica listens without TLS.
func (r *Replica) socket() string { return "unix://" + filepath.Join(r.folder, "s") }

// Addresses returns the addresses of all replicas.
func (t *Trio) Addresses() []string {
	var addresses []string
	for _, replica := range t.Replicas {
		addresses = append(addresses, replica.Address())
	}
	return addresses
}

// Metrics returns the host:port of the running replica's listener for Prometheus.
func (r *Replica) Metrics() string {
	r.where.Lock()
	defer r.where.Unlock()
	return r.metrics
}

// Start starts the replica, also one that was killed, and does not wait; Ready does.
func (r *Replica) Start() error {
	listen := r.socket()
	arguments := []string{
		"serve", "--store", "etcd", "--etcd-endpoints", strings.Join(r.Etcd.Endpoints(), ","),
		"--data", filepath.Join(r.folder, "data"), "--log-format", "json", "--listener", "metrics=127.0.0.1:0",
	}
	if r.trio.config.TLS {
		listen = "127.0.0.1:0"
		certs := r.trio.Certs()
		arguments = append(arguments, "--tls-server-cert", certs.ServerCert, "--tls-server-key", certs.ServerKey, "--callers", certs.Callers)
	}
	if r.Etcd.secured {
		certs := r.trio.Certs()
		certificate, key := certs.Pair("admin")
		arguments = append(arguments, "--etcd-ca", certs.CA, "--etcd-cert", certificate, "--etcd-key", key)
	}
	arguments = append(append(arguments, "--listen", listen), r.Arguments...)
	if r.first {
		r.first = false
		first := r.trio.config.FirstArguments
		if first == nil {
			first = []string{"--init"}
		}
		arguments = append(arguments, first...)
	}
	r.where.Lock()
	r.listener, r.metrics = "", ""
	r.where.Unlock()
	command := exec.Command(r.Program, arguments...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "KEYSVC_") {
			command.Env = append(command.Env, variable)
		}
	}
	return r.start(command, r.line)
}

// line reads a line of the log. The replica serves when it has said so of the listener for calls, which is the last.
func (r *Replica) line(text string) bool {
	var entry struct{ Msg, Address, Purpose string }
	if json.Unmarshal([]byte(text), &entry) != nil || entry.Msg != "serving" {
		return false
	}
	r.where.Lock()
	defer r.where.Unlock()
	if entry.Purpose == "metrics" {
		r.metrics = strings.TrimPrefix(entry.Address, "http://")
	} else {
		r.listener = entry.Address
	}
	return r.metrics != "" && r.listener != ""
}

// Restart kills the replica, starts it again, and waits until it serves.
func (r *Replica) Restart(ctx context.Context) error {
	if err := errors.Join(r.Kill(), r.Start()); err != nil {
		return err
	}
	return r.Ready(ctx)
}

// dial connects to where the replica listens now.
func (r *Replica) dial(ctx context.Context) (net.Conn, error) {
	r.where.Lock()
	listener := r.listener
	r.where.Unlock()
	if path, ok := strings.CutPrefix(listener, "unix://"); ok {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", listener)
}
