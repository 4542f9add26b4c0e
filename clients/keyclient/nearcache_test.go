package keyclient_test

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/scribe-mail/keysvc/clients/internal/validatortest"
	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// fresh waits until the near-cache may answer from memory.
func fresh(t testing.TB, client *keyclient.Client) {
	t.Helper()
	deadline := time.Now().Add(patience)
	// The session begins with the first question. This one needs no call.
	if _, err := client.Validate(t.Context(), reading("")); err != nil {
		t.Fatal(err)
	}
	for client.NearCache().Fresh == 0 {
		if time.Now().After(deadline) {
			t.Fatalf("the near-cache has no lease: %+v", client.NearCache())
		}
		time.Sleep(time.Millisecond)
	}
}

func TestNearCacheAnswersUntilRevoked(t *testing.T) {
	keysvc := servertest.Start(t, servertest.Options{})
	keysvc.PutMember(t, "acme", "ann", "admin")
	keyID, token := keysvc.CreateKey(t, "acme", "ann", "signatures:read")
	counter := &counter{}
	client := newClient(t, keysvc.Address, keyclient.Config{DialOptions: []grpc.DialOption{counter.option()}})
	fresh(t, client)
	question := keyauth.Question{Token: token, Requirement: keyauth.Scope("signatures:read")}
	for range 100 {
		answer, err := client.Validate(t.Context(), question)
		if err != nil || answer.Decision != keysvcv1.Decision_DECISION_ALLOWED || answer.Principal.KeyID != keyID {
			t.Fatalf("Validate = %+v, %v", answer, err)
		}
	}
	if calls := counter.calls.Load(); calls != 1 {
		t.Errorf("%d calls for 100 validations; want 1", calls)
	}
	revoked, err := keysvc.Keys.RevokeKey(t.Context(), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: keyID})
	if err != nil {
		t.Fatal(err)
	}
	waited, err := keysvcv1.NewSyncServiceClient(keysvc.Conn).AwaitRevision(t.Context(), &keysvcv1.AwaitRevisionRequest{
		Revision: revoked.GetRevision(), Epoch: revoked.GetEpoch(),
	})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Validate(t.Context(), question)
	if err != nil || answer.Reason != keysvcv1.Reason_REASON_KEY_REVOKED {
		t.Fatalf("after AwaitRevision (%v): Validate = %+v, %v", waited, answer, err)
	}
}

func TestNearCacheWatchEndsWithItsKey(t *testing.T) {
	keysvc := servertest.Start(t, servertest.Options{})
	keysvc.PutMember(t, "acme", "ann", "admin")
	keyID, token := keysvc.CreateKey(t, "acme", "ann", "signatures:read")
	client := newClient(t, keysvc.Address, keyclient.Config{})
	fresh(t, client)
	ended := make(chan keyauth.Answer, 1)
	go func() {
		answer, err := client.Watch(t.Context(), keyauth.Question{Token: token, Requirement: keyauth.Scope("signatures:read")})
		if err != nil {
			t.Error(err)
		}
		ended <- answer
	}()
	for client.NearCache().Watches == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := keysvc.Keys.RevokeKey(t.Context(), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: keyID}); err != nil {
		t.Fatal(err)
	}
	if answer := <-ended; answer.Reason != keysvcv1.Reason_REASON_KEY_REVOKED {
		t.Errorf("Watch = %+v", answer)
	}
}

func TestNearCacheEndsStreamsWithTheRefusalOfANewCall(t *testing.T) {
	const method = "/test.v1.Things/Watch"
	for name, test := range map[string]struct {
		// change is made once the stream is open.
		change func(t *testing.T, keysvc *servertest.Keysvc, keyID string)
		want   codes.Code
		// within is the longest time until the stream ends.
		within time.Duration
	}{
		"revoked": {func(t *testing.T, keysvc *servertest.Keysvc, keyID string) {
			if _, err := keysvc.Keys.RevokeKey(t.Context(), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: keyID}); err != nil {
				t.Error(err)
			}
		}, codes.Unauthenticated, 3 * time.Second},
		"beyond the role":  {func(t *testing.T, keysvc *servertest.Keysvc, _ string) { keysvc.PutMember(t, "acme", "ann", "member") }, codes.PermissionDenied, 3 * time.Second},
		"expired":          {func(*testing.T, *servertest.Keysvc, string) {}, codes.Unauthenticated, 4 * time.Second},
		"nothing is known": {func(_ *testing.T, keysvc *servertest.Keysvc, _ string) { keysvc.Stop() }, codes.Unavailable, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			keysvc := servertest.Start(t, servertest.Options{})
			keysvc.PutMember(t, "acme", "ann", "admin")
			made, err := keysvc.Keys.CreateKey(t.Context(), &keysvcv1.CreateKeyRequest{
				WorkspaceId: "acme", MemberId: "ann", Name: "test", Scopes: []string{"signatures:read"},
				ExpireTime: timestamppb.New(time.Now().Add(map[bool]time.Duration{true: 3 * time.Second, false: time.Hour}[name == "expired"])),
			})
			if err != nil {
				t.Fatal(err)
			}
			client := newClient(t, keysvc.Address, keyclient.Config{})
			fresh(t, client)
			guard, err := keyauth.NewGuard(client, keyauth.Config{
				Tables: []keyauth.Table{{method: keyauth.Scope("signatures:read")}}, Log: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			conn := protected(t, guard)
			ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+made.GetToken())
			stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(stream.SendMsg(&keysvcv1.SyncMark{}), stream.CloseSend(), stream.RecvMsg(&keysvcv1.SyncMark{})); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			test.change(t, keysvc, made.GetKey().GetKeyId())
			err = stream.RecvMsg(&keysvcv1.SyncMark{})
			if passed := time.Since(began); status.Code(err) != test.want || passed > test.within {
				t.Errorf("the stream ended with %v after %s; want %s within %s", err, passed, test.want, test.within)
			}
		})
	}
}

// protected serves streams behind a Guard. They answer once and then stay open.
func protected(t *testing.T, guard *keyauth.Guard) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.StreamInterceptor(guard.StreamServerInterceptor()), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if err := errors.Join(stream.RecvMsg(&keysvcv1.SyncMark{}), stream.SendMsg(&keysvcv1.SyncMark{})); err != nil {
			return err
		}
		<-stream.Context().Done()
		return nil
	}))
	go server.Serve(listener) // it ends with Stop
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(bufferedTarget, dialer(listener, new(atomic.Int64)), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A key that is answered from memory alone still gets a last-used time (rule 9).
func TestNearCacheReportsUses(t *testing.T) {
	keysvc := servertest.Start(t, servertest.Options{})
	keysvc.PutMember(t, "acme", "ann", "admin")
	keyID, token := keysvc.CreateKey(t, "acme", "ann", "signatures:read")
	counter := &counter{}
	client := newClient(t, keysvc.Address, keyclient.Config{DialOptions: []grpc.DialOption{counter.option()}})
	fresh(t, client)
	lastUsed := func() time.Time {
		listed, err := keysvc.Keys.ListKeys(t.Context(), &keysvcv1.ListKeysRequest{WorkspaceId: "acme"})
		if err != nil || len(listed.GetKeys()) != 1 || listed.GetKeys()[0].GetKeyId() != keyID {
			t.Fatalf("ListKeys = %v, %v", listed, err)
		}
		return listed.GetKeys()[0].GetLastUsedTime().AsTime()
	}
	question := keyauth.Question{Token: token, Requirement: keyauth.Scope("signatures:read")}
	if _, err := client.Validate(t.Context(), question); err != nil {
		t.Fatal(err)
	}
	first := lastUsed()
	for deadline := time.Now().Add(patience); !lastUsed().After(first.Add(time.Second)); time.Sleep(10 * time.Millisecond) {
		if _, err := client.Validate(t.Context(), question); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("last used at %s, and used since then", lastUsed())
		}
	}
	if calls := counter.calls.Load(); calls > 3 {
		t.Errorf("%d calls; memory was to answer", calls)
	}
}

// awaiting is a backend whose changes return once the answers of all caches reflect them.
type awaiting struct {
	*validatortest.Keysvc
	sync keysvcv1.SyncServiceClient
}

// await waits until the answers of all caches reflect the newest revision.
func (b awaiting) await(t testing.TB) {
	t.Helper()
	// Every answer has the newest revision.
	read, err := b.Keys.ListKeys(t.Context(), &keysvcv1.ListKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.sync.AwaitRevision(t.Context(), &keysvcv1.AwaitRevisionRequest{Revision: read.GetRevision(), Epoch: read.GetEpoch()}); err != nil {
		t.Fatal(err)
	}
}

func (b awaiting) PutMember(t testing.TB, workspaceID, memberID, role string) {
	t.Helper()
	b.Keysvc.PutMember(t, workspaceID, memberID, role)
	b.await(t)
}

func (b awaiting) SuspendMember(t testing.TB, workspaceID, memberID, role string) {
	t.Helper()
	b.Keysvc.SuspendMember(t, workspaceID, memberID, role)
	b.await(t)
}

func (b awaiting) RemoveMember(t testing.TB, workspaceID, memberID string) {
	t.Helper()
	b.Keysvc.RemoveMember(t, workspaceID, memberID)
	b.await(t)
}

func (b awaiting) CreateKey(t testing.TB, key validatortest.Key) (keyID, token string) {
	t.Helper()
	defer b.await(t)
	return b.Keysvc.CreateKey(t, key)
}

func (b awaiting) RotateKey(t testing.TB, workspaceID, keyID string, overlap time.Duration) string {
	t.Helper()
	defer b.await(t)
	return b.Keysvc.RotateKey(t, workspaceID, keyID, overlap)
}

func (b awaiting) RevokeKey(t testing.TB, workspaceID, keyID string) {
	t.Helper()
	b.Keysvc.RevokeKey(t, workspaceID, keyID)
	b.await(t)
}

// Client and server share a clock.
func TestNearCacheKeepsTheContract(t *testing.T) {
	validatortest.Run(t, func(t *testing.T) validatortest.Backend {
		clock := servertest.NewClock(testTime)
		keysvc := servertest.Start(t, servertest.Options{Now: clock.Now})
		client := newClient(t, keysvc.Address, keyclient.Config{ValidationTimeout: patience, Now: clock.Now})
		return awaiting{
			Keysvc: &validatortest.Keysvc{Under: client, Keys: keysvc.Keys, Members: keysvc.Members, Clock: clock},
			sync:   keysvcv1.NewSyncServiceClient(keysvc.Conn),
		}
	})
}

// TestNearCacheShowsTheNewNameOfAKey: the details that are kept with a grant end with an event of the key.
func TestNearCacheShowsTheNewNameOfAKey(t *testing.T) {
	keysvc := servertest.Start(t, servertest.Options{})
	keysvc.PutMember(t, "acme", "ann", "admin")
	keyID, token := keysvc.CreateKey(t, "acme", "ann", "signatures:read")
	counter := &counter{}
	client := newClient(t, keysvc.Address, keyclient.Config{DialOptions: []grpc.DialOption{counter.option()}})
	fresh(t, client)
	ask := func(details bool) keyauth.Principal {
		t.Helper()
		answer, err := client.Validate(t.Context(), keyauth.Question{Token: token, Requirement: keyauth.IdentityOnly(), WithDetails: details})
		if err != nil || answer.Principal == nil {
			t.Fatalf("Validate = %+v, %v", answer, err)
		}
		return *answer.Principal
	}
	if lean := ask(false); lean.KeyName != "" || lean.Scopes != nil || !lean.ExpireTime.IsZero() {
		t.Errorf("details that nobody asked for: %+v", lean)
	}
	before := ask(true)
	if before.KeyName == "" || len(before.Scopes) != 1 || before.ExpireTime.IsZero() {
		t.Errorf("no details: %+v", before)
	}
	calls := counter.calls.Load()
	if again := ask(true); again.KeyName != before.KeyName || counter.calls.Load() != calls {
		t.Errorf("%+v, %d calls more", again, counter.calls.Load()-calls)
	}
	if lean := ask(false); lean.KeyName != "" || lean.Scopes != nil || !lean.ExpireTime.IsZero() {
		t.Errorf("details that nobody asked for, from memory: %+v", lean)
	}
	renamed, err := keysvc.Keys.UpdateKey(t.Context(), &keysvcv1.UpdateKeyRequest{
		Key: &keysvcv1.Key{WorkspaceId: "acme", KeyId: keyID, Name: "renamed"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keysvcv1.NewSyncServiceClient(keysvc.Conn).AwaitRevision(t.Context(), &keysvcv1.AwaitRevisionRequest{
		Revision: renamed.GetRevision(), Epoch: renamed.GetEpoch(),
	}); err != nil {
		t.Fatal(err)
	}
	if after := ask(true); after.KeyName != "renamed" {
		t.Errorf("after AwaitRevision: %+v", after)
	}
}
