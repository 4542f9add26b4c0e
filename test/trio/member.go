package trio

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// pause is how long is waited before a question is asked again.
const pause = 10 * time.Millisecond

// Member is an etcd.
type Member struct {
	process

	// Index is the member's place in Trio.Members.
	Index int

	trio  *Trio
	peers [size]*Wire

	clientOnce sync.Once
	client     *clientv3.Client
	clientErr  error
}

func (t *Trio) newMember(index int) (*Member, error) {
	name := "m" + strconv.Itoa(index)
	m := &Member{process: process{starter: t.starter, name: name, folder: filepath.Join(t.folder, name)}, Index: index, trio: t}
	return m, os.Mkdir(m.folder, 0o700)
}

// Name returns the member's name: m0, m1 or m2.
func (m *Member) Name() string { return m.name }

// Start starts the member, also one that was killed, and does not wait; Ready does. A member without a majority becomes ready
// when it has one.
func (m *Member) Start() error {
	var cluster []string
	for index := range size {
		cluster = append(cluster, fmt.Sprintf("m%d=unix://m%d:1", index, index))
	}
	arguments := []string{"-name", m.name, "-cluster", strings.Join(cluster, ",")}
	config := m.trio.config
	if config.Fsync {
		arguments = append(arguments, "-fsync")
	}
	if config.Quota != 0 {
		arguments = append(arguments, "-quota", strconv.FormatInt(config.Quota, 10))
	}
	if config.CompactionRetention != "" {
		arguments = append(arguments, "-compaction-mode", config.CompactionMode, "-compaction-retention", config.CompactionRetention)
	}
	if config.Election != 0 {
		arguments = append(arguments, "-election", config.Election.String())
	}
	if config.TLS {
		certs := m.trio.Certs()
		arguments = append(arguments, "-cert", certs.ServerCert, "-key", certs.ServerKey, "-ca", certs.CA)
	}
	return m.start(exec.Command(m.trio.programs.Etcd, arguments...), func(line string) bool { return line == "ready" })
}

// Restart kills the member, starts it again, and waits until it serves.
func (m *Member) Restart(ctx context.Context) error {
	if err := errors.Join(m.Kill(), m.Start()); err != nil {
		return err
	}
	return m.Ready(ctx)
}

// dialer returns what connects to a socket of the member: client, secure, or the one for its peers.
func (m *Member) dialer(socket string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.folder, socket))
	}
}

// To returns the wire from this member to another one. Messages go both ways over each of the two wires between
// two members, so break both: Apart does.
func (m *Member) To(other *Member) *Wire { return m.peers[other.Index] }

// Apart returns the wires between this member and the others, in both directions.
func (m *Member) Apart() Wires {
	var wires Wires
	for _, other := range m.trio.Members {
		if other != m {
			wires = append(wires, m.To(other), other.To(m))
		}
	}
	return wires
}

// Wires are several wires that are broken and mended together.
type Wires []*Wire

// Cut cuts all of them.
func (w Wires) Cut() { w.each((*Wire).Cut) }

// Hold holds all of them.
func (w Wires) Hold() { w.each((*Wire).Hold) }

// Slow makes all of them slow.
func (w Wires) Slow(there, back time.Duration) { w.each(func(wire *Wire) { wire.Slow(there, back) }) }

// Mend mends all of them.
func (w Wires) Mend() { w.each((*Wire).Mend) }

func (w Wires) each(do func(*Wire)) {
	for _, wire := range w {
		do(wire)
	}
}

// Client returns a client that is connected to this member directly, whatever the wires do. Close closes it.
func (m *Member) Client() (*clientv3.Client, error) {
	m.clientOnce.Do(func() {
		m.client, m.clientErr = newClient("unix://"+filepath.Join(m.folder, "client"), nil)
	})
	return m.client, m.clientErr
}

// newClient returns a client of one address. It looks for a member that is away again and again.
func newClient(endpoint string, secured *tls.Config) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, TLS: secured, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: pause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: time.Second,
		})},
	})
}

// Status returns what the member says of itself.
func (m *Member) Status(ctx context.Context) (*clientv3.StatusResponse, error) {
	client, err := m.Client()
	if err != nil {
		return nil, err
	}
	return client.Status(ctx, client.Endpoints()[0])
}

// Leader waits until one of the members that answer is the leader of a majority of the cluster, and returns it.
func (t *Trio) Leader(ctx context.Context) (*Member, error) {
	for {
		leaders := make(map[uint64]int)
		ids := make(map[uint64]*Member)
		for _, member := range t.Members {
			if !member.Running() || member.isStopped() {
				continue
			}
			asked, cancel := context.WithTimeout(ctx, time.Second)
			status, err := member.Status(asked)
			cancel()
			if err == nil {
				ids[status.Header.GetMemberId()] = member
				leaders[status.Leader]++
			}
		}
		for id, votes := range leaders {
			if leader := ids[id]; leader != nil && 2*votes > size {
				return leader, nil
			}
		}
		if err := wait(ctx); err != nil {
			return nil, fmt.Errorf("no member leads: %w", err)
		}
	}
}

// Follower returns a member that runs and is not the leader.
func (t *Trio) Follower(ctx context.Context) (*Member, error) {
	leader, err := t.Leader(ctx)
	if err != nil {
		return nil, err
	}
	for _, member := range t.Members {
		if member != leader && member.Running() && !member.isStopped() {
			return member, nil
		}
	}
	return nil, errors.New("no follower runs")
}

// wait waits a moment.
func wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
		return nil
	}
}

// Lead makes the member the leader.
func (m *Member) Lead(ctx context.Context) error {
	leader, err := m.trio.Leader(ctx)
	if err != nil || leader == m {
		return err
	}
	client, err := leader.Client()
	if err != nil {
		return err
	}
	status, err := m.Status(ctx)
	if err != nil {
		return err
	}
	_, err = client.MoveLeader(ctx, status.Header.GetMemberId())
	return err
}

// Compact compacts the history before a revision at all members, physically. A revision of 0 means the newest.
func (t *Trio) Compact(ctx context.Context, revision int64) error {
	leader, err := t.Leader(ctx)
	if err != nil {
		return err
	}
	client, err := leader.Client()
	if err != nil {
		return err
	}
	if revision == 0 {
		status, err := leader.Status(ctx)
		if err != nil {
			return err
		}
		revision = status.Header.GetRevision()
	}
	_, err = client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	return err
}

// Defragment gives the space that compaction has freed back to the file system. The member does not answer meanwhile.
func (m *Member) Defragment(ctx context.Context) error {
	client, err := m.Client()
	if err != nil {
		return err
	}
	_, err = client.Defragment(ctx, client.Endpoints()[0])
	return err
}

// CopyData copies the data folder to a folder that must not exist. A member that runs stands still meanwhile; the
// copy is then what kill -9 would have left.
func (m *Member) CopyData(target string) error {
	if m.Running() && !m.isStopped() {
		if err := m.Stop(); err != nil {
			return err
		}
		return errors.Join(os.CopyFS(target, os.DirFS(m.data())), m.Continue())
	}
	return os.CopyFS(target, os.DirFS(m.data()))
}

// PutData replaces the data folder of a member that does not run by a copy.
func (m *Member) PutData(source string) error {
	if m.Running() {
		return fmt.Errorf("%s: runs", m.name)
	}
	if err := os.RemoveAll(m.data()); err != nil {
		return err
	}
	return os.CopyFS(m.data(), os.DirFS(source))
}

func (m *Member) data() string { return filepath.Join(m.folder, "data") }

// CopyData copies the data folders of all members to folders in a folder that CopyData makes. All members stand still
// meanwhile, so the copies are of one moment.
func (t *Trio) CopyData(target string) error {
	var errs []error
	for _, member := range t.Members {
		if member.Running() && !member.isStopped() {
			if err := member.Stop(); err != nil {
				errs = append(errs, err)
				continue
			}
			defer member.Continue()
		}
	}
	for _, member := range t.Members {
		errs = append(errs, member.CopyData(filepath.Join(target, member.name)))
	}
	return errors.Join(errs...)
}

// PutData kills all members, puts the copies of CopyData in the place of their data, and starts them again: as whoever
// restores a copy of the whole cluster does. It waits until all serve.
func (t *Trio) PutData(ctx context.Context, source string) error {
	for _, member := range t.Members {
		if err := member.Kill(); err != nil {
			return err
		}
	}
	for _, member := range t.Members {
		if err := errors.Join(member.PutData(filepath.Join(source, member.name)), member.Start()); err != nil {
			return err
		}
	}
	for _, member := range t.Members {
		if err := member.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (m *Member) close() error {
	var err error
	if m.client != nil {
		err = m.client.Close()
	}
	return errors.Join(err, m.Kill())
}
