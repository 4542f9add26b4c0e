package restore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// issue creates a key of a member.
func (w *world) issue(member string) (keyID string) {
	w.t.Helper()
	issued, err := w.manager.CreateKey(w.t.Context(), anybody, keys.KeySpec{WorkspaceID: "w0", MemberID: member, Name: "k", Scopes: []string{"emails:read"}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.tokens = append(w.tokens, issued.Token)
	return issued.Key.ID
}

// reasonOf returns the reason with which the token of a key is refused.
func (s *served) reasonOf(w *world, keyID string) decide.Reason {
	for _, secret := range w.tokens {
		if secret.ID() == keyID {
			found := s.records.Find(keyID)
			_, reason := decide.Authenticate(secret.Presented(), found.Subject(), "", w.now)
			return reason
		}
	}
	return decide.KeyInvalid
}

func isProblem(err error, want string) bool {
	refused := (*problem.Error)(nil)
	return errors.As(err, &refused) && strings.HasSuffix(refused.Reason.String(), "_"+want)
}

func TestHeldKeysWorkAgainWhenTheyAreReleased(t *testing.T) {
	w := newWorld(t, 1)
	defer w.stop()
	first, second, revoked := w.issue("m0"), w.issue("m1"), w.issue("m0")
	if _, _, err := w.manager.RevokeKey(t.Context(), anybody, "w0", revoked); err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(w.folder, "backup.db")
	w.backUp(backup)
	result, again := w.restore(server.RestoreOptions{Backup: backup, Data: filepath.Join(w.folder, "again")})
	defer again.stop()
	if result.Held != 2 || result.Complete || again.reasonOf(w, first) != decide.KeyHeld || again.reasonOf(w, revoked) != decide.KeyRevoked {
		t.Errorf("%+v, first %d, revoked %d", result.Plan, again.reasonOf(w, first), again.reasonOf(w, revoked))
	}
	ctx, m := t.Context(), again.manager
	// 1. A held key is listed as such, and gets neither a new secret nor anything else.
	page, err := m.ListKeys(ctx, access.All(), keys.KeyQuery{States: []keys.KeyState{keys.KeyHeld}})
	if err != nil || len(page.Keys) != 2 || page.Keys[0].StopReason != keys.StopHeld || page.Keys[0].StopTime.IsZero() {
		t.Errorf("list: %+v %v", page, err)
	}
	if counted := again.records.Census(w.now); counted.Held != 2 || counted.Active != 0 || counted.Revoked != 1 {
		t.Errorf("census: %+v", counted)
	}
	overlap := time.Duration(0)
	if _, err := m.RotateKey(ctx, anybody, keys.Rotation{WorkspaceID: "w0", KeyID: first, Overlap: &overlap}); !isProblem(err, "KEY_HELD") {
		t.Errorf("rotate: %v", err)
	}
	if _, _, err := m.UpdateKey(ctx, anybody, keys.KeyUpdate{WorkspaceID: "w0", KeyID: first, Mask: []string{"name"}, Name: "x"}); !isProblem(err, "KEY_HELD") {
		t.Errorf("update: %v", err)
	}
	explained, err := m.ExplainKey(ctx, access.All(), keys.ExplainQuery{KeyID: first, Requirement: decide.Requirement{IdentityOnly: true}})
	if err != nil || explained.Reason != decide.KeyHeld || !slices.ContainsFunc(explained.Remedies, func(r string) bool { return strings.Contains(r, "ReleaseKeys") }) {
		t.Errorf("explain: %+v %v", explained, err)
	}
	// 2. A plan, a mistake and a caller without the right change nothing.
	release := keys.Release{WorkspaceID: "w0", KeyIDs: []string{first, revoked}, ValidateOnly: true}
	before := again.records.Revision()
	if released, _, err := m.ReleaseKeys(ctx, anybody, release); err != nil || !slices.Equal(released, []string{first}) {
		t.Errorf("plan: %v %v", released, err)
	}
	unknown := keys.Release{WorkspaceID: "w0", KeyIDs: []string{first, "0123456789abcdef"}}
	if _, _, err := m.ReleaseKeys(ctx, anybody, unknown); !isProblem(err, "KEY_NOT_FOUND") {
		t.Errorf("unknown key: %v", err)
	}
	nobody := anybody
	nobody.Workspaces = access.Workspaces{}
	if _, _, err := m.ReleaseKeys(ctx, nobody, release); !isProblem(err, "CALLER_NOT_ALLOWED") {
		t.Errorf("nobody: %v", err)
	}
	for _, wrong := range [][]string{nil, {first, first}, {"short"}, make([]string, keys.MaxReleased+1)} {
		if _, _, err := m.ReleaseKeys(ctx, anybody, keys.Release{WorkspaceID: "w0", KeyIDs: wrong}); !isProblem(err, "FIELD_INVALID") {
			t.Errorf("%d keys: %v", len(wrong), err)
		}
	}
	if again.records.Revision() != before || again.reasonOf(w, first) != decide.KeyHeld {
		t.Error("something was changed")
	}
	// 3. One is released, the other one revoked.
	release.ValidateOnly = false
	for _, want := range [][]string{{first}, nil} { // repeating it is no error
		if released, _, err := m.ReleaseKeys(ctx, anybody, release); err != nil || !slices.Equal(released, want) {
			t.Errorf("release: %v %v", released, err)
		}
	}
	if _, _, err := m.RevokeKey(ctx, anybody, "w0", second); err != nil {
		t.Error(err)
	}
	if again.reasonOf(w, first) != decide.NoReason || again.reasonOf(w, second) != decide.KeyRevoked {
		t.Errorf("first %d, second %d", again.reasonOf(w, first), again.reasonOf(w, second))
	}
	events, err := m.ListAuditEvents(ctx, access.All(), keys.AuditQuery{KeyID: first, PageSize: 2})
	if err != nil || len(events.Events) != 2 || events.Events[0].Record.GetAction().String() != "AUDIT_ACTION_KEYS_RELEASED" ||
		events.Events[1].Record.GetAction().String() != "AUDIT_ACTION_RESTORED" {
		t.Errorf("events: %v %v", events, err)
	}
}

// TestRestoreCanBeRepeated restores the same backup again after a restored store was served with the
// same sink: what was revoked in either history stays revoked.
func TestRestoreCanBeRepeated(t *testing.T) {
	w := newWorld(t, 1)
	first, second, kept := w.issue("m0"), w.issue("m0"), w.issue("m0")
	backup := filepath.Join(w.folder, "backup.db")
	w.backUp(backup)
	if _, _, err := w.manager.RevokeKey(t.Context(), anybody, "w0", first); err != nil {
		t.Fatal(err)
	}
	w.stop()
	options := server.RestoreOptions{Backup: backup, Data: filepath.Join(w.folder, "1"), Sink: w.sink, SinkIsComplete: true}
	result, _ := w.restoreServed(options, boltstore.Config{Sink: w.sink})
	if _, _, err := w.manager.RevokeKey(t.Context(), anybody, "w0", second); err != nil {
		t.Fatal(err)
	}
	w.stop()
	options.Data = filepath.Join(w.folder, "2")
	repeated, _ := w.restoreServed(options, boltstore.Config{Sink: w.sink})
	defer w.stop()
	if !result.Complete || !repeated.Complete || result.Epoch == repeated.Epoch || result.Epoch == result.BackupEpoch {
		t.Errorf("%v, %v; epochs %s, %s", result.Doubts, repeated.Doubts, result.Epoch, repeated.Epoch)
	}
	if w.reasonOf(w, first) != decide.KeyRevoked || w.reasonOf(w, second) != decide.KeyRevoked || w.reasonOf(w, kept) != decide.NoReason {
		t.Errorf("first %d, second %d, kept %d", w.reasonOf(w, first), w.reasonOf(w, second), w.reasonOf(w, kept))
	}
}

// restoreServed restores, and goes on with the restored store.
func (w *world) restoreServed(options server.RestoreOptions, config boltstore.Config) (*server.Restored, *served) {
	w.t.Helper()
	options.Now = w.time
	result, err := server.Restore(w.t.Context(), options)
	if err != nil {
		w.t.Fatal(err)
	}
	w.served = serve(w.t, result.File, config, w.time)
	return result, w.served
}

// TestSinkThatWentOnIsNotTakenOver: somebody has served the lost store again after the restore.
func TestSinkThatWentOnIsNotTakenOver(t *testing.T) {
	w := newWorld(t, 1)
	defer w.stop()
	backup := filepath.Join(w.folder, "backup.db")
	w.backUp(backup)
	options := server.RestoreOptions{Backup: backup, Data: filepath.Join(w.folder, "again"), Sink: w.sink, Now: w.time}
	result, err := server.Restore(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	w.issue("m0")
	if store, err := boltstore.Open(result.File, boltstore.Config{Sink: w.sink}); !errors.Is(err, storage.ErrAnchor) {
		t.Errorf("open: %v", err)
		if err == nil {
			_ = store.Close()
		}
	}
}

// TestRestoreThatBreaksOffLeavesNoStore also shows that there is no store before the end.
func TestRestoreThatBreaksOffLeavesNoStore(t *testing.T) {
	w := newWorld(t, 1)
	defer w.stop()
	w.issue("m0")
	w.issue("m1")
	backup, data := filepath.Join(w.folder, "backup.db"), filepath.Join(w.folder, "again")
	w.backUp(backup)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := 0
	options := server.RestoreOptions{Backup: backup, Data: data, Now: w.time, Progress: func(what string, _ int64) {
		if seen++; what == "keys held" {
			if _, err := os.Lstat(filepath.Join(data, "keysvc.db")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("there is a store in the middle of the restore: %v", err)
			}
			cancel()
		}
	}}
	if _, err := server.Restore(ctx, options); !errors.Is(err, context.Canceled) || seen == 0 {
		t.Errorf("restore: %v after %d steps", err, seen)
	}
	if left, err := os.ReadDir(data); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
	// An anchor without its store shows that a store has gone: nothing is made beside it.
	if err := os.WriteFile(filepath.Join(data, "keysvc.db.anchor"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	options.Progress = nil
	if _, err := server.Restore(t.Context(), options); !errors.Is(err, storage.ErrPresent) {
		t.Errorf("beside an anchor: %v", err)
	}
}
