package etcdstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/scribe-mail/keysvc/internal/storage"
)

const (
	// dialTimeout bounds one attempt to connect, and dialWait the wait between two.
	dialTimeout = 2 * time.Second
	dialWait    = time.Second
	// keepaliveTime is how often a connection on which nothing comes is tried, and keepaliveTimeout how long
	// its answer may take. grpc allows no shorter interval.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
)

// ClusterConfig is how the members of a cluster are reached.
type ClusterConfig struct {
	// Endpoints are the addresses of the members, each host:port or unix:///path. Required.
	Endpoints []string
	// TLS returns the configuration for a member at host:port. Nil means plaintext. Unix sockets are plaintext in any case.
	TLS func(target string) *tls.Config
	// User and Password are those of a user of etcd; empty for no authentication by password.
	User, Password string
}

// Cluster has a client for each member of a cluster, and what the members said of themselves.
type Cluster struct {
	config  ClusterConfig
	members []*clientv3.Client
	state   clusterState
}

// Connect connects to all members, and asks each how it is: only this tells why etcd cannot be used, and
// which member it is. A member that is down is no error as long as the others have a quorum. An error is one
// line that says what to do, by the names of the settings of keysvc serve, or the context's.
func Connect(ctx context.Context, config ClusterConfig) (*Cluster, error) {
	cluster := &Cluster{config: config}
	for index := range config.Endpoints {
		member, err := cluster.Dial(index)
		if err != nil {
			return nil, errors.Join(err, cluster.Close())
		}
		cluster.members = append(cluster.members, member)
	}
	cluster.state = askMembers(ctx, config.Endpoints, cluster.members)
	err := ctx.Err()
	if err == nil {
		err = cluster.state.unusable()
	}
	if err != nil {
		return nil, errors.Join(err, cluster.Close())
	}
	return cluster, nil
}

// Members returns the clients, in the order of the endpoints, for Config.Members.
func (c *Cluster) Members() []*clientv3.Client { return c.members }

// Warn logs what does not keep the store from being opened: members that do not answer, and a quota that is used
// up.
func (c *Cluster) Warn(ctx context.Context, log *slog.Logger) { c.state.warn(ctx, log) }

// Explain returns an error of New or Check with what to do about it.
func (c *Cluster) Explain(ctx context.Context, err error) error {
	if errors.Is(err, storage.ErrUnavailable) && ctx.Err() == nil {
		// The members may have known a leader that was gone by then.
		if again := askMembers(ctx, c.config.Endpoints, c.members).unusable(); again != nil {
			return again
		}
	}
	return fmt.Errorf("etcd: %w%s", err, c.state.hint(err))
}

// Close closes the clients.
func (c *Cluster) Close() error {
	var failed []error
	for _, member := range c.members {
		failed = append(failed, member.Close())
	}
	return errors.Join(failed...)
}

// Dial returns one more client of a member, for Config.Connect. It does not wait for the member, so a member
// that is down does not hold up a start.
func (c *Cluster) Dial(index int) (*clientv3.Client, error) {
	endpoint := c.config.Endpoints[index]
	options := clientv3.Config{
		Endpoints: []string{endpoint},
		// etcd's client would write to standard error by itself. What fails is in the errors of calls.
		Logger: zap.NewNop(),
		// The store asks another member instead.
		MaxUnaryRetries:      1,
		DialKeepAliveTime:    keepaliveTime,
		DialKeepAliveTimeout: keepaliveTimeout,
		PermitWithoutStream:  true,
		MaxCallRecvMsgSize:   math.MaxInt32, // a page or a change may be larger than grpc's default
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: dialWait},
				MinConnectTimeout: dialTimeout,
			}),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		},
	}
	if c.config.TLS != nil && !strings.HasPrefix(endpoint, "unix:") {
		options.Endpoints = []string{"https://" + endpoint}
		options.TLS = c.config.TLS(endpoint)
	}
	if c.config.User != "" {
		// With a user, the client would ask the member for a token here, and fail if the member is down. So it
		// begins with a token that no etcd gives, and asks for one when that is refused. Then it needs one more try.
		options.Token, options.MaxUnaryRetries = "none", 2
	}
	member, err := clientv3.New(options)
	if err != nil {
		return nil, fmt.Errorf("etcd at %s: %w", endpoint, err)
	}
	if c.config.User != "" {
		member.Token, member.Username, member.Password = "", c.config.User, c.config.Password
	}
	return member, nil
}
