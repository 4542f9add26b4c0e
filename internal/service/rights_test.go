package service_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/feed"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// holder returns a caller that has a right for some workspaces.
func holder(right access.Right, workspaceIDs ...string) *callers.Identity {
	grants := new(access.Grants)
	grants.Add(right, access.Only(workspaceIDs...))
	return &callers.Identity{Name: "limited", Source: callers.SourceToken, Grants: grants}
}

// syncing is a Sync service behind a real connection, whose callers have one identity.
type syncing struct {
	*testing.T
	*keystest.World

	hub    *feed.Hub
	live   *callers.Live
	client keysvcv1.SyncServiceClient
	stream grpc.BidiStreamingClient[keysvcv1.SyncRequest, keysvcv1.SyncResponse]
}

// newSyncing returns a service for callers with an identity. It follows no store: publish makes the
// changes that its sessions are told.
func newSyncing(t *testing.T, identity *callers.Identity) *syncing {
	t.Helper()
	world := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	for _, workspaceID := range []string{"acme", "other"} {
		world.Put(workspaceID, "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	}
	s := &syncing{T: t, World: world, live: callers.NewLive(identity)}
	s.hub = feed.New(feed.Config{
		Epoch: world.Projection.Epoch(), Revision: world.Projection.Revision(), Started: time.Now(), Staleness: time.Minute,
	})
	server := grpc.NewServer(grpc.StreamInterceptor(
		func(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			return handler(server, &liveStream{stream, callers.NewLiveContext(stream.Context(), s.live)})
		}))
	keysvcv1.RegisterSyncServiceServer(server, service.NewSync(s.hub, world.Projection, world.Validator, service.Errors{Log: slog.New(slog.DiscardHandler)}))
	listener := bufconn.Listen(1 << 16)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	s.client = keysvcv1.NewSyncServiceClient(conn)
	return s
}

// liveStream is a stream with another context.
type liveStream struct {
	grpc.ServerStream

	ctx context.Context
}

func (s *liveStream) Context() context.Context { return s.ctx }

func (s *syncing) send(request *keysvcv1.SyncRequest) {
	s.Helper()
	if err := s.stream.Send(request); err != nil {
		s.Fatal(err)
	}
}

func (s *syncing) receive() *keysvcv1.SyncResponse {
	s.Helper()
	response, err := s.stream.Recv()
	if err != nil {
		s.Fatal(err)
	}
	return response
}

// join begins a session and returns its Welcome.
func (s *syncing) join(hello *keysvcv1.SyncHello) *keysvcv1.SyncWelcome {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.T.Context(), 20*time.Second)
	s.Cleanup(cancel)
	stream, err := s.client.Sync(ctx)
	if err != nil {
		s.Fatal(err)
	}
	s.stream = stream
	s.send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: hello}})
	welcome := s.receive().GetWelcome()
	if welcome == nil {
		s.Fatal("something else than welcome came first")
	}
	return welcome
}

// auditHash is the hash of every change that publish makes.
var auditHash = bytes.Repeat([]byte{7}, 32)

// publish makes a change of a workspace, and returns its revision.
func (s *syncing) publish(workspaceID string) int64 {
	revision := s.hub.Revision() + 1
	record := &storagev1.FeedRecord{Revision: revision, WorkspaceId: workspaceID, Kind: storagev1.FeedKind_FEED_KIND_MEMBER, Subject: "ann", AuditHash: auditHash}
	s.hub.Publish(&storage.Committed{Revision: revision, Feed: record})
	s.hub.Announce()
	return revision
}

// told receives events up to a revision, and returns the workspaces of the changes.
func (s *syncing) told(revision int64) (workspaceIDs []string) {
	s.Helper()
	for {
		events := s.receive().GetEvents()
		if events == nil {
			s.Fatal("something else than events came")
		}
		for _, event := range events.GetEvents() {
			workspaceIDs = append(workspaceIDs, event.GetWorkspaceId())
		}
		if events.GetRevision() >= revision {
			return workspaceIDs
		}
	}
}

func (s *syncing) expectTold(revision int64, want ...string) {
	s.Helper()
	got := s.told(revision)
	if len(got) != len(want) {
		s.Fatalf("told of %q, want %q", got, want)
	}
	for index := range got {
		if got[index] != want[index] {
			s.Errorf("told of %q, want %q", got, want)
		}
	}
}

// TestSessionHasTheChangesOfItsCallersWorkspaces: those that the caller may validate in, and the
// policy's. The revision moves past the others.
func TestSessionHasTheChangesOfItsCallersWorkspaces(t *testing.T) {
	s := newSyncing(t, holder(access.Validate, "acme"))
	if got := s.join(&keysvcv1.SyncHello{}).GetVisibleWorkspaces(); string(got) != string(access.Only("acme").Fingerprint()) {
		t.Errorf("welcome has %x", got)
	}
	s.publish("acme")
	s.publish("other")
	s.publish("")
	s.publish("acme")
	s.expectTold(s.publish("other"), "acme", "", "acme")
}

// TestSessionIsResetWhenItsCallersWorkspacesChange: S7.
func TestSessionIsResetWhenItsCallersWorkspacesChange(t *testing.T) {
	s := newSyncing(t, holder(access.Validate, "acme"))
	s.join(&keysvcv1.SyncHello{})
	s.expectTold(s.publish("acme"), "acme")
	for _, workspaces := range [][]string{{"acme", "other"}, {"other"}} {
		s.live.Set(holder(access.Validate, workspaces...))
		reset := s.receive().GetReset_()
		if string(reset.GetVisibleWorkspaces()) != string(access.Only(workspaces...).Fingerprint()) || reset.GetRevision() != s.hub.Revision() {
			t.Fatalf("with %q: got %v", workspaces, reset)
		}
	}
	// The same workspaces again, by other rights: nothing happens.
	s.live.Set(holder(access.Validate, "other"))
	s.publish("acme")
	s.expectTold(s.publish("other"), "other")
	s.live.Set(callers.Local())
	if reset := s.receive().GetReset_(); reset == nil || reset.GetVisibleWorkspaces() != nil {
		t.Fatalf("with all workspaces: got %v", reset)
	}
	s.expectTold(s.publish("acme"), "acme")
}

func TestSessionEndsWhenItsCallerMayNoLongerValidate(t *testing.T) {
	for name, test := range map[string]struct {
		identity *callers.Identity
		code     codes.Code
		reason   string
	}{
		"removed":           {nil, codes.Unauthenticated, "CALLER_UNKNOWN"},
		"without the right": {holder(access.Read, "acme"), codes.PermissionDenied, "CALLER_NOT_ALLOWED"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSyncing(t, holder(access.Validate, "acme"))
			s.join(&keysvcv1.SyncHello{})
			s.live.Set(test.identity)
			_, err := s.stream.Recv()
			refused(t, err, test.code, test.reason)
			// Nor can it begin another one.
			stream, err := s.client.Sync(t.Context())
			if err == nil {
				_ = stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}})
				_, err = stream.Recv()
			}
			refused(t, err, test.code, test.reason)
		})
	}
}

// TestSessionResumesOnlyWithTheSameWorkspaces: S7.
func TestSessionResumesOnlyWithTheSameWorkspaces(t *testing.T) {
	s := newSyncing(t, holder(access.Validate, "acme"))
	welcome := s.join(&keysvcv1.SyncHello{})
	revision := s.publish("acme")
	s.expectTold(revision, "acme")
	for name, test := range map[string]struct {
		identity *callers.Identity
		visible  []byte
		reset    bool
	}{
		"the same":                      {holder(access.Validate, "acme"), welcome.GetVisibleWorkspaces(), false},
		"another workspace":             {holder(access.Validate, "other"), welcome.GetVisibleWorkspaces(), true},
		"one workspace more":            {holder(access.Validate, "acme", "other"), welcome.GetVisibleWorkspaces(), true},
		"all workspaces":                {callers.Local(), welcome.GetVisibleWorkspaces(), true},
		"an older client":               {holder(access.Validate, "acme"), nil, true},
		"an older client, with all":     {callers.Local(), nil, false},
		"a client that saw all of them": {holder(access.Validate, "acme"), nil, true},
		"another client's fingerprint":  {holder(access.Validate, "acme"), access.Only("other").Fingerprint(), true},
		"no workspace before":           {holder(access.Validate, "acme"), access.Workspaces{}.Fingerprint(), true},
	} {
		s.live.Set(test.identity)
		got := s.join(&keysvcv1.SyncHello{
			Epoch: s.hub.Epoch(), Revision: revision, AuditHash: auditHash, HashRevision: revision, VisibleWorkspaces: test.visible,
		})
		if got.GetReset_() != test.reset || string(got.GetVisibleWorkspaces()) != string(test.identity.For(access.Validate).Fingerprint()) {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestHelloWithAMalformedFingerprintIsRefused(t *testing.T) {
	s := newSyncing(t, holder(access.Validate, "acme"))
	stream, err := s.client.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.stream = stream
	s.send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{VisibleWorkspaces: []byte("short")}}})
	_, err = stream.Recv()
	refused(t, err, codes.InvalidArgument, "FIELD_INVALID", "hello.visible_workspaces")
}

// TestUsesOfForeignKeysAreIgnored: a caller cannot make a key of another workspace look used.
func TestUsesOfForeignKeysAreIgnored(t *testing.T) {
	s := newSyncing(t, holder(access.Validate, "acme"))
	own, foreign := s.Create("acme", "ann", "signatures:read").GetKey(), s.Create("other", "ann", "signatures:read").GetKey()
	welcome := s.join(&keysvcv1.SyncHello{})
	used := timestamppb.New(s.Clock.Now())
	s.send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: &keysvcv1.SyncPing{
		Nonce: 1, Revision: welcome.GetRevision(),
		Uses: []*keysvcv1.KeyUse{{KeyId: own.GetKeyId(), Time: used}, {KeyId: foreign.GetKeyId(), Time: used}},
	}}})
	if pong := s.receive().GetPong(); pong.GetNonce() != 1 {
		t.Fatalf("got %v", pong)
	}
	if got := s.Projection.LastUsed(own.GetKeyId()); got.IsZero() {
		t.Error("the use of an own key is lost")
	}
	if got := s.Projection.LastUsed(foreign.GetKeyId()); !got.IsZero() {
		t.Errorf("a foreign key counts as used at %s", got)
	}
}

// TestUsesCountForTheirSecrets: of a key in rotation one sees which of its tokens is used, by validations here
// and by near-caches.
func TestUsesCountForTheirSecrets(t *testing.T) {
	s := newSyncing(t, holder(access.Validate, "acme"))
	created := s.Create("acme", "ann", "signatures:read")
	s.Clock.Advance(time.Hour)
	rotated, err := s.Verbs.RotateKey(t.Context(), keystest.Actor, &keysvcv1.RotateKeyRequest{
		WorkspaceId: "acme", KeyId: created.GetKey().GetKeyId(), Overlap: durationpb.New(24 * time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	began := s.Clock.Now()
	want := func(newest, older time.Duration) {
		t.Helper()
		key, err := s.Verbs.GetKey(t.Context(), access.All(), &keysvcv1.GetKeyRequest{KeyId: created.GetKey().GetKeyId()})
		if err != nil {
			t.Fatal(err)
		}
		for index, after := range []time.Duration{newest, older} {
			var at *timestamppb.Timestamp
			if after > 0 {
				at = timestamppb.New(began.Add(after))
			}
			if got := key.GetKey().GetSecrets()[index].GetLastUsedTime(); !proto.Equal(got, at) {
				t.Errorf("secret %d was last used at %v, want %v", index, got, at)
			}
		}
		if got := key.GetKey().GetLastUsedTime().AsTime(); got.Before(began.Add(max(newest, older))) {
			t.Errorf("the key was last used at %s", got)
		}
	}
	validate := func(after time.Duration, text string) (tag uint32) {
		t.Helper()
		s.Clock.Advance(began.Add(after).Sub(s.Clock.Now()))
		response, err := service.NewValidation(s.Validator, service.Errors{}).ValidateKey(known(t), &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true, IncludeGrant: true})
		if err != nil || response.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED || response.GetSecretTag() == 0 {
			t.Fatalf("%v, %v", response, err)
		}
		return response.GetSecretTag()
	}
	// 1. Validations of the server.
	older := validate(time.Second, created.GetToken())
	want(0, time.Second)
	newest := validate(2*time.Second, rotated.GetToken())
	want(2*time.Second, time.Second)
	// 2. Uses of near-caches; one of an earlier version does not say which secret it was.
	welcome := s.join(&keysvcv1.SyncHello{})
	s.Clock.Advance(time.Minute)
	ping := func(nonce uint64, tag uint32, after time.Duration) {
		t.Helper()
		s.send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: &keysvcv1.SyncPing{
			Nonce: nonce, Revision: welcome.GetRevision(),
			Uses: []*keysvcv1.KeyUse{{KeyId: created.GetKey().GetKeyId(), SecretTag: tag, Time: timestamppb.New(began.Add(after))}},
		}}})
		if pong := s.receive().GetPong(); pong.GetNonce() != nonce {
			t.Fatalf("got %v", pong)
		}
	}
	ping(1, newest, 10*time.Second)
	ping(2, older, 5*time.Second)
	ping(3, 0, 20*time.Second)
	want(10*time.Second, 5*time.Second)
	// 3. The rotation is finished: what the older secret did is not said of the newest one.
	finished, err := s.Verbs.FinishRotation(t.Context(), keystest.Actor, &keysvcv1.FinishRotationRequest{WorkspaceId: "acme", KeyId: created.GetKey().GetKeyId()})
	if got := finished.GetKey().GetSecrets(); err != nil || len(got) != 1 || !got[0].GetLastUsedTime().AsTime().Equal(began.Add(10*time.Second)) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestWhoAmITellsRightsAndWhereTheyComeFrom(t *testing.T) {
	identity := holder(access.Validate, "beta", "acme")
	identity.Credential, identity.Rule = "token 7", "callers.yaml:3"
	identity.NotAfter = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)
	identity.Grants.Add(access.Administer, access.All())
	asked := service.NewCallers(service.Errors{Log: slog.New(slog.DiscardHandler)})
	got, err := asked.WhoAmI(callers.NewContext(t.Context(), identity), nil)
	want := &keysvcv1.WhoAmIResponse{
		Name: "limited", Source: "token", Credential: "token 7", Rule: "callers.yaml:3", NotAfter: timestamppb.New(identity.NotAfter),
		Rights: []*keysvcv1.CallerRight{
			{Right: "validate", WorkspaceIds: []string{"acme", "beta"}},
			{Right: "administer", AllWorkspaces: true},
		},
	}
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	local, err := asked.WhoAmI(known(t), nil)
	if err != nil || local.GetNotAfter() != nil || len(local.GetRights()) != len(access.Rights()) {
		t.Errorf("got %v, %v", local, err)
	}
	_, err = asked.WhoAmI(t.Context(), nil)
	refused(t, err, codes.Unauthenticated, "CALLER_UNKNOWN")
}
