// Package keyclient is the client of keysvc: a keyauth.Validator for services that check keys,
// and typed gRPC clients for services that manage them.
package keyclient

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/scribe-mail/keysvc/clients/internal/merge"
	"github.com/scribe-mail/keysvc/clients/internal/nearcache"
	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/spread"
)

// DefaultPort is the port of a target that names none.
const DefaultPort = "7480"

const (
	defaultValidationTimeout = time.Second
	defaultTimeout           = 10 * time.Second
	maxResponseBytes         = 64 << 20 // fits a page of 1,000 keys of the largest size
)

// Config is how a Client talks to keysvc. For a unix socket it needs to say nothing. For any
// other target, exactly one of TLS, TransportCredentials and AllowPlaintext is required.
type Config struct {
	// TLS secures the connection with certificates from files.
	TLS *TLS
	// TransportCredentials secure the connection in another way, for example with certificates
	// of the SPIFFE Workload API.
	TransportCredentials credentials.TransportCredentials
	// AllowPlaintext connects without TLS. The target must be a loopback address, the name
	// localhost, or a unix socket.
	AllowPlaintext bool
	// SocketOwner is the user, by name or number, whom a unix socket and the process behind it
	// must belong to; nothing is sent to any other. Default: this process's user or root.
	SocketOwner string
	// CallerTokenFile is a file with the token that tells keysvc who calls: a caller token, or
	// the projected token of a Kubernetes service account. It is read again when it changes, and
	// is never sent over plaintext TCP.
	CallerTokenFile string
	// ValidationTimeout bounds Validate, whatever the context's deadline, and those calls of
	// Validations whose context has no deadline. Retries are included. Default: 1 s.
	ValidationTimeout time.Duration
	// Timeout bounds every other call whose context has no deadline. Retries are included.
	// Default: 10 s.
	Timeout time.Duration
	// UserAgent names the service in the user-agent header, before "keysvc-go" and grpc's own.
	// It consists of visible ASCII characters and spaces.
	UserAgent string
	// SendTokens sends keysvc the tokens that were presented, as earlier versions did. By default
	// their digests are sent, so that keysvc sees no token; a server that does not know digests is
	// then codes.Unavailable. Set it only until such a server is upgraded.
	SendTokens bool
	// SeparateCalls makes a call for each question of Validate. By default questions that are asked
	// while calls are under way go together in the next call, so that many callers get several
	// times as many answers. Nothing waits if less is asked. A merged call has no values and no
	// outgoing metadata of its callers' contexts, such as a trace. The calls of Validations are
	// never merged.
	SeparateCalls bool
	// WithoutNearCache makes Validate ask keysvc each time. By default it answers from memory where
	// that is safe: a revoked key is not accepted for longer than the server's staleness bound, 1 s
	// by default, and not at all after AwaitRevision. Streams that a keyauth.Guard protects then end
	// when their key does, or if keysvc cannot be reached for that long.
	//
	// The near-cache begins with the first call of Validate or Watch, and holds a session with keysvc
	// while it is used, so share the Client. A Client that only manages keys holds none. Set this
	// for a program that asks about each token once, such as a command; and in tests that revoke a
	// key and expect the very next request to be refused.
	WithoutNearCache bool
	// NearCacheEntries is the max number of tokens in memory. NearCacheBytes is the approximate
	// max number of bytes; one token takes some 600. Defaults: 100,000 tokens, and 64 MiB.
	NearCacheEntries, NearCacheBytes int
	// NearCacheHooks are called when something happens in the near-cache, for metrics.
	NearCacheHooks NearCacheHooks
	// Now is the clock of the near-cache and of certificates, for tests. Default: time.Now.
	Now func() time.Time
	// Log receives why keysvc cannot be reached, and which file cannot be used, at level warn
	// and at most once in ten seconds each; and how sessions of the near-cache end, at level
	// debug. Default: nothing is logged.
	Log *slog.Logger
	// DialOptions are added after the Client's own, and override them. They cannot replace the
	// transport credentials.
	DialOptions []grpc.DialOption
}

// TLS is how a connection is secured: with TLS 1.3, and nothing older. The files are read for
// each new connection, so that a new certificate takes effect without a restart. If a file has
// become unusable, its last good content stays in use.
type TLS struct {
	// CAFile has the certificates, in PEM, of the authorities that may issue the server's. If it
	// is empty, the system's authorities are trusted; with ServerSPIFFEID it is required.
	CAFile string
	// CertFile and KeyFile have the client's certificate chain and its key, in PEM. Either both
	// are set or neither is.
	CertFile, KeyFile string
	// ServerName is the DNS name in the server's certificate. Default: the host of the target.
	ServerName string
	// ServerSPIFFEID is the SPIFFE id of the server, as in spiffe://example.org/keysvc. If it is
	// set, the server's certificate must have this URI and no other; its names do not count.
	ServerSPIFFEID string
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
	wire      *wire
	merger    *merge.Merger
	// cache is the near-cache, which is then the validator; nil without a near-cache.
	cache *nearcache.Cache
}

var _ keyauth.Watcher = (*Client)(nil)

// New returns a Client of the keysvc at a target. It does not wait for a connection. A target
// is "host", "host:port", "unix:///path", or any other target of grpc, such as
// "dns:///keysvc.internal". Calls are spread over all addresses of the target. The default port
// is DefaultPort.
//
// New returns an error if the target is empty or malformed, if a field of the Config is wrong,
// if a file cannot be used, or if plaintext or a token could leave the machine unprotected.
func New(target string, config Config) (*Client, error) {
	if target == "" {
		return nil, fmt.Errorf("keyclient: target: is empty; host:port or unix:///path is required, as in %s", AddressVariable)
	}
	if strings.HasPrefix(target, "http://") || strings.HasPrefix(target, "https://") {
		return nil, fmt.Errorf("keyclient: target: %s is a URL; host:port or unix:///path is required", target)
	}
	target, local, several, err := parseTargets(target)
	if err != nil {
		return nil, fmt.Errorf("keyclient: target: %w", err)
	}
	if err := config.check(target, local); err != nil {
		return nil, err
	}
	watched := &watch{target: target, log: config.Log, now: config.clock()}
	secured, err := config.secured(local, watched)
	if err != nil {
		return nil, err
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
		grpc.WithResolvers(spread.Resolver()),
		grpc.WithChainUnaryInterceptor(watched.intercept, deadline(validationTimeout, cmp.Or(config.Timeout, defaultTimeout))),
		grpc.WithChainStreamInterceptor(watched.interceptStream),
		grpc.WithUserAgent(strings.TrimSpace(config.UserAgent + " keysvc-go")),
	}
	if several {
		options = append(options, grpc.WithChainUnaryInterceptor(spread.Hedge(hedgeAfter)))
	}
	options = append(options, secured.before...)
	options = append(options, config.DialOptions...)
	conn, err := grpc.NewClient(target, append(options, secured.credentials)...)
	if err != nil {
		return nil, fmt.Errorf("keyclient: target: %w", err)
	}
	validations, wire := keysvcv1.NewValidationServiceClient(conn), &wire{tokens: config.SendTokens}
	merger := merge.New(merge.Config{Validations: validations, Timeout: validationTimeout, Separate: config.SeparateCalls})
	client := &Client{
		Keys:        keysvcv1.NewKeyServiceClient(conn),
		Members:     keysvcv1.NewMemberServiceClient(conn),
		Policies:    keysvcv1.NewPolicyServiceClient(conn),
		Validations: validations,
		Sync:        keysvcv1.NewSyncServiceClient(conn),
		conn:        conn,
		merger:      merger,
		validator:   &remote{merger: merger, wire: wire},
		wire:        wire,
	}
	if !config.WithoutNearCache {
		client.cache = nearcache.New(nearcache.Config{
			Sync: client.Sync, Ask: merger.Ask, WithoutCall: wire.withoutCall, Request: wire.request, Read: wire.answer,
			MaxEntries: config.NearCacheEntries, MaxBytes: config.NearCacheBytes, Timeout: validationTimeout, Now: config.Now, Log: config.Log, Hooks: nearcache.Hooks(config.NearCacheHooks),
		})
		client.validator = client.cache
	}
	return client, nil
}

// Validate implements keyauth.Validator. Text that cannot be a token is refused without a call.
// Errors: the context's, if the context ended; codes.Unavailable if keysvc did not answer
// within the ValidationTimeout or was not reached; codes.Internal if the question or the answer
// makes no sense; otherwise keysvc's status.
func (c *Client) Validate(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	answer, err := c.validator.Validate(ctx, question)
	return answer, merge.HideToken(err, question.Token)
}

// MalformedTokens returns how many texts were refused without a call since New, because they have
// "_ksk1_" in them and are not tokens: cut, mistyped, or made up. keysvc does not hear of them. The count is for
// metrics.
func (c *Client) MalformedTokens() int64 { return c.wire.malformed.Load() }

// Merged returns in how many calls several questions went together since New, and how many questions
// went so. The counts are for metrics.
func (c *Client) Merged() (calls, questions int64) {
	counts := c.merger.Counts()
	return counts.Batches, counts.Merged
}

// Conn returns the connection, for clients of other services of keysvc, such as grpc.health.v1.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

// Watches reports whether Watch notices changes: it does unless WithoutNearCache is set.
func (c *Client) Watches() bool { return c.cache != nil }

// Watch implements keyauth.Watcher. Without a near-cache the Client is not told of changes:
// Watch asks once, and then waits for the context to end.
func (c *Client) Watch(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	if c.cache != nil {
		answer, err := c.cache.Watch(ctx, question)
		return answer, merge.HideToken(err, question.Token)
	}
	answer, err := c.Validate(ctx, question)
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
	err := c.conn.Close()
	c.merger.Close()
	return err
}

// How long the first of several servers may take before another one is asked as well. A validation takes milliseconds, also
// while a member of etcd stands still. A page of keys may take longer.
const (
	hedgeValidation = 250 * time.Millisecond
	hedgeRead       = time.Second
)

// hedgeAfter returns after which time a call is sent to a second server as well; 0 for a call that changes
// something, or waits for something.
func hedgeAfter(method string) time.Duration {
	switch method {
	case keysvcv1.ValidationService_ValidateKey_FullMethodName, keysvcv1.ValidationService_BatchValidateKeys_FullMethodName:
		return hedgeValidation
	case keysvcv1.KeyService_GetKey_FullMethodName, keysvcv1.KeyService_ListKeys_FullMethodName, keysvcv1.KeyService_ListNotices_FullMethodName,
		keysvcv1.MemberService_GetMember_FullMethodName, keysvcv1.MemberService_ListMembers_FullMethodName,
		keysvcv1.MemberService_ListWorkspaces_FullMethodName, keysvcv1.PolicyService_GetPolicy_FullMethodName:
		return hedgeRead
	}
	return 0
}

// serviceConfig spreads calls over all addresses, and repeats calls that change nothing.
const serviceConfig = `{
	"loadBalancingConfig": [{"` + spread.Policy + `": {}}],
	"methodConfig": [{
		"name": [
			{"service": "keysvc.v1.KeyService", "method": "GetKey"},
			{"service": "keysvc.v1.KeyService", "method": "ListKeys"},
			{"service": "keysvc.v1.KeyService", "method": "ListNotices"},
			{"service": "keysvc.v1.MemberService", "method": "GetMember"},
			{"service": "keysvc.v1.MemberService", "method": "ListMembers"},
			{"service": "keysvc.v1.MemberService", "method": "ListWorkspaces"},
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
