// Package keyclient is the client of keysvc: a keyauth.Validator for services that check keys,
// and typed gRPC clients for services that manage them.
package keyclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/scribe-mail/keysvc/clients/internal/nearcache"
	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// DefaultPort is the port of a target that names none.
const DefaultPort = "7480"

// AddressVariable is the environment variable that holds the target for FromEnvironment.
const AddressVariable = "KEYSVC_ADDR"

const (
	defaultValidationTimeout = time.Second
	defaultTimeout           = 10 * time.Second
	maxResponseBytes         = 64 << 20 // fits a page of 1,000 keys of the largest size
)

// Config is how a Client talks to keysvc. Exactly one of TransportCredentials and
// AllowPlaintext is required.
type Config struct {
	// TransportCredentials secure the connection to a keysvc on another machine. This version
	// of keysvc serves its own machine only; for others, put a proxy with TLS before it.
	TransportCredentials credentials.TransportCredentials
	// AllowPlaintext connects without TLS. The target must be a loopback address, the name
	// localhost, or a unix socket.
	AllowPlaintext bool
	// ValidationTimeout bounds Validate, whatever the context's deadline, and those calls of
	// Validations whose context has no deadline. Retries are included. Default: 1 s.
	ValidationTimeout time.Duration
	// Timeout bounds every other call whose context has no deadline. Retries are included.
	// Default: 10 s.
	Timeout time.Duration
	// UserAgent names the service in the user-agent header, before "keysvc-go" and grpc's own.
	// It consists of visible ASCII characters and spaces.
	UserAgent string
	// NearCache makes Validate answer from memory where that is safe: a revoked key is not
	// accepted for longer than the server's staleness bound, 1 s by default, and not at all
	// after AwaitRevision. Streams that a keyauth.Guard protects then end when their key does.
	// The near-cache holds one session with keysvc for the Client's life, so share the Client.
	NearCache bool
	// NearCacheEntries is the max number of tokens in memory. NearCacheBytes is the approximate
	// max number of bytes; one token takes some 600. Defaults: 100,000 tokens, and 64 MiB.
	NearCacheEntries, NearCacheBytes int
	// NearCacheHooks are called when something happens in the near-cache, for metrics.
	NearCacheHooks NearCacheHooks
	// Now is the clock of the near-cache, for tests. Default: time.Now.
	Now func() time.Time
	// Log receives how sessions of the near-cache end, at level debug. Default: nothing is
	// logged.
	Log *slog.Logger
	// DialOptions are added after the Client's own, and override them. They cannot replace the
	// transport credentials.
	DialOptions []grpc.DialOption
}

// Client is a connection to keysvc, and a keyauth.Validator. Its methods and clients may be
// used from many goroutines.
//
// While there is no connection, calls fail with codes.Unavailable rather than wait for one. The
// Client tries to connect again after 100 ms at first, and every 5 s later.
type Client struct {
	// Keys, Members, Policies, Validations and Sync are the generated clients. A call that only
	// reads is repeated if keysvc is UNAVAILABLE: up to 4 attempts within some 200 ms. A change
	// is never repeated, because it may have taken effect: repeat a CreateKey or RotateKey
	// yourself, with the same request_id.
	Keys        keysvcv1.KeyServiceClient
	Members     keysvcv1.MemberServiceClient
	Policies    keysvcv1.PolicyServiceClient
	Validations keysvcv1.ValidationServiceClient
	Sync        keysvcv1.SyncServiceClient

	conn *grpc.ClientConn
	// validator answers Validate.
	validator keyauth.Validator
	// cache is the near-cache, which is then the validator; nil without a near-cache.
	cache *nearcache.Cache
}

var _ keyauth.Watcher = (*Client)(nil)

// New returns a Client of the keysvc at a target. It does not wait for a connection. A target
// is "host", "host:port", "unix:///path", or any other target of grpc, such as
// "dns:///keysvc.internal". Calls are spread over all addresses of the target. The default port
// is DefaultPort.
//
// New returns an error if the target is empty or malformed, if neither or both of
// TransportCredentials and AllowPlaintext are set, if plaintext could leave the machine, or if
// a timeout is negative.
func New(target string, config Config) (*Client, error) {
	if target == "" {
		return nil, fmt.Errorf("keyclient: target: is empty; host:port or unix:///path is required, as in %s", AddressVariable)
	}
	if strings.HasPrefix(target, "http://") || strings.HasPrefix(target, "https://") {
		return nil, fmt.Errorf("keyclient: target: %s is a URL; host:port or unix:///path is required", target)
	}
	target, local := parseTarget(target)
	secured := config.TransportCredentials != nil
	switch {
	case secured && config.AllowPlaintext:
		return nil, errors.New("keyclient: AllowPlaintext: is set beside TransportCredentials; exactly one of them must be")
	case !secured && !config.AllowPlaintext:
		return nil, errors.New("keyclient: TransportCredentials: are missing; to connect without TLS on this machine, set AllowPlaintext")
	case !secured && !local:
		return nil, fmt.Errorf("keyclient: AllowPlaintext: %s can be on another machine; allowed are loopback addresses, localhost and unix:///path; set TransportCredentials for others", target)
	case config.ValidationTimeout < 0:
		return nil, fmt.Errorf("keyclient: ValidationTimeout: is %s; allowed are 0 for %s, and more", config.ValidationTimeout, defaultValidationTimeout)
	case config.Timeout < 0:
		return nil, fmt.Errorf("keyclient: Timeout: is %s; allowed are 0 for %s, and more", config.Timeout, defaultTimeout)
	case strings.ContainsFunc(config.UserAgent, func(char rune) bool { return char < ' ' || char > '~' }):
		return nil, errors.New("keyclient: UserAgent: has a character that is not allowed; allowed are visible ASCII and spaces")
	}
	transport := config.TransportCredentials
	if !secured {
		transport = insecure.NewCredentials()
	}
	validationTimeout := cmp.Or(config.ValidationTimeout, defaultValidationTimeout)
	options := []grpc.DialOption{
		grpc.WithDefaultServiceConfig(serviceConfig),
		// The server refuses pings more often than every 10 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)),
		grpc.WithChainUnaryInterceptor(deadline(validationTimeout, cmp.Or(config.Timeout, defaultTimeout))),
		grpc.WithUserAgent(strings.TrimSpace(config.UserAgent + " keysvc-go")),
	}
	options = append(options, config.DialOptions...)
	conn, err := grpc.NewClient(target, append(options, grpc.WithTransportCredentials(transport))...)
	if err != nil {
		return nil, fmt.Errorf("keyclient: target: %w", err)
	}
	validations := keysvcv1.NewValidationServiceClient(conn)
	client := &Client{
		Keys:        keysvcv1.NewKeyServiceClient(conn),
		Members:     keysvcv1.NewMemberServiceClient(conn),
		Policies:    keysvcv1.NewPolicyServiceClient(conn),
		Validations: validations,
		Sync:        keysvcv1.NewSyncServiceClient(conn),
		conn:        conn,
		validator:   &remote{validations: validations, timeout: validationTimeout},
	}
	if config.NearCache {
		client.cache = nearcache.New(nearcache.Config{
			Sync: client.Sync, Validations: validations, WithoutCall: withoutCall, Request: request, Read: answer,
			MaxEntries: config.NearCacheEntries, MaxBytes: config.NearCacheBytes, Timeout: validationTimeout, Now: config.Now, Log: config.Log, Hooks: nearcache.Hooks(config.NearCacheHooks),
		})
		client.validator = client.cache
	}
	return client, nil
}

// FromEnvironment is New with the target in the environment variable KEYSVC_ADDR, or
// 127.0.0.1:7480 if the variable is not set.
func FromEnvironment(config Config) (*Client, error) {
	target := os.Getenv(AddressVariable)
	if target == "" {
		target = net.JoinHostPort("127.0.0.1", DefaultPort)
	}
	return New(target, config)
}

// Validate implements keyauth.Validator. Text that cannot be a token is refused without a call.
// Errors: the context's, if the context ended; codes.Unavailable if keysvc did not answer
// within the ValidationTimeout or was not reached; codes.Internal if the question or the answer
// makes no sense; otherwise keysvc's status.
func (c *Client) Validate(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	return c.validator.Validate(ctx, question)
}

// Conn returns the connection, for clients of other services of keysvc, such as grpc.health.v1.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

// Watches reports whether Watch notices changes: it does with a near-cache.
func (c *Client) Watches() bool { return c.cache != nil }

// Watch implements keyauth.Watcher. Without a near-cache the Client is not told of changes:
// Watch asks once, and then waits for the context to end.
func (c *Client) Watch(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	if c.cache != nil {
		return c.cache.Watch(ctx, question)
	}
	answer, err := c.validator.Validate(ctx, question)
	if err != nil || answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
		return answer, err
	}
	<-ctx.Done()
	return keyauth.Answer{}, ctx.Err()
}

// Close ends the connection; calls in progress fail. A near-cache first stops answering, and
// then tells keysvc, which takes a second at most.
func (c *Client) Close() error {
	if c.cache != nil {
		c.cache.Close()
	}
	return c.conn.Close()
}

// serviceConfig spreads calls over all addresses, and repeats calls that change nothing.
const serviceConfig = `{
	"loadBalancingConfig": [{"round_robin": {}}],
	"methodConfig": [{
		"name": [
			{"service": "keysvc.v1.KeyService", "method": "GetKey"},
			{"service": "keysvc.v1.KeyService", "method": "ListKeys"},
			{"service": "keysvc.v1.MemberService", "method": "GetMember"},
			{"service": "keysvc.v1.MemberService", "method": "ListMembers"},
			{"service": "keysvc.v1.PolicyService", "method": "GetPolicy"},
			{"service": "keysvc.v1.SyncService", "method": "AwaitRevision"},
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

// deadline sets the deadline of calls without one.
func deadline(validation, other time.Duration) grpc.UnaryClientInterceptor {
	validations := "/" + keysvcv1.ValidationService_ServiceDesc.ServiceName + "/"
	return func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		if _, has := ctx.Deadline(); has {
			return invoke(ctx, method, request, reply, conn, options...)
		}
		timeout := other
		if strings.HasPrefix(method, validations) {
			timeout = validation
		}
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return invoke(ctx, method, request, reply, conn, options...)
	}
}
