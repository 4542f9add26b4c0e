package keyclient_test

import (
	"testing"
	"time"

	"google.golang.org/grpc"

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
	for client.NearCache().Fresh == 0 {
		if time.Now().After(deadline) {
			t.Fatalf("the near-cache has no lease: %+v", client.NearCache())
		}
		time.Sleep(time.Millisecond)
	}
}

// TestNearCacheHits sees that memory answers, and that a revoke ends that at once.
func TestNearCacheHits(t *testing.T) {
	keysvc := servertest.Start(t, servertest.Options{})
	keysvc.PutMember(t, "acme", "ann", "admin")
	keyID, token := keysvc.CreateKey(t, "acme", "ann", "signatures:read")
	counter := &counter{}
	client := newClient(t, keysvc.Address, keyclient.Config{NearCache: true, DialOptions: []grpc.DialOption{counter.option()}})
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

// TestNearCacheWatch sees a watch end with its key.
func TestNearCacheWatch(t *testing.T) {
	keysvc := servertest.Start(t, servertest.Options{})
	keysvc.PutMember(t, "acme", "ann", "admin")
	keyID, token := keysvc.CreateKey(t, "acme", "ann", "signatures:read")
	client := newClient(t, keysvc.Address, keyclient.Config{NearCache: true})
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

// awaiting is a backend whose changes are done once no cache answers from before them.
type awaiting struct {
	*validatortest.Keysvc
	sync keysvcv1.SyncServiceClient
}

func (b awaiting) settle(t testing.TB) {
	t.Helper()
	// Any answer tells the newest revision.
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
	b.settle(t)
}

func (b awaiting) SuspendMember(t testing.TB, workspaceID, memberID, role string) {
	t.Helper()
	b.Keysvc.SuspendMember(t, workspaceID, memberID, role)
	b.settle(t)
}

func (b awaiting) RemoveMember(t testing.TB, workspaceID, memberID string) {
	t.Helper()
	b.Keysvc.RemoveMember(t, workspaceID, memberID)
	b.settle(t)
}

func (b awaiting) CreateKey(t testing.TB, key validatortest.Key) (keyID, token string) {
	t.Helper()
	defer b.settle(t)
	return b.Keysvc.CreateKey(t, key)
}

func (b awaiting) RotateKey(t testing.TB, workspaceID, keyID string, overlap time.Duration) string {
	t.Helper()
	defer b.settle(t)
	return b.Keysvc.RotateKey(t, workspaceID, keyID, overlap)
}

func (b awaiting) RevokeKey(t testing.TB, workspaceID, keyID string) {
	t.Helper()
	b.Keysvc.RevokeKey(t, workspaceID, keyID)
	b.settle(t)
}

// TestNearCacheContract runs the suite with a clock that client and server share.
func TestNearCacheContract(t *testing.T) {
	validatortest.Run(t, func(t *testing.T) validatortest.Backend {
		clock := servertest.NewClock(testTime)
		keysvc := servertest.Start(t, servertest.Options{Now: clock.Now})
		client := newClient(t, keysvc.Address, keyclient.Config{NearCache: true, ValidationTimeout: patience, Now: clock.Now})
		return awaiting{
			Keysvc: &validatortest.Keysvc{Under: client, Keys: keysvc.Keys, Members: keysvc.Members, Clock: clock},
			sync:   keysvcv1.NewSyncServiceClient(keysvc.Conn),
		}
	})
}
