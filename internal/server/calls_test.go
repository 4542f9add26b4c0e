package server_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	// For the descriptors of what is served with --channelz.
	_ "google.golang.org/grpc/channelz/grpc_channelz_v1"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
)

// ours are the services of this API.
var ours = []string{"keysvc.v1.AuditService", "keysvc.v1.BackupService", "keysvc.v1.CallerService", "keysvc.v1.DebugService", "keysvc.v1.KeyService", "keysvc.v1.MemberService", "keysvc.v1.PolicyService", "keysvc.v1.SettingsService", "keysvc.v1.StatusService", "keysvc.v1.SyncService", "keysvc.v1.ValidationService"}

// listing is a call of ListKeys that is in flight; it yields the call's error.
type listing chan error

// listKeys calls ListKeys, which waits at a gate.
func (b *bench) listKeys(ctx context.Context) listing {
	done := make(listing, 1)
	go func() {
		_, err := b.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: "acme"})
		done <- err
	}()
	return done
}

func (b *bench) expectHealth(t *testing.T, service string, want grpc_health_v1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	response, err := grpc_health_v1.NewHealthClient(b.conn).Check(testContext(t), &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil || response.GetStatus() != want {
		t.Errorf("health of %q is %s, %v; want %s", service, response.GetStatus(), err, want)
	}
}

func TestHealthNamesEachService(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	for _, service := range append(ours, "") {
		b.expectHealth(t, service, grpc_health_v1.HealthCheckResponse_SERVING)
	}
	_, err := grpc_health_v1.NewHealthClient(b.conn).Check(testContext(t), &grpc_health_v1.HealthCheckRequest{Service: "keysvc.v1.Nothing"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("an unknown service gives %v, want NOT_FOUND", err)
	}
}

func TestPanicBecomesInternalAndOneLogLine(t *testing.T) {
	t.Parallel()
	const secret = "scribe_ksk1_0123456789abcdef_" + "ZYXWVUTSRQPONMLKJIHGFEDCBA9876543210zyxwvutsrqpon"
	for name, raise := range map[string]func(){
		"a text":          func() { panic("the request had " + secret) },
		"an error":        func() { panic(errors.New("the request had " + secret)) },
		"the request":     func() { panic(&keysvcv1.ListMembersRequest{PageToken: secret}) },
		"a runtime error": func() { _ = []int{}[len(secret)] },
		"a type":          func() { _ = any(secret).(io.Reader) },
		"nil":             func() { panic(nil) }, //nolint:govet // what if somebody does
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGate()
			b := start(t, options{wrap: g.wrap})
			g.panic = raise
			before := b.dump(t)
			ctx := metadata.AppendToOutgoingContext(testContext(t), "x-request-id", "the-id", "authorization", "Bearer "+secret)
			_, err := b.members.ListMembers(ctx, &keysvcv1.ListMembersRequest{WorkspaceId: "workspace-of-the-request"})
			expectError(t, err, codes.Internal, "INTERNAL")
			if message := status.Convert(err).Message(); holdsToken(message, secret) || strings.Contains(message, "panic") || strings.Contains(message, ".go") {
				t.Errorf("the caller is told %q", message)
			}
			entries := b.log.lines("panic")
			if len(entries) != 1 || !strings.Contains(entries[0], "request_id=the-id") || !strings.Contains(entries[0], " ERROR ") || !strings.Contains(entries[0], "stack=") {
				t.Errorf("want one log entry with stack and request id, got %q", entries)
			}
			if log := b.log.String(); holdsToken(log, secret) || strings.Contains(log, "workspace-of-the-request") {
				t.Errorf("the log has something of the request: %s", log)
			}
			// No lock is held any more.
			expectUnchanged(t, before, b.dump(t))
			b.putMember(t, "acme", "ann", "owner")
		})
	}
}

func TestMessagesAndHeadersAreBounded(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	ctx := testContext(t)
	_, err := b.validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{Token: long(1<<20 - 100), IdentityOnly: true})
	if err != nil {
		t.Errorf("a message just below 1 MiB: %v", err)
	}
	_, err = b.validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{Token: long(1<<20 + 1), IdentityOnly: true})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "1048576 are allowed") {
		t.Errorf("a message over 1 MiB: got %v, want a refusal that names the limit", err)
	}
	header := func(size int) error {
		_, err := b.policies.GetPolicy(metadata.AppendToOutgoingContext(ctx, "x-filler", long(size)), &keysvcv1.GetPolicyRequest{})
		return err
	}
	if err := header(15 << 10); err != nil {
		t.Errorf("headers of 15 KiB: %v", err)
	}
	// The server has told the client its limit, so the client sends nothing.
	if err := header(16 << 10); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "16384") {
		t.Errorf("headers over 16 KiB: got %v, want a refusal that names the limit", err)
	}
	b.expectHealth(t, "", grpc_health_v1.HealthCheckResponse_SERVING)
}

// TestStreamsOfAConnectionAreBounded: calls beyond the bound wait in the client, and other
// connections go on.
func TestStreamsOfAConnectionAreBounded(t *testing.T) {
	t.Parallel()
	const most = 3
	g := newGate()
	b := start(t, options{wrap: g.wrap, settings: func(s *config.Settings) { s.MaxStreams = most }})
	b.expectHealth(t, "", grpc_health_v1.HealthCheckResponse_SERVING) // the client knows the settings now
	var calls []listing
	for range most {
		calls = append(calls, b.listKeys(testContext(t)))
		waitFor(t, g.entered, "a call")
	}
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	if _, err := b.policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("one stream too many: got %v", err)
	}
	other := keysvcv1.NewPolicyServiceClient(b.dial(t))
	if _, err := other.GetPolicy(testContext(t), &keysvcv1.GetPolicyRequest{}); err != nil {
		t.Errorf("another connection: %v", err)
	}
	for range calls {
		g.release(t)
	}
	for _, call := range calls {
		if err := waitFor(t, call, "an answer"); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.policies.GetPolicy(testContext(t), &keysvcv1.GetPolicyRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestCallEndsWithItsCallersContext(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := start(t, options{wrap: g.wrap})
	ctx, cancel := context.WithCancel(testContext(t))
	call := b.listKeys(ctx)
	waitFor(t, g.entered, "the call")
	cancel()
	if err := waitFor(t, call, "an answer"); status.Code(err) != codes.Canceled {
		t.Errorf("got %v, want CANCELLED", err)
	}
	ctx, cancel = context.WithTimeout(testContext(t), 10*time.Millisecond)
	defer cancel()
	if err := waitFor(t, b.listKeys(ctx), "an answer"); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v, want DEADLINE_EXCEEDED", err)
	}
}

// TestEveryServedMethodIsInTheTable compares the methods that the server serves with the
// table of callers.
func TestEveryServedMethodIsInTheTable(t *testing.T) {
	t.Parallel()
	b := start(t, options{settings: func(s *config.Settings) { s.Channelz = true }})
	served := b.reflectedServices(t)
	for _, name := range served {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		methods := found.(protoreflect.ServiceDescriptor).Methods()
		for index := range methods.Len() {
			method := "/" + name + "/" + string(methods.Get(index).Name())
			if callers.Needs(method) == access.Nobody {
				t.Errorf("%s is served and has no entry", method)
			}
		}
	}
	for method := range methodsOf(t) {
		if service := string(method.Parent().FullName()); !slices.Contains(served, service) {
			t.Errorf("%s is not served", service)
		}
	}
}

func (b *bench) reflectedServices(t *testing.T) []string {
	t.Helper()
	stream, err := grpc_reflection_v1.NewServerReflectionClient(b.conn).ServerReflectionInfo(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	request := &grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}
	if err := stream.Send(request); err != nil {
		t.Fatal(err)
	}
	response, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, service := range response.GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
	return names
}

func TestReflectionListsWhatIsServed(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	want := append(slices.Clone(ours), "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
	slices.Sort(want)
	if got := b.reflectedServices(t); !slices.Equal(got, want) {
		t.Errorf("v1 lists %q, want %q", got, want)
	}
	// The older version, and a symbol.
	stream, err := grpc_reflection_v1alpha.NewServerReflectionClient(b.conn).ServerReflectionInfo(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range []*grpc_reflection_v1alpha.ServerReflectionRequest{
		{MessageRequest: &grpc_reflection_v1alpha.ServerReflectionRequest_ListServices{}},
		{MessageRequest: &grpc_reflection_v1alpha.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "keysvc.v1.KeyService.CreateKey"}},
	} {
		if err := stream.Send(request); err != nil {
			t.Fatal(err)
		}
		response, err := stream.Recv()
		if err != nil || response.GetErrorResponse() != nil {
			t.Fatalf("got %v, %v", response, err)
		}
		if list := response.GetListServicesResponse(); list != nil && len(list.GetService()) != len(want) {
			t.Errorf("v1alpha lists %v", list)
		}
		if files := response.GetFileDescriptorResponse(); files != nil && len(files.GetFileDescriptorProto()) == 0 {
			t.Error("v1alpha knows nothing of CreateKey")
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
	// Otherwise the stop of the server would end the stream.
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestUnknownMethodIsUnimplemented(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	err := b.conn.Invoke(testContext(t), "/keysvc.v1.KeyService/Nothing", &keysvcv1.GetKeyRequest{}, &keysvcv1.GetKeyResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v, want UNIMPLEMENTED", err)
	}
}

func TestRequestIDComesBackAndIsLogged(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	token := b.create(t, "acme", "ann", "emails:read").GetToken()
	answer := func(sent ...string) []string {
		t.Helper()
		ctx := testContext(t)
		for _, id := range sent {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", id)
		}
		var header metadata.MD
		if _, err := b.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{}, grpc.Header(&header)); err != nil {
			t.Fatalf("%q: %v", sent, err)
		}
		return header.Get("x-request-id")
	}
	for _, good := range []string{"a", "A-1_b:c.d", long(64)} {
		if got := answer(good); !slices.Equal(got, []string{good}) {
			t.Errorf("sent %q, got %q", good, got)
		}
		if entries := b.log.lines("request_id=" + good); len(entries) != 1 {
			t.Errorf("want one log entry of %s, got %q", good, entries)
		}
	}
	seen := make(map[string]bool)
	for name, bad := range map[string][]string{
		"none": nil, "empty": {""}, "65 characters": {long(65)}, "a space": {"a b"}, "two": {"first", "second"}, "a slash": {"a/b"},
		"quotes": {`a"b`}, "an equals sign": {"a=b"}, "a token": {token}, "a tail": {"Bearer " + token[len(token)-49:]},
	} {
		got := answer(bad...)
		if len(got) != 1 || len(got[0]) < 16 || slices.Contains(bad, got[0]) || seen[got[0]] {
			t.Errorf("%s: got %q, want a new one", name, got)
			continue
		}
		seen[got[0]] = true
		if entries := b.log.lines("request_id=" + got[0]); len(entries) != 1 {
			t.Errorf("%s: want one log entry, got %q", name, entries)
		}
	}
	if holdsToken(b.log.String(), token) {
		t.Error("the log has the token")
	}
	// An error has a request id as well, in its header or trailer.
	var header, trailer metadata.MD
	_, err := b.keys.GetKey(metadata.AppendToOutgoingContext(testContext(t), "x-request-id", "of-an-error"),
		&keysvcv1.GetKeyRequest{KeyId: "0123456789abcdef"}, grpc.Header(&header), grpc.Trailer(&trailer))
	if got := append(header.Get("x-request-id"), trailer.Get("x-request-id")...); err == nil || !slices.Equal(got, []string{"of-an-error"}) {
		t.Errorf("with %v came %q", err, got)
	}
	// The audit event of a change has the request id.
	ctx := metadata.AppendToOutgoingContext(testContext(t), "x-request-id", "of-a-change")
	if _, err := b.members.PutMember(ctx, &keysvcv1.PutMemberRequest{WorkspaceId: "acme", MemberId: "bob", Role: "owner", State: active}); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(b.dump(t), func(line string) bool {
		return strings.HasPrefix(line, "audit event") && strings.Contains(line, "of-a-change")
	}) {
		t.Error("no audit event has the request id")
	}
}

// TestLogHasOneLineForEachCall: validations have one only at debug, and of a request only
// ids of what exists are logged.
func TestLogHasOneLineForEachCall(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "workspace-name", "member-name", "owner")
	created := b.create(t, "workspace-name", "member-name", "emails:read")
	want := " INFO  CreateKey workspace-name/" + created.GetKey().GetKeyId() + " by local OK "
	if entries := b.log.lines(" CreateKey "); len(entries) != 1 || !strings.Contains(entries[0], want) {
		t.Errorf("want one line with %q, got %q", want, entries)
	}
	b.expectAllowed(t, created.GetToken(), "emails:read")
	if entries := b.log.lines(" ValidateKey "); len(entries) != 1 || !strings.Contains(entries[0], "DEBUG") { // the bench logs at debug
		t.Errorf("want one line at debug, got %q", entries)
	}
	_, err := b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{WorkspaceId: "workspace-name", MemberId: "no-such-name", Name: created.GetToken()})
	if err == nil {
		t.Error("no error")
	}
	if entries := b.log.lines(" INVALID_ARGUMENT "); len(entries) != 1 || !strings.Contains(entries[0], "CreateKey workspace-name by local ") {
		t.Errorf("want one line about the workspace, got %q", entries)
	}
	_, err = b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{WorkspaceId: "no-such-workspace", MemberId: "no-such-name", Name: "a name"})
	if err == nil {
		t.Error("no error")
	}
	for _, text := range []string{"no-such-name", "no-such-workspace", "a name"} {
		if entries := b.log.lines(text); len(entries) > 0 {
			t.Errorf("the log has %s of the request: %q", text, entries)
		}
	}
	if holdsToken(b.log.String(), created.GetToken()) {
		t.Error("the log has the token")
	}
}

// TestStopWaitsForCallsInFlight: a call in flight gets its answer, and new calls do not.
func TestStopWaitsForCallsInFlight(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := start(t, options{wrap: g.wrap})
	b.putMember(t, "acme", "ann", "owner")
	watch, err := grpc_health_v1.NewHealthClient(b.dial(t)).Watch(testContext(t), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := watch.Recv(); err != nil || first.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("got %v, %v", first, err)
	}
	call := b.listKeys(testContext(t))
	waitFor(t, g.entered, "the call")
	stopped := make(chan struct{})
	go func() {
		b.stop(t, patience/4) // less than the watch's own deadline
		close(stopped)
	}()
	// A watch of health is told before connections are closed.
	if second, err := watch.Recv(); err != nil || second.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("got %v, %v; want NOT_SERVING", second, err)
	}
	// Until the listener is closed, another call may come in time.
	for dialling := testContext(t); ; {
		conn, err := b.listen.DialContext(dialling)
		if err != nil {
			if dialling.Err() != nil {
				t.Error("the listener stays open")
			}
			break
		}
		_ = conn.Close()
	}
	select {
	case <-stopped:
		t.Error("it did not wait for the call")
	case err := <-call:
		t.Errorf("the call ended with %v", err)
	default:
	}
	g.release(t)
	if err := waitFor(t, call, "the answer"); err != nil {
		t.Errorf("the call in flight got %v", err)
	}
	waitFor(t, stopped, "the stop")
	if _, err := b.policies.GetPolicy(testContext(t), &keysvcv1.GetPolicyRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("afterwards: %v, want UNAVAILABLE", err)
	}
	if lines := b.log.lines("cut off"); len(lines) > 0 {
		t.Errorf("something was cut off: %q", lines)
	}
}

// TestStopCutsOffCallsAfterItsDeadline: a call that does not end is cut off.
func TestStopCutsOffCallsAfterItsDeadline(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := start(t, options{wrap: g.wrap})
	call := b.listKeys(testContext(t))
	waitFor(t, g.entered, "the call")
	b.stop(t, 10*time.Millisecond)
	if err := waitFor(t, call, "an answer"); status.Code(err) != codes.Unavailable {
		t.Errorf("the call got %v, want UNAVAILABLE", err)
	}
	if lines := b.log.lines("cut off"); len(lines) != 1 {
		t.Errorf("the log does not say so: %s", b.log)
	}
}

// TestStopFlushesUses: last-used times are known after a restart.
func TestStopFlushesUses(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	created := b.create(t, "acme", "ann", "emails:read")
	revision := b.dump(t)
	b.expectAllowed(t, created.GetToken(), "emails:read")
	got, err := b.keys.GetKey(testContext(t), &keysvcv1.GetKeyRequest{KeyId: created.GetKey().GetKeyId()})
	if err != nil || got.GetKey().GetLastUsedTime() == nil {
		t.Errorf("got %v, %v", got, err)
	}
	b.stop(t, patience)
	var used string
	for _, line := range b.dump(t) {
		if !slices.Contains(revision, line) {
			used += line
		}
	}
	if want := "usage " + created.GetKey().GetKeyId(); !strings.HasPrefix(used, want) {
		t.Errorf("stopping stored %q, want the use alone", used)
	}
}

// TestConnectionsThatAreNotHTTP2DisturbNobody sends other protocols to the listener.
func TestConnectionsThatAreNotHTTP2DisturbNobody(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02", strings.Repeat("x", 100)} {
		conn, err := b.listen.DialContext(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		expectClosed(t, conn, len(text) >= 24)
	}
	b.expectHealth(t, "", grpc_health_v1.HealthCheckResponse_SERVING)
}

// expectClosed closes a connection; if other is set, once the server has closed it.
func expectClosed(t *testing.T, conn net.Conn, other bool) {
	t.Helper()
	if other {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadAll(conn); errors.Is(err, context.DeadlineExceeded) {
			t.Error("the connection stays open")
		}
	}
	_ = conn.Close()
}

// TestAnswerIsAsFreshAsMinRevision waits for a revision that comes during the call.
func TestAnswerIsAsFreshAsMinRevision(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	created := b.create(t, "acme", "ann", "emails:read")
	request := &keysvcv1.ValidateKeyRequest{
		Token: created.GetToken(), RequiredScope: "emails:read", MinRevision: created.GetRevision() + 1, Epoch: created.GetEpoch(),
	}
	answer := make(chan proto.Message, 1)
	go func() {
		response, err := b.validation.ValidateKey(testContext(t), request)
		if err != nil {
			t.Errorf("the revision came, and the answer was %v", err)
		}
		answer <- response
	}()
	revoked, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: created.GetKey().GetKeyId()})
	if err != nil {
		t.Fatal(err)
	}
	response := waitFor(t, answer, "the answer").(*keysvcv1.ValidateKeyResponse)
	if response.GetReason() != keysvcv1.Reason_REASON_KEY_REVOKED || response.GetRevision() < revoked.GetRevision() {
		t.Errorf("got %v, want what holds at revision %d", response, revoked.GetRevision())
	}
}
