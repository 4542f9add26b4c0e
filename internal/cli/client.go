package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/transport"
)

const (
	requestIDHeader  = "x-request-id"
	maxResponseBytes = 64 << 20 // room for a page of 1,000 keys of maximum size
)

// session is the connection of one command to a server.
type session struct {
	*app
	cmd *cobra.Command
	// connection is where the command connects, and how.
	connection *connection
	// address is the address of the server, or of several, as a flag would give it.
	address    string
	out        *printer
	keys       keysvcv1.KeyServiceClient
	members    keysvcv1.MemberServiceClient
	policies   keysvcv1.PolicyServiceClient
	settings   keysvcv1.SettingsServiceClient
	audit      keysvcv1.AuditServiceClient
	validation keysvcv1.ValidationServiceClient
	sync       keysvcv1.SyncServiceClient
	callers    keysvcv1.CallerServiceClient
	backups    keysvcv1.BackupServiceClient
	debug      keysvcv1.DebugServiceClient
	statuses   keysvcv1.StatusServiceClient
	health     grpc_health_v1.HealthClient
	// timeout is how long one call may take.
	timeout time.Duration
}

// clientCommand makes cmd a command that calls a server. It adds the flags that all such commands
// have, and passes the connection to run. The connection is dialled when run makes its first call.
// formats lists the output formats of the command, the default first; with nil the command has no
// -o.
func (a *app) clientCommand(cmd *cobra.Command, formats []outputFormat, run func(ctx context.Context, s *session, args []string) error) *cobra.Command {
	if cmd.Args == nil {
		cmd.Args = positional()
	}
	flags := cmd.Flags()
	connectionFlags(cmd)
	a.contextFlag(cmd)
	timeout := flags.Duration("timeout", 10*time.Second, "how long one call may take")
	format := outputFlag(cmd, formats)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if *timeout <= 0 {
			return usageError(cmd, "--timeout must be more than 0")
		}
		s, conn, err := a.connect(cmd, *timeout)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conn.Close()) }()
		s.out.format = *format
		return run(cmd.Context(), s, args)
	}
	return cmd
}

// connect prepares a connection to the server that the flags, the environment or a context names.
// The caller closes it.
func (a *app) connect(cmd *cobra.Command, timeout time.Duration) (*session, *grpc.ClientConn, error) {
	settings, err := a.connection(cmd)
	if err != nil {
		return nil, nil, a.listMistakes(err, "the contexts are not valid")
	}
	conn, err := dial(settings, timeout)
	if err != nil {
		return nil, nil, err
	}
	return &session{
		app:        a,
		cmd:        cmd,
		connection: settings,
		address:    settings.server(),
		out:        &printer{out: a.Stdout, width: terminalWidth(a.Stdout), now: a.Now},
		keys:       keysvcv1.NewKeyServiceClient(conn),
		members:    keysvcv1.NewMemberServiceClient(conn),
		policies:   keysvcv1.NewPolicyServiceClient(conn),
		settings:   keysvcv1.NewSettingsServiceClient(conn),
		audit:      keysvcv1.NewAuditServiceClient(conn),
		validation: keysvcv1.NewValidationServiceClient(conn),
		sync:       keysvcv1.NewSyncServiceClient(conn),
		callers:    keysvcv1.NewCallerServiceClient(conn),
		backups:    keysvcv1.NewBackupServiceClient(conn),
		debug:      keysvcv1.NewDebugServiceClient(conn),
		statuses:   keysvcv1.NewStatusServiceClient(conn),
		health:     grpc_health_v1.NewHealthClient(conn),
		timeout:    timeout,
	}, conn, nil
}

// dial prepares a connection. The timeout applies to each unary call. Errors of calls are
// *callError.
func dial(settings *connection, timeout time.Duration) (*grpc.ClientConn, error) {
	d := &dialer{server: settings.server(), addresses: settings.addresses, plaintext: settings.secure == nil}
	credentials, bearer, err := settings.credentials(d.report)
	if err != nil {
		return nil, err
	}
	d.credentials = credentials
	servers := manual.NewBuilderWithScheme("keysvc")
	var found []resolver.Address
	for _, each := range settings.addresses {
		name := each.Target
		switch {
		case each.Network == "unix":
			name = "localhost"
		case settings.name != "":
			name = settings.name
		}
		// The name is what the server's certificate must have.
		found = append(found, resolver.Address{Addr: each.Target, ServerName: name})
	}
	servers.InitialState(resolver.State{Addresses: found})
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials),
		grpc.WithResolvers(servers),
		grpc.WithContextDialer(d.dial),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(connectParams()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)),
		grpc.WithUnaryInterceptor(d.intercept(timeout)),
		grpc.WithStreamInterceptor(d.interceptStream(timeout)),
	}
	if settings.secure != nil && settings.secure.ServerName != "" {
		options = append(options, grpc.WithAuthority(settings.secure.ServerName))
	}
	if bearer != nil {
		options = append(options, grpc.WithPerRPCCredentials(bearer))
	}
	conn, err := grpc.NewClient("keysvc:///"+found[0].ServerName, options...)
	if err != nil {
		return nil, fmt.Errorf("connection to %s: %w", settings.server(), err)
	}
	return conn, nil
}

// connectParams returns how often a connection is tried again. By gRPC's default a command that goes
// on, such as status --watch, would notice up to two minutes late that the server is back.
func connectParams() grpc.ConnectParams {
	params := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 20 * time.Second}
	params.Backoff.MaxDelay = watchInterval
	return params
}

// dialer connects to a server and remembers the error of the last attempt.
type dialer struct {
	server      string // as a flag would give it
	addresses   []config.Address
	plaintext   bool
	credentials *transport.Credentials

	mu   sync.Mutex
	last error // nil if the last attempt succeeded
}

func (d *dialer) dial(ctx context.Context, target string) (net.Conn, error) {
	var system net.Dialer
	network := d.addresses[0].Network // all have the same
	if network == "tcp" && d.plaintext {
		// The system may resolve localhost to any address.
		system.ControlContext = func(_ context.Context, _, resolved string, _ syscall.RawConn) error {
			if !config.IsLoopback(resolved) {
				return transport.ErrNotLoopback
			}
			return nil
		}
	}
	conn, err := system.DialContext(ctx, network, target)
	if err != nil {
		d.credentials.Report(err)
	}
	return conn, err
}

// report is told of each attempt to connect.
func (d *dialer) report(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = err
}

func (d *dialer) lastError() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last
}

// failed returns the *callError of a call that changes nothing.
func (d *dialer) failed(err error, header, trailer metadata.MD, timeout time.Duration) *callError {
	return &callError{
		status:    status.Convert(err),
		address:   d.server,
		requestID: first(header.Get(requestIDHeader), trailer.Get(requestIDHeader)),
		dial:      d.lastError(),
		timeout:   timeout,
	}
}

func (d *dialer) intercept(timeout time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, request, response any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		var header, trailer metadata.MD
		err := invoke(ctx, method, request, response, conn, append(options, grpc.Header(&header), grpc.Trailer(&trailer))...)
		if err == nil {
			return nil
		}
		failed := d.failed(err, header, trailer, timeout)
		failed.changes = !isRead(method, request)
		return failed
	}
}

// interceptStream makes the errors of streams *callError. The timeout appears in the error; it
// does not bound the stream.
func (d *dialer) interceptStream(timeout time.Duration) grpc.StreamClientInterceptor {
	return func(ctx context.Context, description *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
		opened, err := open(ctx, description, conn, method, options...)
		if err != nil {
			return nil, d.failed(err, nil, nil, timeout)
		}
		return &stream{ClientStream: opened, dialer: d, timeout: timeout}, nil
	}
}

// stream is a stream whose errors are *callError.
type stream struct {
	grpc.ClientStream

	dialer  *dialer
	timeout time.Duration
}

// RecvMsg implements grpc.ClientStream.
func (s *stream) RecvMsg(message any) error {
	err := s.ClientStream.RecvMsg(message)
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	header, _ := s.Header() // err already says what failed
	return s.dialer.failed(err, header, s.Trailer(), s.timeout)
}

// isRead reports whether a call changes nothing. method is the full name of the method. An
// unknown method counts as a change.
func isRead(method string, request any) bool {
	if planned, can := request.(interface{ GetValidateOnly() bool }); can && planned.GetValidateOnly() {
		return true
	}
	name := method[strings.LastIndex(method, "/")+1:]
	for _, verb := range []string{"Get", "List", "Validate", "BatchValidate", "Await", "WhoAmI", "Explain", "Check"} {
		if strings.HasPrefix(name, verb) {
			return true
		}
	}
	return false
}

func first(lists ...[]string) string {
	for _, list := range lists {
		if len(list) > 0 {
			return list[0]
		}
	}
	return ""
}
