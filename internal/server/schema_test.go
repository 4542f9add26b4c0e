package server_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// expectDataLoss checks that nothing is decided about a token.
func (b *bench) expectDataLoss(t *testing.T, token string) {
	t.Helper()
	for _, request := range []*keysvcv1.ValidateKeyRequest{
		{Token: token, RequiredScope: "signatures:read"}, {Token: token, IdentityOnly: true}, {Token: token, IncludeGrant: true, IdentityOnly: true},
	} {
		response, err := b.validation.ValidateKey(testContext(t), request)
		if info := detailsOf(t, err).info; status.Code(err) != codes.DataLoss || info.GetReason() != "RECORD_DAMAGED" {
			t.Errorf("got %s, %v; want DATA_LOSS", response.GetDecision(), err)
		}
	}
}

// TestRecordThatNeedsANewerSchemaIsDataLoss: a record in a file asks for more than this version knows. Nothing is
// decided on it, whether it comes while the server runs or is there when the server starts.
func TestRecordThatNeedsANewerSchemaIsDataLoss(t *testing.T) {
	t.Parallel()
	for _, kind := range []storagev1.RecordKind{
		storagev1.RecordKind_RECORD_KIND_KEY, storagev1.RecordKind_RECORD_KIND_MEMBER,
		storagev1.RecordKind_RECORD_KIND_WORKSPACE, storagev1.RecordKind_RECORD_KIND_POLICY,
	} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			file, token := filepath.Join(t.TempDir(), "keysvc.db"), ""
			t.Run("it comes", func(t *testing.T) {
				b := start(t, options{file: file})
				b.putMember(t, "acme", "ann", "owner")
				token = b.create(t, "acme", "ann", "signatures:read").GetToken()
				for _, schema := range []uint32{storage.Newest, storage.Newest + 1} {
					b.expectAllowed(t, token, "signatures:read")
					change, err := storagetest.NeedSchema(testContext(t), b.store, "acme", kind, schema)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := b.store.Commit(testContext(t), change); err != nil {
						t.Fatal(err)
					}
				}
				b.expectDataLoss(t, token)
			})
			t.Run("it is there", func(t *testing.T) {
				if kind == storagev1.RecordKind_RECORD_KIND_POLICY {
					expectNoStart(t, file)
					return
				}
				b := start(t, options{file: file, clock: &testClock{now: testTime.Add(time.Hour)}})
				b.expectDataLoss(t, token)
			})
		})
	}
}

// expectNoStart checks that the store of a file cannot be loaded, as a start does.
func expectNoStart(t *testing.T, file string) {
	t.Helper()
	store, err := boltstore.Open(file, boltstore.Config{Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := projection.New(store, nil).Load(testContext(t)); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("loading the store: %v, want ErrDamaged", err)
	}
}

// TestStatusHasTheSchemaOfAFile: a file has a schema as well, which its header says.
func TestStatusHasTheSchemaOfAFile(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	got := b.status(t)
	if got.GetSchema() != storage.Schema || got.GetNewestSchema() != storage.Newest || got.GetStoreKind() != "bbolt" {
		t.Errorf("schema %d of %d, %q; want %d of %d", got.GetSchema(), got.GetNewestSchema(), got.GetStoreKind(), storage.Schema, storage.Newest)
	}
}
