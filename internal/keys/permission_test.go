package keys_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// untouched is a store that nobody may touch any more once closed is set.
type untouched struct {
	storage.Store
	t      *testing.T
	closed bool
}

func (u *untouched) touch(what string) {
	if u.closed {
		u.t.Errorf("%s was called", what)
	}
}

func (u *untouched) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	u.touch("Commit")
	return u.Store.Commit(ctx, change)
}

func (u *untouched) Barrier(ctx context.Context) (storage.Barrier, error) {
	u.touch("Barrier")
	return u.Store.Barrier(ctx)
}

func (u *untouched) GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error) {
	u.touch("GetKey")
	return u.Store.GetKey(ctx, workspaceID, keyID)
}

func (u *untouched) FindRequest(ctx context.Context, workspaceID, requestID string) (string, int64, error) {
	u.touch("FindRequest")
	return u.Store.FindRequest(ctx, workspaceID, requestID)
}

func (u *untouched) ListKeys(ctx context.Context, query storage.Query) (storage.KeyPage, error) {
	u.touch("ListKeys")
	return u.Store.ListKeys(ctx, query)
}

func (u *untouched) GetMember(ctx context.Context, workspaceID, memberID string) (*storagev1.MemberRecord, int64, error) {
	u.touch("GetMember")
	return u.Store.GetMember(ctx, workspaceID, memberID)
}

func (u *untouched) ListMembers(ctx context.Context, query storage.Query) (storage.MemberPage, error) {
	u.touch("ListMembers")
	return u.Store.ListMembers(ctx, query)
}

func (u *untouched) ScanAuditEvents(ctx context.Context, query storage.AuditQuery) (storage.AuditScan, error) {
	u.touch("ScanAuditEvents")
	return u.Store.ScanAuditEvents(ctx, query)
}

// verb is one verb of a Manager, called about a workspace.
type verb func(ctx context.Context, m *keys.Manager, workspaces access.Workspaces, workspaceID, keyID string) error

func actorIn(workspaces access.Workspaces) audit.Actor {
	return audit.Actor{Caller: "limited", RequestID: "request-2", Workspaces: workspaces}
}

var (
	requestID = "request"
	overlap   = time.Duration(0)
)

// changes are the verbs that change a workspace.
var changes = map[string]verb{
	"CreateKey": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, _ string) error {
		_, err := m.CreateKey(ctx, actorIn(w), keys.KeySpec{WorkspaceID: workspaceID, MemberID: "ann", Name: "x", Scopes: []string{"no:scope"}, RequestID: &requestID})
		return err
	},
	"UpdateKey": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, keyID string) error {
		_, _, err := m.UpdateKey(ctx, actorIn(w), keys.KeyUpdate{WorkspaceID: workspaceID, KeyID: keyID, Mask: []string{"name", "unknown"}})
		return err
	},
	"RotateKey": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, keyID string) error {
		_, err := m.RotateKey(ctx, actorIn(w), keys.Rotation{WorkspaceID: workspaceID, KeyID: keyID, Overlap: &overlap, RequestID: &requestID})
		return err
	},
	"FinishRotation": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, keyID string) error {
		_, _, err := m.FinishRotation(ctx, actorIn(w), workspaceID, keyID)
		return err
	},
	"RevokeKey": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, keyID string) error {
		_, _, err := m.RevokeKey(ctx, actorIn(w), workspaceID, keyID)
		return err
	},
	"ImportKeys": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, _ string) error {
		_, _, err := m.ImportKeys(ctx, actorIn(w), workspaceID, []keys.KeyImport{{MemberID: "ann", Name: "x", Scopes: []string{"no:scope"}}}, false)
		return err
	},
	"ReleaseKeys": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, keyID string) error {
		_, _, err := m.ReleaseKeys(ctx, actorIn(w), keys.Release{WorkspaceID: workspaceID, KeyIDs: []string{keyID}})
		return err
	},
	"PutMember": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, _ string) error {
		_, _, err := m.PutMember(ctx, actorIn(w), keys.MemberSpec{WorkspaceID: workspaceID, MemberID: "ann", Role: "none", State: keys.MemberActive})
		return err
	},
	"RemoveMember": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, _ string) error {
		_, err := m.RemoveMember(ctx, actorIn(w), workspaceID, "ann", nil)
		return err
	},
	"RemoveWorkspace": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, _ string) error {
		_, err := m.RemoveWorkspace(ctx, actorIn(w), workspaceID, nil)
		return err
	},
}

// reads are the verbs that read a workspace.
var reads = map[string]verb{
	"GetKey": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, keyID string) error {
		_, _, err := m.GetKey(ctx, w, workspaceID, keyID)
		return err
	},
	"ListKeys": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, _ string) error {
		page, err := m.ListKeys(ctx, w, keys.KeyQuery{WorkspaceID: workspaceID})
		return listed(page != nil && len(page.Keys) == 0 && page.NextPageToken == "" && page.Revision > 0 && page.Epoch != "", err)
	},
	"GetMember": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, _ string) error {
		_, _, err := m.GetMember(ctx, w, workspaceID, "ann")
		return err
	},
	"ListMembers": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, _ string) error {
		page, err := m.ListMembers(ctx, w, keys.MemberQuery{WorkspaceID: workspaceID})
		return listed(page != nil && len(page.Members) == 0 && page.NextPageToken == "" && page.Revision > 0 && page.Epoch != "", err)
	},
	"ListAuditEvents": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, _ string) error {
		page, err := m.ListAuditEvents(ctx, w, keys.AuditQuery{WorkspaceID: workspaceID})
		return listed(page != nil && len(page.Events) == 0 && page.NextPageToken == "" && page.Revision > 0 && page.Epoch != "", err)
	},
	"ExplainKey": func(ctx context.Context, m *keys.Manager, w access.Workspaces, workspaceID, keyID string) error {
		_, err := m.ExplainKey(ctx, w, keys.ExplainQuery{WorkspaceID: workspaceID, KeyID: keyID, Requirement: decide.Requirement{IdentityOnly: true}})
		return err
	},
}

var (
	errEmpty    = errors.New("an empty list")
	errNotEmpty = errors.New("not an empty list")
)

// listed returns what a list answers as an error, so that it can be compared.
func listed(empty bool, err error) error {
	switch {
	case err != nil:
		return err
	case empty:
		return errEmpty
	}
	return errNotEmpty
}

// wholes are the verbs that concern all workspaces.
var wholes = map[string]func(ctx context.Context, m *keys.Manager, workspaces access.Workspaces) error{
	"ApplyPolicy": func(ctx context.Context, m *keys.Manager, w access.Workspaces) error {
		_, err := m.ApplyPolicy(ctx, actorIn(w), keys.PolicyReplacement{Policy: policy.Default(), ReplacesDigest: "x"})
		return err
	},
	"InstallPolicy": func(ctx context.Context, m *keys.Manager, w access.Workspaces) error {
		_, err := m.InstallPolicy(ctx, actorIn(w), policy.Default())
		return err
	},
	"InstallSettings": func(ctx context.Context, m *keys.Manager, w access.Workspaces) error {
		_, err := m.InstallSettings(ctx, actorIn(w), time.Second)
		return err
	},
	"SetStaleness": func(ctx context.Context, m *keys.Manager, w access.Workspaces) error {
		_, _, err := m.SetStaleness(ctx, actorIn(w), time.Second)
		return err
	},
	"FinishUpgrade": func(ctx context.Context, m *keys.Manager, w access.Workspaces) error {
		_, _, err := m.FinishUpgrade(ctx, actorIn(w), 0)
		return err
	},
	"Sweep": func(ctx context.Context, m *keys.Manager, w access.Workspaces) error {
		_, err := m.Sweep(ctx, actorIn(w))
		return err
	},
	"NoticesAfter": func(ctx context.Context, m *keys.Manager, w access.Workspaces) error {
		_, err := m.NoticesAfter(ctx, w, keys.NoticePlace{}, 1)
		return err
	},
	"RepairTimes": func(ctx context.Context, m *keys.Manager, w access.Workspaces) error {
		_, err := m.RepairTimes(ctx, actorIn(w), false)
		return err
	},
}

// others are the verbs with tests of their own: RevokeToken, GetPolicy, GetSettings, ListWorkspaces, ListNotices and Still. SweepEvery
// calls Sweep. Settle does nothing for a caller.
var others = []string{"RevokeToken", "GetPolicy", "GetSettings", "ListWorkspaces", "ListNotices", "Still", "SweepEvery", "Settle"}

func TestEveryVerbIsKnownToTheTestsOfRights(t *testing.T) {
	manager := reflect.TypeFor[*keys.Manager]()
	for method := range manager.Methods() {
		_, change := changes[method.Name]
		_, read := reads[method.Name]
		_, whole := wholes[method.Name]
		if !change && !read && !whole && !slices.Contains(others, method.Name) {
			t.Errorf("%s is in no table of this file", method.Name)
		}
	}
}

// guarded returns a Manager over the store of a world, and the store, which can be closed.
func guarded(t *testing.T, w *keystest.World) (*keys.Manager, *untouched) {
	t.Helper()
	store := &untouched{Store: w.Store, t: t}
	view := projection.New(store, nil)
	if _, err := view.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return keys.New(keys.Config{Store: store, Projection: view, Now: w.Clock.Now}), store
}

// TestForeignWorkspacesAreRefusedBeforeAnythingIsLookedUp calls each verb about a workspace of
// others, and about one that does not exist, with a context that has ended: a verb that waited for a
// barrier or a turn would return the context's error.
func TestForeignWorkspacesAreRefusedBeforeAnythingIsLookedUp(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	keyIDs := map[string]string{"acme": "", "other": "", "nowhere": "Key0000000000000"}
	for _, workspaceID := range []string{"acme", "other"} {
		w.Put(workspaceID, "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
		keyIDs[workspaceID] = w.Create(workspaceID, "ann", "signatures:read").GetKey().GetKeyId()
	}
	manager, store := guarded(t, w)
	before := w.Projection.Revision()
	store.closed = true
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range changes {
		for _, limited := range []access.Workspaces{{}, access.Only("acme"), access.Only("acme", "bcme")} {
			var texts []string
			for _, workspaceID := range []string{"other", "nowhere"} {
				err := call(ended, manager, limited, workspaceID, keyIDs[workspaceID])
				if keystest.ReasonOf(err) != problem.CallerNotAllowed {
					t.Errorf("%s in %s, limited to %v: %v", name, workspaceID, limited, err)
				}
				texts = append(texts, fmt.Sprint(err))
			}
			if texts[0] != texts[1] {
				t.Errorf("%s: %q differs from %q", name, texts[0], texts[1])
			}
		}
		expectNamed(t, name, call(ended, manager, access.Only("acme"), "", keyIDs["acme"]))
	}
	for name, call := range reads {
		if strings.HasPrefix(name, "List") {
			continue // they wait for a barrier, to have a revision; see below
		}
		foreign := call(ended, manager, access.Only("acme"), "other", keyIDs["other"])
		unknown := call(ended, manager, access.Only("acme"), "nowhere", keyIDs["nowhere"])
		if !errors.As(foreign, new(*problem.Error)) || foreign.Error() != unknown.Error() || keystest.ReasonOf(foreign) != keystest.ReasonOf(unknown) {
			t.Errorf("%s: %v of a foreign workspace, %v of an unknown one", name, foreign, unknown)
		}
		expectNamed(t, name, call(ended, manager, access.Only("acme"), "", keyIDs["acme"]))
		if err := call(ended, manager, access.Workspaces{}, "acme", keyIDs["acme"]); keystest.ReasonOf(err) != problem.CallerNotAllowed {
			t.Errorf("%s of somebody without a right: %v", name, err)
		}
	}
	for name, call := range wholes {
		for _, limited := range []access.Workspaces{{}, access.Only("acme", "other")} {
			if err := call(ended, manager, limited); keystest.ReasonOf(err) != problem.CallerNotAllowed {
				t.Errorf("%s, limited to %v: %v", name, limited, err)
			}
		}
	}
	if _, _, err := manager.GetPolicy(ended, access.Workspaces{}); keystest.ReasonOf(err) != problem.CallerNotAllowed {
		t.Errorf("GetPolicy: %v", err)
	}
	if _, _, err := manager.GetSettings(ended, access.Workspaces{}); keystest.ReasonOf(err) != problem.CallerNotAllowed {
		t.Errorf("GetSettings: %v", err)
	}
	if after := w.Projection.Revision(); after != before {
		t.Errorf("the revision went from %d to %d", before, after)
	}
}

// expectNamed fails unless err asks for a workspace.
func expectNamed(t *testing.T, name string, err error) {
	t.Helper()
	var told *problem.Error
	if !errors.As(err, &told) || told.Reason != problem.FieldInvalid || len(told.Violations) != 1 ||
		told.Violations[0].Field != "workspace_id" && told.Violations[0].Field != "key.workspace_id" {
		t.Errorf("%s without a workspace: %v", name, err)
	}
}

// TestForeignReadsAreAnsweredAsUnknownOnes compares them with those of a caller that may read
// everything: what it is told of a workspace that does not exist.
func TestForeignReadsAreAnsweredAsUnknownOnes(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	w.Put("other", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	own, foreign := w.Create("acme", "ann", "signatures:read").GetKey(), w.Create("other", "ann", "signatures:read").GetKey()
	manager := w.Verbs.Manager
	for name, call := range reads {
		want := call(t.Context(), manager, access.All(), "nowhere", foreign.GetKeyId())
		for workspaceID, keyID := range map[string]string{"other": foreign.GetKeyId(), "nowhere": "Key0000000000000"} {
			got := call(t.Context(), manager, access.Only("acme"), workspaceID, keyID)
			if fmt.Sprint(got) != fmt.Sprint(want) || keystest.ReasonOf(got) != keystest.ReasonOf(want) {
				t.Errorf("%s in %s: %v, want %v", name, workspaceID, got, want)
			}
		}
		expectNamed(t, name, call(t.Context(), manager, access.Only("acme"), "", own.GetKeyId()))
		if err := call(t.Context(), manager, access.Only("acme"), "acme", own.GetKeyId()); err != nil && !errors.Is(err, errNotEmpty) {
			t.Errorf("%s in its own workspace: %v", name, err)
		}
	}
	// Somebody else's key is not found in the caller's own workspace, and the other way round.
	_, _, err := manager.GetKey(t.Context(), access.Only("acme"), "acme", foreign.GetKeyId())
	if keystest.ReasonOf(err) != problem.KeyNotFound {
		t.Errorf("got %v", err)
	}
}

// TestPagesAreLimitedToTheirWorkspaces gives the page token of a caller that sees everything to one
// that does not.
func TestPagesAreLimitedToTheirWorkspaces(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	for _, workspaceID := range []string{"acme", "other"} {
		w.Put(workspaceID, "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
		w.Create(workspaceID, "ann", "signatures:read")
		w.Create(workspaceID, "ann", "signatures:read")
	}
	for _, workspaceID := range []string{"", "other"} {
		query := keys.KeyQuery{WorkspaceID: workspaceID, PageSize: 1}
		page, err := w.Verbs.Manager.ListKeys(t.Context(), access.All(), query)
		if err != nil || page.NextPageToken == "" {
			t.Fatalf("%+v, %v", page, err)
		}
		query.PageToken = page.NextPageToken
		switch page, err := w.Verbs.Manager.ListKeys(t.Context(), access.Only("acme"), query); {
		case workspaceID == "":
			expectNamed(t, "ListKeys", err)
		case err != nil || len(page.Keys) != 0 || page.NextPageToken != "":
			t.Errorf("got %+v, %v", page, err)
		}
		query.WorkspaceID = "acme"
		if _, err := w.Verbs.Manager.ListKeys(t.Context(), access.Only("acme"), query); keystest.ReasonOf(err) != problem.PageTokenInvalid {
			t.Errorf("with other filters: %v", err)
		}
	}
}

// TestForeignTokensCannotBeReported compares the answer about a token of another workspace, in each
// state of its key, with that about a token that does not exist.
func TestForeignTokensCannotBeReported(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	w.Put("other", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	live, revoked := w.Create("other", "ann", "signatures:read"), w.Create("other", "ann", "signatures:read")
	w.Must(w.RevokeToken(t.Context(), keystest.Actor, &keysvcv1.RevokeTokenRequest{Token: revoked.GetToken()}))
	manager, limited := w.Verbs.Manager, actorIn(access.Only("acme"))
	_, _, want := manager.RevokeToken(t.Context(), keystest.Actor, keys.Reported{Text: "no token"})
	before := w.Projection.Revision()
	for name, text := range map[string]string{"live": live.GetToken(), "revoked": revoked.GetToken(), "nothing": "no token"} {
		_, _, err := manager.RevokeToken(t.Context(), limited, keys.Reported{Text: text})
		if keystest.ReasonOf(err) != problem.KeyNotFound || err.Error() != want.Error() {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if _, _, err := manager.RevokeToken(t.Context(), actorIn(access.Workspaces{}), keys.Reported{Text: live.GetToken()}); keystest.ReasonOf(err) != problem.CallerNotAllowed {
		t.Errorf("without the right: %v", err)
	}
	if after := w.Projection.Revision(); after != before {
		t.Errorf("the revision went from %d to %d", before, after)
	}
	if name, _, err := manager.RevokeToken(t.Context(), actorIn(access.Only("acme", "other")), keys.Reported{Text: live.GetToken()}); err != nil || name.WorkspaceID != "other" {
		t.Errorf("with the right: %+v, %v", name, err)
	}
}

// TestChangesNeedNoMoreThanTheirWorkspace: a caller that is limited to a workspace does in it what
// others do.
func TestChangesNeedNoMoreThanTheirWorkspace(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	limited := actorIn(access.Only("acme"))
	ctx := t.Context()
	_, err := w.PutMember(ctx, limited, &keysvcv1.PutMemberRequest{
		WorkspaceId: "acme", MemberId: "ann", Role: "manager", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	})
	w.Must(nil, err)
	created, err := w.CreateKey(ctx, limited, &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"signatures:read"},
	})
	w.Must(nil, err)
	for name, call := range changes {
		if err := call(ctx, w.Verbs.Manager, access.Only("acme"), "acme", created.GetKey().GetKeyId()); keystest.ReasonOf(err) == problem.CallerNotAllowed {
			t.Errorf("%s: %v", name, err)
		}
	}
}
