// Package keyclient is the typed client of keysvc: for services that validate keys, as a
// keyauth.Validator, and for those that manage them.
package keyclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// DefaultPort is the port of a keysvc unless told otherwise.
const DefaultPort = "7480"

// AddressVariable names the environment variable that says where keysvc is.
const AddressVariable = "KEYSVC_ADDR"

// Config says how a Client talks to keysvc. The zero Config needs TransportCredentials or
// AllowPlaintext added.
type Config struct {
	// TransportCredentials secure the connection; keysvc asks for TLS 1.3 with a client
	// certificate wherever other machines can reach it.
	TransportCredentials credentials.TransportCredentials
	// AllowPlaintext connects without TLS, which is refused unless the target is a loopback
	// address, the name localhost or a unix socket.
	AllowPlaintext bool
	// ValidationTimeout bounds one validation, its retries included. Default: 1 s.
	ValidationTimeout time.Duration
	// Timeout bounds every other call whose context has no deadline. Default: 10 s.
	Timeout time.Duration
	// UserAgent is put before grpc's own, for keysvc's log.
	UserAgent string
	// DialOptions are added to the Client's own and win over them.
	DialOptions []grpc.DialOption
}

// Client is a connection to keysvc. It is a keyauth.Validator. Its methods and clients may
// be used from many goroutines.
type Client struct {
	// Keys, Members, Policies and Validations are the generated clients. Calls that only
	// read are repeated if keysvc is UNAVAILABLE; changes never are, as they may have taken
	// effect: repeat a CreateKey or RotateKey with the same request_id.
	Keys        keysvcv1.KeyServiceClient
	Members     keysvcv1.MemberServiceClient
	Policies    keysvcv1.PolicyServiceClient
	Validations keysvcv1.ValidationServiceClient

	conn    *grpc.ClientConn
	timeout time.Duration
}

// New returns a Client of the keysvc at a target: "host:port", "unix:///path", or any
// other target of grpc, such as "dns:///keysvc.internal:7480", over whose addresses calls
// are spread. It does not wait for a connection.
//
// It is an error if the target is empty, if neither or both of TransportCredentials and
// AllowPlaintext are given, and if plaintext would leave the machine.
func New(target string, config Config) (*Client, error) {
	if target == "" {
		return nil, fmt.Errorf("keyclient: target: is empty; host:port or unix:///path is required, as in %s", AddressVariable)
	}
	secured := config.TransportCredentials != nil
	switch {
	case secured && config.AllowPlaintext:
		return nil, errors.New("keyclient: AllowPlaintext: is set beside TransportCredentials; exactly one of them must be")
	case !secured && !config.AllowPlaintext:
		return nil, errors.New("keyclient: TransportCredentials: are missing; to connect without TLS on this machine, set AllowPlaintext")
	case !secured && !isLocal(target):
		return nil, fmt.Errorf("keyclient: AllowPlaintext: %s can be on another machine; allowed are loopback addresses, localhost and unix sockets", target)
	}
	transport := config.TransportCredentials
	if !secured {
		transport = insecure.NewCredentials()
	}
	if config.ValidationTimeout <= 0 {
		config.ValidationTimeout = time.Second
	}
	if config.Timeout <= 0 {
		config.Timeout = 10 * time.Second
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
		// The server lets clients ping no more often than every 10 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithChainUnaryInterceptor(deadline(config.Timeout)),
		grpc.WithUserAgent(strings.TrimSpace(config.UserAgent + " keysvc-go")),
	}
	conn, err := grpc.NewClient(target, append(options, config.DialOptions...)...)
	if err != nil {
		return nil, fmt.Errorf("keyclient: target: %w", err)
	}
	return &Client{
		Keys:        keysvcv1.NewKeyServiceClient(conn),
		Members:     keysvcv1.NewMemberServiceClient(conn),
		Policies:    keysvcv1.NewPolicyServiceClient(conn),
		Validations: keysvcv1.NewValidationServiceClient(conn),
		conn:        conn,
		timeout:     config.ValidationTimeout,
	}, nil
}

// FromEnvironment is New with the target that the environment variable KEYSVC_ADDR names;
// 127.0.0.1:7480 if it is not set.
func FromEnvironment(config Config) (*Client, error) {
	target := os.Getenv(AddressVariable)
	if target == "" {
		target = net.JoinHostPort("127.0.0.1", DefaultPort)
	}
	return New(target, config)
}

// Conn returns the connection, for clients of other services that a keysvc has, such as
// grpc.health.v1.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

// Close ends the connection; calls under way fail.
func (c *Client) Close() error { return c.conn.Close() }

// serviceConfig spreads calls over all addresses, and repeats those that change nothing.
const serviceConfig = `{
	"loadBalancingConfig": [{"round_robin": {}}],
	"methodConfig": [{
		"name": [
			{"service": "keysvc.v1.KeyService", "method": "GetKey"},
			{"service": "keysvc.v1.KeyService", "method": "ListKeys"},
			{"service": "keysvc.v1.MemberService", "method": "GetMember"},
			{"service": "keysvc.v1.MemberService", "method": "ListMembers"},
			{"service": "keysvc.v1.PolicyService", "method": "GetPolicy"},
			{"service": "keysvc.v1.ValidationService", "method": "ValidateKey"},
			{"service": "keysvc.v1.ValidationService", "method": "BatchValidateKeys"}
		],
		"retryPolicy": {
			"maxAttempts": 4,
			"initialBackoff": "0.025s",
			"maxBackoff": "0.5s",
			"backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE"]
		}
	}],
	"retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1}
}`

// deadline gives calls one that have none.
func deadline(timeout time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		if _, has := ctx.Deadline(); !has {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		return invoke(ctx, method, request, reply, conn, options...)
	}
}

// isLocal says whether a target cannot leave this machine. The name localhost is taken at
// its word.
func isLocal(target string) bool {
	if path, ok := strings.CutPrefix(target, "unix://"); ok {
		return filepath.IsAbs(path)
	}
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return true
	}
	target = strings.TrimPrefix(target, "dns:///")
	target = strings.TrimPrefix(target, "passthrough:///")
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}

// notWithin is the status when this service's own deadline for a validation has passed.
func notWithin(timeout time.Duration) error {
	return status.Errorf(codes.Unavailable, "keysvc did not answer within %s", timeout)
}
