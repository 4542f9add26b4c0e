package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
)

const (
	// etcdOpenTimeout bounds how long the start waits for a cluster that does not answer.
	etcdOpenTimeout = 5 * time.Second
	// etcdDialTimeout bounds one attempt to connect, and etcdRetryWait the wait between two.
	etcdDialTimeout = 2 * time.Second
	etcdRetryWait   = time.Second
	// etcdKeepalive is how often a connection on which nothing comes is tried, and
	// etcdKeepaliveTimeout how long its answer may take. grpc allows no shorter interval.
	etcdKeepalive        = 10 * time.Second
	etcdKeepaliveTimeout = 3 * time.Second
)

// etcdBackend is a store in etcd with the connections that it uses.
type etcdBackend struct {
	*etcdstore.Store
	members []*clientv3.Client
}

// openEtcd opens the store in etcd. The data folder is made, because sockets are in it.
func openEtcd(ctx context.Context, settings config.Settings, log *slog.Logger) (_ storage.Store, err error) {
	if err := makeFolder(settings.Data); err != nil {
		return nil, fmt.Errorf("making the data folder: %w", err)
	}
	cluster, err := newEtcdCluster(settings, log)
	if err != nil {
		return nil, err
	}
	backend := &etcdBackend{}
	defer func() {
		if err != nil {
			err = errors.Join(err, backend.disconnect())
		}
	}()
	// 1. Connect, and ask each member how it is.
	state, err := backend.connect(ctx, cluster)
	if err != nil {
		return nil, err
	}
	state.warn(ctx, log)
	// 2. Open the store. Members that did not answer are asked again whenever they are needed.
	create := etcdstore.CreateNever
	switch {
	case settings.Init:
		create = etcdstore.CreateNew
	case settings.Dev:
		create = etcdstore.CreateIfAbsent
	}
	backend.Store, err = etcdstore.New(ctx, etcdstore.Config{
		Members: backend.members, Connect: cluster.connect, Prefix: settings.EtcdPrefix, Timeout: etcdOpenTimeout, Create: create, Log: log,
	})
	switch {
	case errors.Is(err, storage.ErrAbsent):
		return nil, fmt.Errorf("etcd: %w; --etcd-prefix names where a store begins, and --init makes a new, empty one there", err)
	case errors.Is(err, storage.ErrPresent):
		return nil, fmt.Errorf("etcd: %w; start without --init", err)
	case err != nil:
		return nil, fmt.Errorf("etcd: %w%s", err, state.hint(err))
	}
	return backend, nil
}

// CheckEtcd examines the store in etcd that the settings name, and writes its findings to out. Servers may use
// it meanwhile. CheckEtcd returns an error if the store cannot be examined or is not sound.
func CheckEtcd(ctx context.Context, settings config.Settings, out io.Writer) (err error) {
	cluster, err := newEtcdCluster(settings, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	backend := &etcdBackend{}
	defer func() { err = errors.Join(err, backend.disconnect()) }()
	state, err := backend.connect(ctx, cluster)
	if err != nil {
		return err
	}
	report, err := etcdstore.Check(ctx, etcdstore.Config{Members: backend.members, Connect: cluster.connect, Prefix: settings.EtcdPrefix})
	if err != nil {
		return fmt.Errorf("etcd: %w%s", err, state.hint(err))
	}
	_, err = fmt.Fprintf(out, "epoch     %s\nrevision  %d\n", report.Epoch, report.Position.Revision)
	for _, problem := range report.Problems {
		_, more := fmt.Fprintln(out, "problem:", problem)
		err = errors.Join(err, more)
	}
	if err == nil && len(report.Problems) > 0 {
		return fmt.Errorf("the store under %s is not sound", settings.EtcdPrefix)
	}
	return err
}

// connect connects to all members, and asks each how it is. Only this tells why etcd cannot be used, and
// which member it is.
func (b *etcdBackend) connect(ctx context.Context, cluster *etcdCluster) (state clusterState, err error) {
	if b.members, err = cluster.connectAll(); err != nil {
		return nil, err
	}
	state = askMembers(ctx, cluster.endpoints, b.members)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return state, state.unusable()
}

// Close implements io.Closer.
func (b *etcdBackend) Close() error { return errors.Join(b.Store.Close(), b.disconnect()) }

func (b *etcdBackend) disconnect() error {
	var failed []error
	for _, member := range b.members {
		failed = append(failed, member.Close())
	}
	return errors.Join(failed...)
}

// etcdCluster makes clients of the members of a cluster, all in the same way.
type etcdCluster struct {
	endpoints      []config.Address
	secure         *etcdTLS // nil for plaintext
	user, password string
}

// newEtcdCluster reads the files that the settings name. The errors name the setting and the file.
func newEtcdCluster(settings config.Settings, log *slog.Logger) (*etcdCluster, error) {
	cluster := &etcdCluster{endpoints: settings.EtcdEndpoints, user: settings.EtcdUser}
	if settings.EtcdCA != "" {
		secure, err := newEtcdTLS(settings, log)
		if err != nil {
			return nil, fmt.Errorf("certificates for etcd: %w", err)
		}
		cluster.secure = secure
	}
	if settings.EtcdPasswordFile != "" {
		password, err := readPassword(settings.EtcdPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("etcd-password-file: %w", err)
		}
		cluster.password = password
	}
	return cluster, nil
}

// connectAll returns a client for each member. It waits for none of them.
func (c *etcdCluster) connectAll() (members []*clientv3.Client, err error) {
	for index := range c.endpoints {
		member, err := c.connect(index)
		if err != nil {
			return members, err
		}
		members = append(members, member)
	}
	return members, nil
}

// connect returns a client of one member. It does not wait for the member, so a member that is down does
// not hold up a start.
func (c *etcdCluster) connect(index int) (*clientv3.Client, error) {
	endpoint := c.endpoints[index]
	options := clientv3.Config{
		Endpoints: []string{endpoint.String()},
		// etcd's client would write to standard error by itself. What fails is in the errors of calls.
		Logger: zap.NewNop(),
		// The store asks another member instead.
		MaxUnaryRetries:      1,
		DialKeepAliveTime:    etcdKeepalive,
		DialKeepAliveTimeout: etcdKeepaliveTimeout,
		PermitWithoutStream:  true,
		MaxCallRecvMsgSize:   math.MaxInt32, // a page or a change may be larger than grpc's default
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: etcdRetryWait},
				MinConnectTimeout: etcdDialTimeout,
			}),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: etcdKeepalive, Timeout: etcdKeepaliveTimeout, PermitWithoutStream: true}),
		},
	}
	if c.secure != nil && endpoint.Network == "tcp" {
		options.Endpoints = []string{"https://" + endpoint.Target}
		options.TLS = c.secure.config(endpoint.Target)
	}
	if c.user != "" {
		// With a user, the client would ask the member for a token here, and fail if the member is down. So it
		// begins with a token that no etcd gives, and asks for one when that is refused. The attempt after that needs one more try.
		options.Token, options.MaxUnaryRetries = "none", 2
	}
	member, err := clientv3.New(options)
	if err != nil {
		return nil, fmt.Errorf("etcd at %s: %w", endpoint, err)
	}
	if c.user != "" {
		member.Token, member.Username, member.Password = "", c.user, c.password
	}
	return member, nil
}
