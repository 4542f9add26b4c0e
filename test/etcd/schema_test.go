package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// followed returns a projection of a store, and what its Follow returns.
func followed(t *testing.T, store storage.Store) (*projection.Projection, <-chan error) {
	t.Helper()
	follower, ended := projection.New(store, nil), make(chan error, 1)
	if _, err := follower.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- follower.Follow(t.Context()) }()
	return follower, ended
}

// endedBy returns what a Follow ended with. It fails the test if Follow goes on.
func endedBy(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(30 * time.Second): // it takes milliseconds
		t.Fatal("Follow goes on")
		return nil
	}
}

// TestSchemaIsRaisedOnceAndNewerOnesEndAProcess raises the schema as the command does, and then beyond what this
// version knows: then a process that serves ends without showing the change, and none opens the store.
func TestSchemaIsRaisedOnceAndNewerOnesEndAProcess(t *testing.T) {
	client, prefix := newClient(t), newPrefix()
	open := func() (*etcdstore.Store, error) {
		return etcdstore.New(t.Context(), etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
	}
	store, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	shown, ended := followed(t, store)
	actor := audit.Actor{Caller: "test", Workspaces: access.All()}
	manager := keys.New(keys.Config{Store: store, Projection: shown})
	if _, err := manager.InstallPolicy(t.Context(), actor, policy.Default()); err != nil {
		t.Fatal(err)
	}
	if _, err := manager.InstallSettings(t.Context(), actor, time.Second); err != nil {
		t.Fatal(err)
	}
	for _, before := range []int32{storage.SchemaIntegrity, storage.Newest} {
		if got, _, err := manager.FinishUpgrade(t.Context(), actor, 0); err != nil || got != before {
			t.Fatalf("FinishUpgrade: from schema %d, %v; want %d", got, err, before)
		}
	}
	settings, _, err := store.GetSettings(t.Context())
	if err != nil || settings.GetSchema() != storage.Newest || settings.GetStaleness().AsDuration() != time.Second {
		t.Fatalf("the settings are %v, %v", settings, err)
	}
	again, err := open()
	if err != nil {
		t.Fatalf("opening a store of schema %d: %v", storage.Newest, err)
	}
	_ = again.Close()

	head := shown.Workspace("").Head
	change := storagetest.PutSettings(head, time.Second)
	change.PutSettings.Schema = storage.Newest + 1
	revision, err := store.Commit(t.Context(), change)
	if err != nil {
		t.Fatal(err)
	}
	if err := endedBy(t, ended); !errors.Is(err, storage.ErrNewer) {
		t.Errorf("Follow ended with %v, want ErrNewer", err)
	}
	if shown.Revision() >= revision {
		t.Error("the change is shown")
	}
	if _, err := projection.New(store, nil).Load(t.Context()); !errors.Is(err, storage.ErrNewer) {
		t.Errorf("Load: %v, want ErrNewer", err)
	}
	if _, err := open(); !errors.Is(err, storage.ErrNewer) {
		t.Errorf("New: %v, want ErrNewer", err)
	}
}

// TestRecordThatNeedsANewerSchemaIsDamaged stores a key that needs more than this version knows: nobody decides on it, and
// nobody replaces it.
func TestRecordThatNeedsANewerSchemaIsDamaged(t *testing.T) {
	client, prefix := newClient(t), newPrefix()
	store, err := etcdstore.New(t.Context(), etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	watching, _ := followed(t, store)
	workspace := &storagetest.Workspace{ID: "acme"}
	commit := func(change *storage.Change) int64 {
		t.Helper()
		revision, err := store.Commit(t.Context(), change)
		if err != nil {
			t.Fatal(err)
		}
		workspace.Head = storagetest.After(change)
		return revision
	}
	commit(workspace.PutMember("member", "owner"))
	const keyID = "Key0000000000001"
	create := workspace.CreateKey(keyID)
	create.PutKeys[0].MinSchema = storage.Newest + 1
	revision := commit(create)
	waiting, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := watching.WaitFor(waiting, revision); err != nil {
		t.Fatal(err)
	}
	loaded := projection.New(store, nil)
	if _, err := loaded.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, reader := range map[string]*projection.Projection{"watching": watching, "loaded": loaded} {
		if found := reader.Find(keyID); !errors.Is(found.Damaged, storage.ErrDamaged) || found.Exists {
			t.Errorf("%s: the key is found as %+v", name, found)
		}
	}
	if _, _, err := store.GetKey(t.Context(), "acme", keyID); !errors.Is(err, storage.ErrDamaged) || !strings.Contains(err.Error(), "this version knows up to") {
		t.Errorf("GetKey: %v", err)
	}
	remove := workspace.DeleteKey(create.PutKeys[0])
	if _, err := store.Commit(t.Context(), remove); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("deleting it: %v, want ErrDamaged", err)
	}
}

// TestServerDecidesNothingOnWhatItDoesNotKnow: a record asks for more than this version knows. Nothing is decided
// on it, whether it comes while a server runs or is there when one starts.
func TestServerDecidesNothingOnWhatItDoesNotKnow(t *testing.T) {
	for _, kind := range []storagev1.RecordKind{
		storagev1.RecordKind_RECORD_KIND_KEY, storagev1.RecordKind_RECORD_KIND_MEMBER,
		storagev1.RecordKind_RECORD_KIND_WORKSPACE, storagev1.RecordKind_RECORD_KIND_POLICY,
	} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			settings := settingsFor(t, newPrefix(), endpoints...)
			server := mustServe(t, settings)
			other := open(t, etcdstore.Config{Members: newClients(t), Prefix: settings.EtcdPrefix})
			if _, err := keysvcv1.NewMemberServiceClient(server).PutMember(t.Context(), &keysvcv1.PutMemberRequest{
				WorkspaceId: "acme", MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
			}); err != nil {
				t.Fatal(err)
			}
			made, err := keysvcv1.NewKeyServiceClient(server).CreateKey(t.Context(), &keysvcv1.CreateKeyRequest{
				WorkspaceId: "acme", MemberId: "ann", Name: "key", Scopes: []string{"signatures:read"},
			})
			if err != nil {
				t.Fatal(err)
			}
			validate := func() (*keysvcv1.ValidateKeyResponse, error) {
				return keysvcv1.NewValidationServiceClient(server).ValidateKey(t.Context(), &keysvcv1.ValidateKeyRequest{Token: made.GetToken(), IdentityOnly: true})
			}
			for _, schema := range []uint32{storage.Newest, storage.Newest + 1} {
				if response, err := validate(); err != nil || response.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
					t.Fatalf("before schema %d is needed: %v, %v", schema, response, err)
				}
				change, err := storagetest.NeedSchema(t.Context(), other, "acme", kind, schema)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := other.Commit(t.Context(), change); err != nil {
					t.Fatal(err)
				}
			}
			if response, err := validate(); status.Code(err) != codes.DataLoss {
				t.Errorf("it came: %v, %v; want DATA_LOSS", response, err)
			}
			server.end()
			settings.Init = false
			if kind == storagev1.RecordKind_RECORD_KIND_POLICY {
				fails(t, settings, "needs schema")
				return
			}
			server = mustServe(t, settings)
			if response, err := validate(); status.Code(err) != codes.DataLoss {
				t.Errorf("it was there: %v, %v; want DATA_LOSS", response, err)
			}
		})
	}
}

// TestSettingsThatNeedANewerSchemaEndAProcess: no record is written before the schema that it needs is in force, so the
// store was raised, even if the process cannot read to which schema.
func TestSettingsThatNeedANewerSchemaEndAProcess(t *testing.T) {
	store := open(t, etcdstore.Config{Members: newClients(t), Prefix: newPrefix()})
	shown, ended := followed(t, store)
	manager := keys.New(keys.Config{Store: store, Projection: shown})
	actor := audit.Actor{Caller: "test", Workspaces: access.All()}
	if _, err := manager.InstallPolicy(t.Context(), actor, policy.Default()); err != nil {
		t.Fatal(err)
	}
	if _, err := manager.InstallSettings(t.Context(), actor, time.Second); err != nil {
		t.Fatal(err)
	}
	if _, _, err := manager.FinishUpgrade(t.Context(), actor, storage.Newest+1); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("is %d, and not %d", storage.Newest, storage.Newest+1)) {
		t.Errorf("raising the schema to one that this version does not know: %v", err)
	}
	change := storagetest.PutSettings(shown.Workspace("").Head, time.Second)
	change.PutSettings.MinSchema = storage.Newest + 1
	if _, err := store.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	if err := endedBy(t, ended); !errors.Is(err, storage.ErrNewer) {
		t.Errorf("Follow ended with %v, want ErrNewer", err)
	}
	if _, err := projection.New(store, nil).Load(t.Context()); !errors.Is(err, storage.ErrNewer) {
		t.Errorf("Load: %v, want ErrNewer", err)
	}
}

// TestExportOfARaisedStoreHasItsSchema: what is copied into a file may hold records that an older version does not know.
func TestExportOfARaisedStoreHasItsSchema(t *testing.T) {
	config := etcdstore.Config{Members: newClients(t), Prefix: newPrefix()}
	store := open(t, config)
	shown, _ := followed(t, store)
	manager := keys.New(keys.Config{Store: store, Projection: shown})
	actor := audit.Actor{Caller: "test", Workspaces: access.All()}
	if _, err := manager.InstallPolicy(t.Context(), actor, policy.Default()); err != nil {
		t.Fatal(err)
	}
	if _, err := manager.InstallSettings(t.Context(), actor, time.Second); err != nil {
		t.Fatal(err)
	}
	before, err := etcdstore.OpenExport(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = before.Close() }()
	if origin, err := before.Origin(t.Context()); err != nil || origin.Schema != storage.Schema {
		t.Errorf("before: schema %d, %v", origin.Schema, err)
	}
	if _, _, err := manager.FinishUpgrade(t.Context(), actor, storage.Newest); err != nil {
		t.Fatal(err)
	}
	if origin, err := before.Origin(t.Context()); err != nil || origin.Schema != storage.Newest {
		t.Errorf("after: schema %d, %v; want %d", origin.Schema, err, storage.Newest)
	}
}
