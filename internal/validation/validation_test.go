package validation_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/usage"
	"github.com/scribe-mail/keysvc/internal/validation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	keyID    = "Key0000000000001"
	revision = 7
)

var (
	now      = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)
	identity = decide.Requirement{IdentityOnly: true}
	reading  = decide.Requirement{Scope: "emails:read"}
)

// memory is a store with the methods that validations need. All other methods panic.
type memory struct {
	storage.Store

	items []storage.Item
	uses  []storage.Usage
}

func (*memory) Epoch() string { return "epoch" }

func (*memory) Barrier(context.Context) (storage.Barrier, error) {
	return storage.Barrier{Revision: revision}, nil
}

func (*memory) LocalBarrier() storage.Barrier { return storage.Barrier{Revision: revision} }

func (m *memory) Load(_ context.Context, visit func(storage.Item) error) (storage.Position, error) {
	for _, item := range m.items {
		if err := visit(item); err != nil {
			return storage.Position{}, err
		}
	}
	return storage.Position{Revision: revision, Time: now}, nil
}

func (m *memory) PutUsage(_ context.Context, uses []storage.Usage) error {
	m.uses = append(m.uses, uses...)
	return nil
}

// details is a DetailsReader that notes each read.
type details struct {
	asked  []string
	record *storagev1.KeyRecord
	err    error
}

func (d *details) GetKey(_ context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error) {
	d.asked = append(d.asked, workspaceID+"/"+keyID)
	return d.record, revision + 3, d.err
}

// newMemory returns a store with one key, of acme's ann, and the key's token.
func newMemory(t testing.TB) (*memory, string) {
	t.Helper()
	made, err := token.New("scribe", keyID, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := made.Hash(token.SchemeVerifier)
	if err != nil {
		t.Fatal(err)
	}
	return &memory{items: []storage.Item{
		{Policy: &storagev1.PolicyRecord{Document: policy.Default().Document()}},
		{Workspace: &storagev1.WorkspaceRecord{WorkspaceId: "acme", Incarnation: "w"}},
		{Member: &storagev1.MemberRecord{
			WorkspaceId: "acme", MemberId: "ann", Incarnation: "m", WorkspaceIncarnation: "w", Role: "manager",
			State: storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE,
		}},
		{Key: &storagev1.KeyRecord{
			KeyId: keyID, WorkspaceId: "acme", MemberId: "ann", WorkspaceIncarnation: "w", MemberIncarnation: "m", Sequence: 2,
			Scopes:  []string{"emails:read", "financial_documents:read"},
			Secrets: []*storagev1.SecretRecord{{Scheme: uint32(hash.Scheme), Hash: hash.Sum[:], ExpireTime: timestamppb.New(now.Add(time.Hour))}},
		}},
	}}, made.Reveal()
}

func load(t testing.TB, store storage.Store) *projection.Projection {
	t.Helper()
	p := projection.New(store, nil)
	if _, err := p.Load(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	return p
}

func newValidator(t testing.TB) (*validation.Validator, *details, string) {
	t.Helper()
	store, text := newMemory(t)
	reader := &details{record: &storagev1.KeyRecord{KeyId: keyID, Name: "my key"}}
	return validation.New(load(t, store), reader, func() time.Time { return now }), reader, text
}

func TestOnlyAllowedAnswersHaveAGrant(t *testing.T) {
	v, reader, text := newValidator(t)
	want := validation.Answer{
		Decision: decide.Allowed,
		KeyID:    keyID,
		Grant: decide.Grant{
			Principal:  decide.Principal{KeyID: keyID, WorkspaceID: "acme", MemberID: "ann", Role: "manager"},
			Granted:    decide.Scopes{"emails:read", "financial_documents:read"},
			HoldsUntil: now.Add(time.Hour).UnixNano(),
		},
		Now:      now,
		Revision: revision,
	}
	check := func(t *testing.T, got validation.Answer, err error, want validation.Answer) {
		t.Helper()
		got.Grant.Role = nil // the policy's test says what it is
		if (got.Grant.Secret != token.ShortHash{}) != (got.Decision == decide.Allowed) {
			t.Errorf("decision %d, and the secret in the grant is %v", got.Decision, got.Grant.Secret != token.ShortHash{})
		}
		got.Grant.Secret = token.ShortHash{}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	t.Run("allowed", func(t *testing.T) {
		got, err := v.Validate(t.Context(), validation.Question{Workspaces: access.All(), Token: text, Requirement: reading, WorkspaceID: "acme"})
		check(t, got, err, want)
	})
	t.Run("details", func(t *testing.T) {
		want := want
		want.Details = reader.record
		got, err := v.Validate(t.Context(), validation.Question{Workspaces: access.All(), Token: text, Requirement: identity, WithDetails: true})
		check(t, got, err, want)
		if !reflect.DeepEqual(reader.asked, []string{"acme/" + keyID}) {
			t.Errorf("read %q", reader.asked)
		}
	})
	refused := func(name string, question validation.Question, decision decide.Decision, reason decide.Reason, keyID string, missing ...string) {
		t.Run(name, func(t *testing.T) {
			question.WithDetails = true
			before := len(reader.asked)
			got, err := v.Validate(t.Context(), question)
			// No grant, not even a part of one.
			check(t, got, err, validation.Answer{Decision: decision, Reason: reason, KeyID: keyID, Missing: missing, Now: now, Revision: revision})
			if len(reader.asked) != before {
				t.Errorf("read %q", reader.asked[before:])
			}
		})
	}
	refused("garbage", validation.Question{Workspaces: access.All(), Token: "hello", Requirement: identity}, decide.Unauthenticated, decide.KeyInvalid, "")
	refused("no token", validation.Question{Workspaces: access.All(), Requirement: reading}, decide.Unauthenticated, decide.KeyInvalid, "")
	refused("other workspace", validation.Question{Workspaces: access.All(), Token: text, Requirement: identity, WorkspaceID: "globex"},
		decide.Unauthenticated, decide.KeyInvalid, "")
	refused("not granted", validation.Question{Workspaces: access.All(), Token: text, Requirement: decide.Requirement{Scope: "emails:write"}},
		decide.PermissionDenied, decide.ScopeNotGranted, keyID, "emails:write")
	refused("beyond role", validation.Question{Workspaces: access.All(), Token: text, Requirement: decide.Requirement{Scope: "financial_documents:read"}},
		decide.PermissionDenied, decide.ScopeBeyondRole, keyID, "financial_documents:read")
}

func TestUnknownScopeIsAnErrorWithAnyToken(t *testing.T) {
	v, _, text := newValidator(t)
	for _, presented := range []string{text, "", "garbage"} {
		for _, requirement := range []decide.Requirement{{}, {Scope: "emails:fly"}, {Scope: "*"}} {
			t.Run(fmt.Sprintf("%.6q %q", presented, requirement.Scope), func(t *testing.T) {
				answer, err := v.Validate(t.Context(), validation.Question{Workspaces: access.All(), Token: presented, Requirement: requirement})
				var told *problem.Error
				if !errors.As(err, &told) || told.Reason != keysvcv1.ErrorReason_ERROR_REASON_SCOPE_UNKNOWN {
					t.Errorf("got %+v, %v", answer, err)
				}
				if answer.Decision != decide.Unspecified {
					t.Errorf("got decision %d", answer.Decision)
				}
			})
		}
	}
}

// TestWithoutPolicyOrRecordThereIsNoDecision: without a policy, and for a damaged record, there is an error
// and no decision.
func TestWithoutPolicyOrRecordThereIsNoDecision(t *testing.T) {
	whole, text := newMemory(t)
	damage := &storage.DamagedError{Kind: "it", Name: "x", Problem: "checksum mismatch"}
	for _, test := range []struct {
		name  string
		items []storage.Item
		want  error
	}{
		{"empty store", nil, storage.ErrUnavailable},
		{"no policy", whole.items[1:], storage.ErrUnavailable},
		{"workspace damaged", append([]storage.Item{
			whole.items[0], {Damaged: &storage.Damaged{WorkspaceID: "acme", Err: damage}},
		}, whole.items[2:]...), storage.ErrDamaged},
		{"member damaged", append(append([]storage.Item(nil), whole.items[:2]...),
			storage.Item{Damaged: &storage.Damaged{WorkspaceID: "acme", MemberID: "ann", Err: damage}}, whole.items[3]), storage.ErrDamaged},
		{"key damaged", append(append([]storage.Item(nil), whole.items[:3]...),
			storage.Item{Damaged: &storage.Damaged{WorkspaceID: "acme", KeyID: keyID, Err: damage}}), storage.ErrDamaged},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := validation.New(load(t, &memory{items: test.items}), nil, func() time.Time { return now })
			answer, err := v.Validate(t.Context(), validation.Question{Workspaces: access.All(), Token: text, Requirement: identity})
			if !errors.Is(err, test.want) || !reflect.DeepEqual(answer, validation.Answer{}) {
				t.Errorf("got %+v, %v; want %v", answer, err, test.want)
			}
		})
	}
}

func TestDetailsThatCannotBeReadAreAnError(t *testing.T) {
	other := errors.New("other")
	for _, test := range []struct{ err, want error }{
		{storage.ErrNotFound, storage.ErrUnavailable},
		{fmt.Errorf("reading: %w", storage.ErrNotFound), storage.ErrUnavailable},
		{storage.ErrDamaged, storage.ErrDamaged},
		{other, other},
	} {
		v, reader, text := newValidator(t)
		reader.err = test.err
		answer, err := v.Validate(t.Context(), validation.Question{Workspaces: access.All(), Token: text, Requirement: identity, WithDetails: true})
		if !errors.Is(err, test.want) || !reflect.DeepEqual(answer, validation.Answer{}) {
			t.Errorf("%v: got %+v, %v", test.err, answer, err)
		}
	}
}

// TestOnlyAllowedValidationsAreRecorded: refusals and errors do not change the last-used time.
func TestOnlyAllowedValidationsAreRecorded(t *testing.T) {
	store, text := newMemory(t)
	p := load(t, store)
	reader := &details{err: storage.ErrUnavailable}
	moment := now
	v := validation.New(p, reader, func() time.Time { return moment })
	recorder := usage.NewRecorder(store, nil)
	v.RecordTo(recorder)
	for _, question := range []validation.Question{
		{Token: "garbage", Requirement: identity},
		{Token: text, Requirement: identity, WorkspaceID: "globex"},
		{Token: text, Requirement: decide.Requirement{Scope: "emails:write"}},
		{Token: text, Requirement: decide.Requirement{Scope: "emails:fly"}},
		{Token: text, Requirement: identity, WithDetails: true}, // the answer is an error
		{Token: text, Requirement: identity, MinRevision: 1, Epoch: "other"},
	} {
		question.Workspaces = access.All()
		_, _ = v.Validate(t.Context(), question)
	}
	if got := p.LastUsed(keyID); !got.IsZero() {
		t.Errorf("last used at %s, though never allowed", got)
	}
	for range 3 {
		moment = moment.Add(time.Second)
		if _, err := v.Validate(t.Context(), validation.Question{Workspaces: access.All(), Token: text, Requirement: reading}); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.LastUsed(keyID); !got.Equal(moment) {
		t.Errorf("last used at %s, want %s", got, moment)
	}
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []storage.Usage{{KeyID: keyID, Time: moment}}; !reflect.DeepEqual(store.uses, want) {
		t.Errorf("written: %v, want %v", store.uses, want)
	}
}

func TestMinRevisionIsWaitedForWithinASecond(t *testing.T) {
	for _, test := range []struct {
		name     string
		question validation.Question
		reason   keysvcv1.ErrorReason
		takes    time.Duration
	}{
		{"reached", validation.Question{Workspaces: access.All(), MinRevision: revision, Epoch: "epoch"}, 0, 0},
		{"not reached", validation.Question{Workspaces: access.All(), MinRevision: revision + 1, Epoch: "epoch"}, keysvcv1.ErrorReason_ERROR_REASON_REVISION_NOT_REACHED, time.Second},
		{"other epoch", validation.Question{Workspaces: access.All(), MinRevision: 1, Epoch: "other"}, keysvcv1.ErrorReason_ERROR_REASON_EPOCH_MISMATCH, 0},
		{"no epoch", validation.Question{Workspaces: access.All(), MinRevision: 1}, keysvcv1.ErrorReason_ERROR_REASON_EPOCH_MISMATCH, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, _, text := newValidator(t)
				begin := time.Now()
				test.question.Token, test.question.Requirement = text, identity
				answer, err := v.Validate(t.Context(), test.question)
				if took := time.Since(begin); took != test.takes {
					t.Errorf("it took %s", took)
				}
				var told *problem.Error
				errors.As(err, &told)
				if test.reason == 0 && (err != nil || answer.Decision != decide.Allowed) ||
					test.reason != 0 && (told == nil || told.Reason != test.reason || answer.Decision != decide.Unspecified) {
					t.Errorf("got %+v, %v", answer, err)
				}
			})
		})
	}
}

// TestQuestionsOfOneCallShareOneWait: two questions of one call wait no longer than one.
func TestQuestionsOfOneCallShareOneWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _, text := newValidator(t)
		ctx, cancel := validation.Together(t.Context())
		defer cancel()
		begin := time.Now()
		for _, question := range []struct {
			revision int64
			reached  bool
		}{{revision + 1, false}, {revision + 1, false}, {revision, true}, {revision + 2, false}} {
			_, err := v.Validate(ctx, validation.Question{Workspaces: access.All(), Token: text, Requirement: identity, MinRevision: question.revision, Epoch: "epoch"})
			if (err == nil) != question.reached {
				t.Errorf("revision %d: got %v", question.revision, err)
			}
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("it took %s, want a second", took)
		}
	})
}

// TestDefaultClockIsTheSystems: the test's key may have expired by that clock, so only the time of the answer
// is compared.
func TestDefaultClockIsTheSystems(t *testing.T) {
	store, text := newMemory(t)
	before := time.Now()
	answer, err := validation.New(load(t, store), nil, nil).Validate(t.Context(), validation.Question{Workspaces: access.All(), Token: text, Requirement: identity})
	if err != nil || answer.Now.Before(before) || answer.Now.After(time.Now()) {
		t.Errorf("got %+v, %v", answer, err)
	}
}

func questions(text string) map[string]validation.Question {
	unknown, _ := token.New("scribe", "Key0000000000999", rand.Reader)
	wrong, _ := token.New("scribe", keyID, rand.Reader)
	return map[string]validation.Question{
		"hit":          {Workspaces: access.All(), Token: text, Requirement: reading, WorkspaceID: "acme", Address: netip.MustParseAddr("192.0.2.1")},
		"miss":         {Workspaces: access.All(), Token: unknown.Reveal(), Requirement: reading, WorkspaceID: "acme"},
		"wrong secret": {Workspaces: access.All(), Token: wrong.Reveal(), Requirement: reading, WorkspaceID: "acme"},
		"malformed":    {Workspaces: access.All(), Token: "garbage_ksk1_", Requirement: reading, WorkspaceID: "acme"},
		"foreign":      {Workspaces: access.All(), Token: "garbage", Requirement: reading, WorkspaceID: "acme"},
	}
}

func TestValidateAllocatesNothing(t *testing.T) {
	v, _, text := newValidator(t)
	v.RecordTo(usage.NewRecorder(&memory{}, nil))
	most := map[string]float64{"foreign": 1} // its digest; the digests of clients lie in their messages
	for name, question := range questions(text) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			if allocations := testing.AllocsPerRun(1000, func() { _, _ = v.Validate(ctx, question) }); allocations > most[name] {
				t.Errorf("%v allocations", allocations)
			}
		})
	}
}

func BenchmarkValidate(b *testing.B) {
	v, _, text := newValidator(b)
	v.RecordTo(usage.NewRecorder(&memory{}, nil))
	for name, question := range questions(text) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			ctx := b.Context()
			for b.Loop() {
				if _, err := v.Validate(ctx, question); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// neverRead is a DetailsReader that must not be asked.
type neverRead struct{ t *testing.T }

func (n neverRead) GetKey(context.Context, string, string) (*storagev1.KeyRecord, int64, error) {
	n.t.Error("the store was read")
	return nil, 0, storage.ErrNotFound
}

// TestLimitedCallersValidateInTheirWorkspacesOnly: everything else is refused before anything is
// waited for, as the revision of these questions never comes and their context has ended.
func TestLimitedCallersValidateInTheirWorkspacesOnly(t *testing.T) {
	store, text := newMemory(t)
	v := validation.New(load(t, store), neverRead{t}, func() time.Time { return now })
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		workspaces  access.Workspaces
		workspaceID string
		want        problem.Reason
	}{
		{access.Workspaces{}, "", problem.CallerNotAllowed},
		{access.Workspaces{}, "acme", problem.CallerNotAllowed},
		{access.Only("globex"), "", problem.FieldInvalid},
		{access.Only("globex"), "acme", problem.CallerNotAllowed},
		{access.Only("globex"), "nowhere", problem.CallerNotAllowed},
		{access.Only("acme", "globex"), "", problem.FieldInvalid},
	} {
		_, err := v.Validate(ended, validation.Question{
			Workspaces: test.workspaces, Token: text, WorkspaceID: test.workspaceID, MinRevision: 1 << 40, Epoch: "epoch", WithDetails: true,
		})
		var told *problem.Error
		if !errors.As(err, &told) || told.Reason != test.want ||
			test.want == problem.FieldInvalid && (len(told.Violations) != 1 || told.Violations[0].Field != "workspace_id") {
			t.Errorf("limited to %v, about %q: %v", test.workspaces, test.workspaceID, err)
		}
	}
	answer, err := v.Validate(t.Context(), validation.Question{Workspaces: access.Only("acme"), Token: text, Requirement: reading, WorkspaceID: "acme"})
	if err != nil || answer.Decision != decide.Allowed {
		t.Errorf("in its own workspace: %+v, %v", answer, err)
	}
}

// TestForeignKeysAreNoOracle: whatever the state of a key of another workspace is, even damaged, the
// answer is the one about a key that does not exist.
func TestForeignKeysAreNoOracle(t *testing.T) {
	for name, change := range map[string]func(*memory){
		"active":            func(*memory) {},
		"revoked":           func(m *memory) { m.items[3].Key.RevokeTime = timestamppb.New(now.Add(-time.Hour)) },
		"expired":           func(m *memory) { m.items[3].Key.Secrets[0].ExpireTime = timestamppb.New(now.Add(-time.Hour)) },
		"address rules":     func(m *memory) { m.items[3].Key.AllowedCidrs = []string{"198.51.100.0/24"} },
		"no such scope":     func(m *memory) { m.items[3].Key.Scopes = []string{"folders:read"} },
		"damaged":           func(m *memory) { m.items[3].Key.AllowedCidrs = []string{"no prefix"} },
		"member suspended":  func(m *memory) { m.items[2].Member.State = storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED },
		"member removed":    func(m *memory) { m.items[2].Member.State = storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED },
		"workspace removed": func(m *memory) { m.items[1].Workspace.RemoveTime = timestamppb.New(now) },
	} {
		t.Run(name, func(t *testing.T) {
			store, text := newMemory(t)
			change(store)
			v := validation.New(load(t, store), neverRead{t}, func() time.Time { return now })
			unknown, err := token.New("scribe", "Key0000000000999", rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			ask := func(text string) (validation.Answer, error) {
				return v.Validate(t.Context(), validation.Question{
					Workspaces: access.Only("globex"), Token: text, Requirement: reading, WorkspaceID: "globex", WithDetails: true,
				})
			}
			want, wantErr := ask(unknown.Reveal())
			got, err := ask(text)
			if wantErr != nil || err != nil || !reflect.DeepEqual(got, want) || got.Reason != decide.KeyInvalid || got.KeyID != "" {
				t.Errorf("got %+v, %v; an unknown key gets %+v, %v", got, err, want, wantErr)
			}
		})
	}
}
