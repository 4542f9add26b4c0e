package server_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests. A wait that lasts so long hangs.
const patience = time.Minute

// testTime is the first time of a bench's clock.
var testTime = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

// bench is a real server over bufconn, on a real file.
type bench struct {
	server *server.Server
	// store is the store of the file, without the wrapper of options.wrap.
	store  storage.Store
	file   string
	listen *bufconn.Listener
	conn   *grpc.ClientConn
	clock  *testClock
	log    *logBuffer
	// stopOnce makes stop stop the server once, and served has the outcome of Serve.
	stopOnce sync.Once
	served   chan error

	keys       keysvcv1.KeyServiceClient
	members    keysvcv1.MemberServiceClient
	policies   keysvcv1.PolicyServiceClient
	audit      keysvcv1.AuditServiceClient
	validation keysvcv1.ValidationServiceClient
	sync       keysvcv1.SyncServiceClient
}

// options say how a bench differs from the default.
type options struct {
	settings func(*config.Settings)
	policy   func(*policy.Policy)
	// wrap wraps the store, to make it slow or fail.
	wrap func(storage.Store) storage.Store
	// ringSize is how many changes are kept for near-caches.
	ringSize int
	// hooks are told what happens.
	hooks events.Hooks
	// file is the path of an existing store. Default: a new one.
	file string
	// clock and passed are server.Config's Now and Passed. Default: a clock at testTime, and none.
	clock  *testClock
	passed func() time.Duration
	// config changes the rest of the server's configuration.
	config func(*server.Config)
	// ticks say when files are looked at.
	ticks <-chan time.Time
}

// start starts a server, which stops with the test.
func start(t *testing.T, with options) *bench {
	t.Helper()
	b := &bench{
		file:   filepath.Join(t.TempDir(), "keysvc.db"),
		listen: bufconn.Listen(1 << 20),
		clock:  &testClock{now: testTime},
		log:    &logBuffer{},
		served: make(chan error, 1),
	}
	if with.file != "" {
		b.file = with.file
	}
	if with.clock != nil {
		b.clock = with.clock
	}
	settings := config.Defaults()
	settings.LogFormat, settings.LogLevel = config.LogText, slog.LevelDebug
	if with.settings != nil {
		with.settings(&settings)
	}
	if err := settings.Validate(); err != nil {
		t.Fatal(err)
	}
	log := server.NewLog(settings, b.log)
	opened, err := boltstore.Open(b.file, boltstore.Config{Log: log, Now: b.clock.Now, Create: boltstore.CreateIfAbsent, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	b.store = opened
	t.Cleanup(func() {
		if err := opened.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	active := policy.Default()
	if with.policy != nil {
		with.policy(active)
	}
	served := storage.Store(opened)
	if with.wrap != nil {
		served = with.wrap(opened)
	}
	configured := server.Config{
		Store: served, Settings: settings, Policy: active, Now: b.clock.Now, Passed: with.passed, Log: log, RingSize: with.ringSize, Hooks: with.hooks,
		InMemory: true, Ticks: with.ticks,
	}
	if with.config != nil {
		with.config(&configured)
	}
	b.server, err = server.New(t.Context(), configured)
	if err != nil {
		t.Fatal(err)
	}
	go func() { b.served <- b.server.Serve(b.listen) }()
	t.Cleanup(func() { b.stop(t, patience) })
	b.conn = b.dial(t)
	b.keys = keysvcv1.NewKeyServiceClient(b.conn)
	b.members = keysvcv1.NewMemberServiceClient(b.conn)
	b.policies = keysvcv1.NewPolicyServiceClient(b.conn)
	b.audit = keysvcv1.NewAuditServiceClient(b.conn)
	b.validation = keysvcv1.NewValidationServiceClient(b.conn)
	b.sync = keysvcv1.NewSyncServiceClient(b.conn)
	return b
}

// stop stops the server, once, and waits until Serve has returned.
func (b *bench) stop(t *testing.T, drain time.Duration) {
	t.Helper()
	b.stopOnce.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), drain)
		defer cancel()
		b.server.Stop(ctx)
		if err := <-b.served; err != nil {
			t.Errorf("serving ended with: %v", err)
		}
	})
}

// dial opens another connection.
func (b *bench) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///bufconn",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.listen.DialContext(ctx) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// testContext is the context of a call that should not take long.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// putMember adds or changes an active member.
func (b *bench) putMember(t *testing.T, workspaceID, memberID, role string) *keysvcv1.PutMemberResponse {
	t.Helper()
	return b.push(t, workspaceID, memberID, role, keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
}

func (b *bench) push(t *testing.T, workspaceID, memberID, role string, state keysvcv1.MemberState) *keysvcv1.PutMemberResponse {
	t.Helper()
	response, err := b.members.PutMember(testContext(t), &keysvcv1.PutMemberRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Role: role, State: state,
	})
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// create creates a key.
func (b *bench) create(t *testing.T, workspaceID, memberID string, scopes ...string) *keysvcv1.CreateKeyResponse {
	t.Helper()
	response, err := b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Name: "a key", Scopes: scopes,
	})
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// decide validates a token for a scope.
func (b *bench) decide(t *testing.T, token, scope string) *keysvcv1.ValidateKeyResponse {
	t.Helper()
	response, err := b.validation.ValidateKey(testContext(t), &keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: scope})
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// expectAllowed checks that a token is allowed a scope.
func (b *bench) expectAllowed(t *testing.T, token, scope string) {
	t.Helper()
	if response := b.decide(t, token, scope); response.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
		t.Errorf("got %s, %s for %s; want ALLOWED", response.GetDecision(), response.GetReason(), scope)
	}
}

// expectRefused checks that a token is refused for a reason.
func (b *bench) expectRefused(t *testing.T, token, scope string, reason keysvcv1.Reason) {
	t.Helper()
	response := b.decide(t, token, scope)
	if response.GetReason() != reason || response.GetDecision() == keysvcv1.Decision_DECISION_ALLOWED {
		t.Errorf("got %s, %s for %s; want %s", response.GetDecision(), response.GetReason(), scope, reason)
	}
}

// dump returns everything that is stored, audit events included, as one line for each
// record, and then the revision.
func (b *bench) dump(t *testing.T) []string {
	t.Helper()
	var lines, workspaces []string
	add := func(kind string, record proto.Message) {
		encoded, err := storage.Encode(record)
		if err != nil {
			t.Error(err)
		}
		lines = append(lines, kind+" "+hex.EncodeToString(encoded)+" "+string(bytes.ToValidUTF8(encoded, []byte("."))))
	}
	position, err := b.store.Load(testContext(t), func(item storage.Item) error {
		switch {
		case item.Policy != nil:
			add("policy", item.Policy)
		case item.Workspace != nil:
			add("workspace", item.Workspace)
		case item.Member != nil:
			add("member", item.Member)
		case item.Key != nil:
			add("key", item.Key)
		case item.Head != nil:
			workspaces = append(workspaces, item.Head.WorkspaceID)
			lines = append(lines, fmt.Sprintf("head %q %d %x %d", item.Head.WorkspaceID, item.Head.Head.Sequence, item.Head.Head.Hash, item.Head.Head.Fence))
		case item.Usage != nil:
			lines = append(lines, fmt.Sprintf("usage %s %s", item.Usage.KeyID, item.Usage.Time))
		case item.Damaged != nil:
			t.Errorf("damaged: %v", item.Damaged.Err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, workspaceID := range workspaces {
		for query := (storage.Query{WorkspaceID: workspaceID, Limit: storage.MaxPage}); ; {
			page, err := b.store.ListAuditEvents(testContext(t), query)
			if err != nil {
				t.Fatal(err)
			}
			for _, event := range page.Events {
				add("audit event", event.Record)
			}
			if query.Cursor = page.Next; query.Cursor == "" {
				break
			}
		}
	}
	slices.Sort(lines)
	return append(lines, fmt.Sprintf("revision %d at %s", position.Revision, position.Time))
}

// expectUnchanged checks that two dumps are equal.
func expectUnchanged(t *testing.T, before, after []string) {
	t.Helper()
	for _, line := range after {
		if !slices.Contains(before, line) {
			t.Errorf("a refused call stored: %s", line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("a refused call took away: %s", line)
		}
	}
}

// details are the details of a status.
type details struct {
	info  *errdetails.ErrorInfo
	bad   *errdetails.BadRequest
	retry *errdetails.RetryInfo
}

func detailsOf(t *testing.T, err error) details {
	t.Helper()
	var found details
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			found.info = detail
		case *errdetails.BadRequest:
			found.bad = detail
		case *errdetails.RetryInfo:
			found.retry = detail
		default:
			t.Errorf("unexpected detail %T", detail)
		}
	}
	return found
}

// expectError checks code and reason of an error.
func expectError(t *testing.T, err error, code codes.Code, reason string) details {
	t.Helper()
	found := detailsOf(t, err)
	if status.Code(err) != code || found.info.GetReason() != reason || found.info.GetDomain() != "keysvc" {
		t.Errorf("got %v with reason %q of domain %q; want %s with %s of keysvc", err, found.info.GetReason(), found.info.GetDomain(), code, reason)
	}
	return found
}

// parts returns the texts of a token that must not appear anywhere.
func parts(token string) []string {
	tail := token[len(token)-49:]
	return []string{token, tail, tail[:43]}
}

// holdsToken reports whether a text has one of the tokens, or the secret of one.
func holdsToken(text string, tokens ...string) bool {
	for _, token := range tokens {
		if slices.ContainsFunc(parts(token), func(part string) bool { return strings.Contains(text, part) }) {
			return true
		}
	}
	return false
}

// testClock is a clock that a test moves.
type testClock struct {
	mutex sync.Mutex
	now   time.Time
}

// Now moves the clock by a microsecond, so that no two times are equal, and returns the
// time.
func (c *testClock) Now() time.Time {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.now = c.now.Add(time.Microsecond)
	return c.now
}

// pass moves the clock.
func (c *testClock) pass(duration time.Duration) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.now = c.now.Add(duration)
}

// durationOf returns a duration as a message.
func durationOf(duration time.Duration) *durationpb.Duration { return durationpb.New(duration) }

// in returns the time after a duration from now, as a message.
func (c *testClock) in(duration time.Duration) *timestamppb.Timestamp {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return timestamppb.New(c.now.Add(duration))
}

// logBuffer collects the log.
type logBuffer struct {
	mutex sync.Mutex
	text  strings.Builder
}

// Write implements io.Writer.
func (l *logBuffer) Write(text []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.text.Write(text)
}

func (l *logBuffer) String() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.text.String()
}

// lines returns the lines that contain a text.
func (l *logBuffer) lines(with string) []string {
	var found []string
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, with) {
			found = append(found, line)
		}
	}
	return found
}

// gate is a store whose ListKeys waits, and whose ListMembers may panic.
type gate struct {
	storage.Store
	// entered gets a value from each ListKeys. ListKeys then waits for a value from leave, or
	// for the end of its context.
	entered chan struct{}
	leave   chan struct{}
	// panic, if it is not nil, makes ListMembers panic.
	panic func()
}

func newGate() *gate {
	return &gate{entered: make(chan struct{}, 64), leave: make(chan struct{})}
}

func (g *gate) wrap(store storage.Store) storage.Store {
	g.Store = store
	return g
}

// release lets one waiting ListKeys go on.
func (g *gate) release(t *testing.T) {
	t.Helper()
	select {
	case g.leave <- struct{}{}:
	case <-time.After(patience):
		t.Errorf("no call waits any more, or none ever did")
	}
}

// ListKeys implements storage.Store.
func (g *gate) ListKeys(ctx context.Context, query storage.Query) (storage.KeyPage, error) {
	g.entered <- struct{}{}
	select {
	case <-g.leave:
		return g.Store.ListKeys(ctx, query)
	case <-ctx.Done():
		return storage.KeyPage{}, ctx.Err()
	}
}

// ListMembers implements storage.Store.
func (g *gate) ListMembers(ctx context.Context, query storage.Query) (storage.MemberPage, error) {
	if g.panic != nil {
		g.panic()
	}
	return g.Store.ListMembers(ctx, query)
}

// waitFor returns the next value, and fails the test if it does not come within patience.
func waitFor[T any](t *testing.T, values <-chan T, what string) T {
	t.Helper()
	select {
	case value := <-values:
		return value
	case <-time.After(patience):
		t.Fatalf("waited %s for %s", patience, what)
		panic("unreachable")
	}
}
