package service_test

import (
	"context"
	"crypto/rand"
	"iter"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/validation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	epoch    = "epoch"
	revision = 7
)

var now = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// world is the validation service over a projection of a store that only questions with
// with_details may read.
type world struct {
	t       *testing.T
	service *service.ValidationService
	details *details
	log     *journal
	// projection is what the service decides on; set by start.
	projection *projection.Projection
	// changes are what the store commits.
	changes chan *storage.Committed
	items   []storage.Item
	ids     int
}

// newWorld returns a world with the built-in policy and workspace acme: ann is an owner,
// mia a manager, sue is suspended, rob was removed, and dan's record is damaged. It lasts
// as long as the test; stop ends it before.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t:       t,
		details: &details{records: make(map[string]*storagev1.KeyRecord)},
		log:     &journal{},
		changes: make(chan *storage.Committed),
	}
	w.add(storage.Item{Policy: &storagev1.PolicyRecord{Document: policy.Default().Document()}})
	for _, id := range []string{"acme", "globex"} {
		w.add(storage.Item{Workspace: &storagev1.WorkspaceRecord{WorkspaceId: id, Incarnation: "w"}})
	}
	member := func(id, role string, state storagev1.MemberRecordState) {
		w.add(storage.Item{Member: &storagev1.MemberRecord{
			WorkspaceId: "acme", MemberId: id, Incarnation: "m", WorkspaceIncarnation: "w", Role: role, State: state,
		}})
	}
	member("ann", "owner", storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE)
	member("mia", "manager", storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE)
	member("sue", "owner", storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED)
	member("rob", "owner", storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED)
	w.add(storage.Item{Damaged: &storage.Damaged{WorkspaceID: "acme", MemberID: "dan", Err: &storage.DamagedError{
		Kind: "member", Name: "dan", Problem: "checksum mismatch of the member's record",
	}}})
	return w
}

func (w *world) add(item storage.Item) { w.items = append(w.items, item) }

// key adds a key and returns its id and token.
func (w *world) key(memberID string, edit func(*storagev1.KeyRecord), scopes ...string) (keyID, text string) {
	w.t.Helper()
	w.ids++
	keyID = "Key00000000" + string(rune('A'+w.ids/26)) + string(rune('A'+w.ids%26)) + "000"
	made := w.token(keyID)
	record := &storagev1.KeyRecord{
		KeyId: keyID, WorkspaceId: "acme", MemberId: memberID, WorkspaceIncarnation: "w", MemberIncarnation: "m",
		Sequence: int64(w.ids), Name: "name of " + keyID, Labels: map[string]string{"team": "blue"}, Scopes: scopes,
		Secrets: []*storagev1.SecretRecord{w.secret(made, time.Hour)},
	}
	if edit != nil {
		edit(record)
	}
	w.add(storage.Item{Key: record})
	w.details.records[keyID] = record
	return keyID, made.Reveal()
}

func (w *world) token(keyID string) token.Token {
	w.t.Helper()
	made, err := token.New("scribe", keyID, rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	return made
}

func (w *world) secret(of token.Token, expires time.Duration) *storagev1.SecretRecord {
	w.t.Helper()
	hash, err := of.Hash(token.SchemeVerifier)
	if err != nil {
		w.t.Fatal(err)
	}
	return &storagev1.SecretRecord{Scheme: uint32(hash.Scheme), Hash: hash.Sum[:], ExpireTime: timestamppb.New(now.Add(expires))}
}

// start loads what was added and returns what ends the world.
func (w *world) start() (stop func()) {
	w.t.Helper()
	p := projection.New(&store{world: w}, nil)
	w.projection = p
	if _, err := p.Load(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.service = service.NewValidation(
		validation.New(p, w.details, func() time.Time { return now }),
		service.Errors{Log: slog.New(w.log)},
	)
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	var following sync.WaitGroup
	following.Go(func() { _ = p.Follow(ctx) })
	return func() {
		cancel()
		following.Wait()
	}
}

// validate asks, and fails the test if the RPC does.
func (w *world) validate(request *keysvcv1.ValidateKeyRequest) *keysvcv1.ValidateKeyResponse {
	w.t.Helper()
	response, err := w.service.ValidateKey(known(w.t), request)
	if err != nil {
		w.t.Fatalf("got %v", err)
	}
	return response
}

// store is what the projection sees. Methods that it does not define panic.
type store struct {
	storage.Store

	world *world
}

func (*store) Epoch() string { return epoch }

func (s *store) LocalBarrier() storage.Barrier {
	return storage.Barrier{Revision: s.world.projection.Revision()}
}

func (s *store) Load(_ context.Context, visit func(storage.Item) error) (storage.Position, error) {
	for _, item := range s.world.items {
		if err := visit(item); err != nil {
			return storage.Position{}, err
		}
	}
	return storage.Position{Revision: revision, Time: now}, nil
}

func (s *store) Watch(ctx context.Context, _ storage.Barrier) iter.Seq2[*storage.Committed, error] {
	return func(yield func(*storage.Committed, error) bool) {
		for {
			select {
			case change := <-s.world.changes:
				if !yield(change, nil) {
					return
				}
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			}
		}
	}
}

// details is a validation.DetailsReader that counts.
type details struct {
	// hangs makes every read wait for the end of its context.
	hangs   bool
	reads   int
	records map[string]*storagev1.KeyRecord
	err     error
}

func (d *details) GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error) {
	if d.hangs {
		<-ctx.Done()
		return nil, 0, ctx.Err()
	}
	d.reads++
	record := d.records[keyID]
	if d.err == nil && (record == nil || record.GetWorkspaceId() != workspaceID) {
		return nil, 0, storage.ErrNotFound
	}
	return record, revision, d.err
}

// journal is a slog.Handler that keeps what was logged.
type journal struct {
	mutex   sync.Mutex
	entries []entry
}

type entry struct {
	level   slog.Level
	message string
	cause   string
}

func (*journal) Enabled(context.Context, slog.Level) bool { return true }

func (j *journal) Handle(_ context.Context, record slog.Record) error {
	made := entry{level: record.Level, message: record.Message}
	record.Attrs(func(attribute slog.Attr) bool {
		if attribute.Key == "error" {
			made.cause = attribute.Value.String()
		}
		return true
	})
	j.mutex.Lock()
	defer j.mutex.Unlock()
	j.entries = append(j.entries, made)
	return nil
}

func (j *journal) WithAttrs([]slog.Attr) slog.Handler { return j }
func (j *journal) WithGroup(string) slog.Handler      { return j }

// known returns the context of a call by a caller that may do everything.
func known(t testing.TB) context.Context { return callers.NewContext(t.Context(), callers.Local()) }

// told is what a status tells.
type told struct {
	code    codes.Code
	info    *errdetails.ErrorInfo
	fields  []string
	retry   *errdetails.RetryInfo
	message string
}

// read takes a status apart.
func read(t *testing.T, err error) told {
	t.Helper()
	converted, ok := status.FromError(err)
	if !ok {
		t.Fatalf("%v (%T) is no status", err, err)
	}
	result := told{code: converted.Code(), message: converted.Message()}
	for _, detail := range converted.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			result.info = detail
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				result.fields = append(result.fields, violation.GetField())
			}
		case *errdetails.RetryInfo:
			result.retry = detail
		default:
			t.Errorf("a detail of type %T", detail)
		}
	}
	return result
}

// refused fails unless err is a status with a code, an ErrorInfo with the reason, and
// violations of these fields.
func refused(t *testing.T, err error, code codes.Code, reason string, fields ...string) told {
	t.Helper()
	got := read(t, err)
	if got.code != code || got.info.GetReason() != reason || got.info.GetDomain() != "keysvc" {
		t.Errorf("got %s, %v: %s; want %s, %s", got.code, got.info, got.message, code, reason)
	}
	if len(got.fields) != len(fields) {
		t.Errorf("got violations of %q, want %q", got.fields, fields)
		return got
	}
	for index := range fields {
		if got.fields[index] != fields[index] {
			t.Errorf("got violations of %q, want %q", got.fields, fields)
		}
	}
	return got
}
