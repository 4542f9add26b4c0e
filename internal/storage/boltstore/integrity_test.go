package boltstore

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// alter replaces a record in the file of an open store, behind its back, and corrects the
// checksum. from and to have the same length.
func alter(t testing.TB, store *Store, bucket, name, from, to string) {
	t.Helper()
	var before, after []byte
	err := store.file.database.View(func(tx *bolt.Tx) error {
		before = bytes.Clone(tx.Bucket([]byte(bucket)).Get([]byte(name)))
		return nil
	})
	if err != nil || len(from) != len(to) {
		t.Fatal(err, from, to)
	}
	payload := bytes.Replace(storage.Payload(before), []byte(from), []byte(to), 1)
	after = frame(bucket, name, payload)
	if len(before) != len(after) || bytes.Equal(before, after) {
		t.Fatalf("%q does not occur in %q", from, before)
	}
	content := readFile(t, store.path)
	at := bytes.Index(content, before)
	if at < 0 {
		t.Fatal("the record is not in the file")
	}
	file, err := os.OpenFile(store.path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for at >= 0 { // on pages that are free, too
		if _, err := file.WriteAt(after, int64(at)); err != nil {
			t.Fatal(err)
		}
		content = bytes.Replace(content, before, after, 1)
		at = bytes.Index(content, before)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRecordAlteredWhileServedIsNeitherReadNorReplaced alters a record of each kind under
// an open store. Check names it.
func TestRecordAlteredWhileServedIsNeitherReadNorReplaced(t *testing.T) {
	keyID := storagetest.KeyID(1)
	type world struct {
		store     *Store
		workspace *storagetest.Workspace
		policy    storage.Head
		key       *storagev1.KeyRecord
		member    *storagev1.MemberRecord
	}
	for name, test := range map[string]struct {
		bucket, name, from, to string
		// changes replace or delete the record.
		changes []func(w *world) *storage.Change
		// reads read the record.
		reads []func(w *world) error
		// named is the problem that Check must report.
		named string
	}{
		"key": {
			bucket: bucketKeys, name: keyName(1, keyID, "acme"), from: "emails:read", to: "assets:read",
			changes: []func(w *world) *storage.Change{
				func(w *world) *storage.Change {
					return w.workspace.UpdateKey(w.key, func(key *storagev1.KeyRecord) { key.Name = "honest" })
				},
				func(w *world) *storage.Change { return w.workspace.DeleteKey(w.key) },
			},
			reads: []func(w *world) error{
				func(w *world) error { _, _, err := w.store.GetKey(t.Context(), "", keyID); return err },
				func(w *world) error {
					_, err := w.store.ListKeys(t.Context(), storage.Query{WorkspaceID: "acme", Limit: 10})
					return err
				},
				func(w *world) error {
					_, err := w.store.ListKeys(t.Context(), storage.Query{Limit: 10})
					return err
				},
			},
			named: "key " + keyID + ": it is not the record",
		},
		"member": {
			bucket: bucketMembers, name: memberName("acme", "member"), from: "admin", to: "owner",
			changes: []func(w *world) *storage.Change{
				func(w *world) *storage.Change { return w.workspace.PutMember("member", "manager") },
				func(w *world) *storage.Change { return w.workspace.DeleteMembers(w.member) },
			},
			reads: []func(w *world) error{
				func(w *world) error { _, _, err := w.store.GetMember(t.Context(), "acme", "member"); return err },
				func(w *world) error {
					_, err := w.store.ListMembers(t.Context(), storage.Query{WorkspaceID: "acme", Limit: 10})
					return err
				},
			},
			named: `member "member" of workspace "acme": it is not the record`,
		},
		"workspace": {
			bucket: bucketWorkspaces, name: "acme", from: "first", to: "third",
			changes: []func(w *world) *storage.Change{func(w *world) *storage.Change { return w.workspace.RemoveWorkspace() }},
			named:   `workspace "acme": it is not the record`,
		},
		"policy": {
			bucket: bucketPolicy, name: nameActive, from: "policy 1", to: "policy 2",
			changes: []func(w *world) *storage.Change{func(w *world) *storage.Change { return storagetest.ApplyPolicy(w.policy, "policy 3") }},
			named:   "policy: it is not the record",
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			w := &world{store: mustOpen(t, path, Config{}), workspace: storagetest.NewWorkspace("acme")}
			do := func(change *storage.Change) {
				t.Helper()
				if _, err := w.store.Commit(t.Context(), change); err != nil {
					t.Fatal(err)
				}
				if change.WorkspaceID == "" {
					w.policy = storagetest.After(change)
				} else {
					w.workspace.Follow(change)
				}
			}
			do(storagetest.ApplyPolicy(w.policy, "policy 1"))
			put := w.workspace.PutMember("member", "admin")
			do(put)
			w.member = put.PutMembers[0]
			do(w.workspace.PutMember("other", "admin"))
			create := w.workspace.CreateKey(keyID)
			do(create)
			w.key = create.PutKeys[0]

			alter(t, w.store, test.bucket, test.name, test.from, test.to)
			for index, read := range test.reads {
				if err := read(w); !errors.Is(err, storage.ErrDamaged) {
					t.Errorf("read %d: %v, want ErrDamaged", index, err)
				}
			}
			for index, change := range test.changes {
				if _, err := w.store.Commit(t.Context(), change(w)); !errors.Is(err, storage.ErrDamaged) {
					t.Errorf("change %d: %v, want ErrDamaged", index, err)
				}
			}
			// Other records stay usable.
			do(w.workspace.PutMember("other", "manager"))
			do(w.workspace.CreateKey(storagetest.KeyID(2)))
			if err := w.store.Close(); err != nil {
				t.Fatal(err)
			}
			mustName(t, path, test.named)
			reopened := mustOpen(t, path, Config{})
			if _, _, damaged := loadAll(t, reopened); len(damaged) != 1 {
				t.Errorf("Load: %d damaged, want one", len(damaged))
			}
		})
	}
}

// mustName fails the test if Check does not report a problem that begins with named, or reports
// another record as wrong.
func mustName(t testing.TB, path, named string) {
	t.Helper()
	report, err := Check(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, problem := range report.Problems {
		found = found || strings.HasPrefix(problem, named)
		if strings.Contains(problem, ": it is ") && !strings.HasPrefix(problem, named) {
			t.Errorf("Check also names %q", problem)
		}
	}
	if !found {
		t.Errorf("Check: %q, want one that begins with %q", report.Problems, named)
	}
}

// edited is a closed store with a history, which a test edits.
type edited struct {
	path      string
	workspace *storagetest.Workspace
	// values are the values in the file after each change, by bucket and name.
	values []map[[2]string][]byte
}

func newEdited(t *testing.T, changes ...func(w *storagetest.Workspace) *storage.Change) *edited {
	t.Helper()
	e := &edited{path: filepath.Join(t.TempDir(), "store.db"), workspace: storagetest.NewWorkspace("acme")}
	other := storagetest.NewWorkspace("beta")
	store := mustOpen(t, e.path, Config{})
	do := func(workspace *storagetest.Workspace, change *storage.Change) {
		t.Helper()
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	do(other, other.PutMember("member", "admin"))
	do(other, other.CreateKey(storagetest.KeyID(99)))
	for _, change := range changes {
		do(e.workspace, change(e.workspace))
		found := make(map[[2]string][]byte)
		err := store.file.database.View(func(tx *bolt.Tx) error {
			for _, bucket := range buckets {
				err := tx.Bucket([]byte(bucket)).ForEach(func(name, value []byte) error {
					found[[2]string{bucket, string(name)}] = bytes.Clone(value)
					return nil
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		e.values = append(e.values, found)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return e
}

// back returns an edit that restores the value that a name had after a change, or deletes the
// name if it had no value then.
func (e *edited) back(change int, bucket, name string) func(tx *bolt.Tx) error {
	return func(tx *bolt.Tx) error {
		value := e.values[change][[2]string{bucket, name}]
		if value == nil {
			return tx.Bucket([]byte(bucket)).Delete([]byte(name))
		}
		return tx.Bucket([]byte(bucket)).Put([]byte(name), value)
	}
}

// TestLoadVisitsStaleMissingAndSurplusRecordsAsDamaged edits a file so that records are
// stale, missing or left over, alone and together with the head.
func TestLoadVisitsStaleMissingAndSurplusRecordsAsDamaged(t *testing.T) {
	first, second := storagetest.KeyID(1), storagetest.KeyID(2)
	var created *storagev1.KeyRecord
	history := []func(w *storagetest.Workspace) *storage.Change{
		func(w *storagetest.Workspace) *storage.Change { return w.PutMember("member", "admin") }, // 0
		func(w *storagetest.Workspace) *storage.Change { return w.PutMember("gone", "admin") },   // 1
		func(w *storagetest.Workspace) *storage.Change { // 2
			change := w.CreateKey(first)
			created = change.PutKeys[0]
			return change
		},
		func(w *storagetest.Workspace) *storage.Change { return w.CreateKey(second) },  // 3
		func(w *storagetest.Workspace) *storage.Change { return w.RevokeKey(created) }, // 4
		func(w *storagetest.Workspace) *storage.Change { // 5
			return w.DeleteMembers(&storagev1.MemberRecord{WorkspaceId: "acme", MemberId: "gone"})
		},
		func(w *storagetest.Workspace) *storage.Change { return w.PutMember("member", "manager") }, // 6
	}
	// Beta's first key is in slot 1.
	firstName, secondName := keyName(2, first, "acme"), keyName(3, second, "acme")
	member, gone := memberName("acme", "member"), memberName("acme", "gone")
	staleKey := storage.Damaged{WorkspaceID: "acme", KeyID: first}
	lostKey := storage.Damaged{WorkspaceID: "acme", KeyID: second}
	staleMember := storage.Damaged{WorkspaceID: "acme", MemberID: "member"}
	head, all := storage.Damaged{WorkspaceID: "acme", Head: true}, storage.Damaged{WorkspaceID: "acme"}
	for name, test := range map[string]struct {
		edit func(e *edited) []func(tx *bolt.Tx) error
		want []storage.Damaged
	}{
		"stale key":    {func(e *edited) []func(*bolt.Tx) error { return edits(e.back(2, bucketKeys, firstName)) }, []storage.Damaged{staleKey}},
		"stale member": {func(e *edited) []func(*bolt.Tx) error { return edits(e.back(5, bucketMembers, member)) }, []storage.Damaged{staleMember}},
		"missing key":  {func(e *edited) []func(*bolt.Tx) error { return edits(e.back(2, bucketKeys, secondName)) }, []storage.Damaged{lostKey}},
		"missing member": {func(e *edited) []func(*bolt.Tx) error {
			return edits(func(tx *bolt.Tx) error { return remove(tx, bucketMembers, member) })
		}, []storage.Damaged{staleMember}},
		"missing workspace": {func(e *edited) []func(*bolt.Tx) error {
			return edits(func(tx *bolt.Tx) error { return remove(tx, bucketWorkspaces, "acme") })
		}, []storage.Damaged{all}},
		"left over member": {func(e *edited) []func(*bolt.Tx) error { return edits(e.back(4, bucketMembers, gone)) }, []storage.Damaged{{WorkspaceID: "acme", MemberID: "gone"}}},
		"several": {func(e *edited) []func(*bolt.Tx) error {
			return edits(e.back(2, bucketKeys, firstName), e.back(5, bucketMembers, member), e.back(2, bucketKeys, secondName))
		}, []storage.Damaged{staleKey, staleMember, lostKey}},
		"stale head": {func(e *edited) []func(*bolt.Tx) error { return edits(e.back(3, bucketHeads, "acme")) }, []storage.Damaged{head}},
		"stale head and key": {func(e *edited) []func(*bolt.Tx) error {
			return edits(e.back(3, bucketHeads, "acme"), e.back(3, bucketKeys, firstName))
		}, []storage.Damaged{head, staleKey}},
		"everything as it was": {func(e *edited) []func(*bolt.Tx) error {
			return edits(e.back(3, bucketHeads, "acme"), e.back(3, bucketKeys, firstName), e.back(3, bucketMembers, gone), e.back(3, bucketMembers, member))
		}, []storage.Damaged{head, staleKey, staleMember, {WorkspaceID: "acme", MemberID: "gone"}}},
		"lost head and stale key": {func(e *edited) []func(*bolt.Tx) error {
			return edits(func(tx *bolt.Tx) error { return remove(tx, bucketHeads, "acme") }, e.back(3, bucketKeys, firstName))
		}, []storage.Damaged{head, staleKey}},
		// The event that revoked the key is gone, or the tag is: which record is wrong is unknown.
		"stale key without its event": {func(e *edited) []func(*bolt.Tx) error {
			return edits(e.back(2, bucketKeys, firstName), func(tx *bolt.Tx) error { return remove(tx, bucketAudit, number(7)) })
		}, []storage.Damaged{all}},
		"no tag": {func(*edited) []func(*bolt.Tx) error {
			return edits(func(tx *bolt.Tx) error {
				return rewrite(tx, bucketHeads, "acme", &storagev1.HeadRecord{}, func(head *storagev1.HeadRecord) { head.Tag = nil })
			})
		}, []storage.Damaged{head}},
		"another tag": {func(*edited) []func(*bolt.Tx) error {
			return edits(func(tx *bolt.Tx) error {
				return rewrite(tx, bucketHeads, "acme", &storagev1.HeadRecord{}, func(head *storagev1.HeadRecord) { head.Tag[0] ^= 1 })
			})
		}, []storage.Damaged{all}},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdited(t, history...)
			for _, change := range test.edit(e) {
				edit(t, e.path, change)
			}
			if report, err := Check(t.Context(), e.path); err != nil || len(report.Problems) == 0 {
				t.Errorf("Check: %+v, %v", report, err)
			}
			store := mustOpen(t, e.path, Config{})
			for range 2 { // the first Load uses what opening found; after a change Load examines again
				_, _, damaged := loadAll(t, store)
				got := make(map[storage.Damaged]bool)
				for _, each := range damaged {
					got[storage.Damaged{WorkspaceID: each.WorkspaceID, KeyID: each.KeyID, MemberID: each.MemberID, Head: each.Head}] = true
				}
				if len(got) != len(test.want) {
					t.Errorf("Load: damaged are %v, want %v", got, test.want)
				}
				for _, want := range test.want {
					if !got[want] {
						t.Errorf("Load: damaged are %v, want %+v", got, want)
					}
				}
				e.refuses(t, store, test.want)
				beta := &storagetest.Workspace{ID: "beta", Head: mustHead(t, store, "beta")}
				if _, err := store.Commit(t.Context(), beta.PutMember("member", "manager")); err != nil {
					t.Errorf("Commit to another workspace: %v", err)
				}
			}
		})
	}
}

func edits(all ...func(tx *bolt.Tx) error) []func(tx *bolt.Tx) error { return all }

// refuses fails the test if damaged records can be read or changed, or if other records of the
// workspace cannot be changed although its head is good.
func (e *edited) refuses(t *testing.T, store *Store, damaged []storage.Damaged) {
	t.Helper()
	workspace := *e.workspace
	headless, lostRecord := false, false
	for _, each := range damaged {
		switch {
		case each.KeyID != "":
			if _, _, err := store.GetKey(t.Context(), "", each.KeyID); !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("GetKey(%s): %v, want ErrDamaged", each.KeyID, err)
			}
			if _, err := store.Commit(t.Context(), workspace.CreateKey(each.KeyID)); err == nil {
				t.Error("the id of a damaged key was given to another")
			}
		case each.MemberID != "":
			if _, _, err := store.GetMember(t.Context(), "acme", each.MemberID); !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("GetMember(%s): %v, want ErrDamaged", each.MemberID, err)
			}
			if _, err := store.Commit(t.Context(), workspace.PutMember(each.MemberID, "owner")); !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("a damaged member was replaced: %v", err)
			}
		case each.Head:
			headless = true
		default:
			lostRecord = true
		}
	}
	// With a damaged head every change is refused, whatever head is expected.
	_, err := store.Commit(t.Context(), workspace.PutMember("another", "admin"))
	switch {
	case lostRecord && errors.Is(err, storage.ErrDamaged): // the workspace's own
	case headless && !errors.Is(err, storage.ErrDamaged), !headless && !lostRecord && err != nil:
		t.Errorf("another member: %v, with damaged %+v", err, damaged)
	}
	if err == nil {
		e.workspace.Head = mustHead(t, store, "acme")
	}
}

func mustHead(t *testing.T, store *Store, id string) storage.Head {
	t.Helper()
	_, heads, _ := loadAll(t, store)
	return heads[id]
}

// TestHashesCoverTheStoredPayload stores payloads that another version would encode
// differently.
func TestHashesCoverTheStoredPayload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	store := mustOpen(t, path, Config{})
	w := storagetest.NewWorkspace("acme")
	put := w.PutMember("member", "admin")
	// A field of a later version.
	put.PutMembers[0].ProtoReflect().SetUnknown([]byte{0xf8, 0x3f, 0x01})
	if _, err := store.Commit(t.Context(), put); err != nil {
		t.Fatal(err)
	}
	w.Follow(put)
	read, _, err := store.GetMember(t.Context(), "acme", "member")
	if err != nil || !proto.Equal(read, put.PutMembers[0]) {
		t.Fatalf("GetMember: %v, %v", read, err)
	}
	changed := w.PutMember("member", "manager")
	changed.PutMembers[0].UpdateTime = timestamppb.Now()
	if _, err := store.Commit(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	mustBeSound(t, path)
}

// TestNewEpochKeepsFoundDamage: heads get new tags, and a stale key is still found stale.
func TestNewEpochKeepsFoundDamage(t *testing.T) {
	var created *storagev1.KeyRecord
	e := newEdited(t,
		func(w *storagetest.Workspace) *storage.Change { return w.PutMember("member", "admin") },
		func(w *storagetest.Workspace) *storage.Change {
			change := w.CreateKey(storagetest.KeyID(1))
			created = change.PutKeys[0]
			return change
		},
		func(w *storagetest.Workspace) *storage.Change { return w.RevokeKey(created) },
	)
	edit(t, e.path, e.back(1, bucketKeys, keyName(2, storagetest.KeyID(1), "acme")))
	config := Config{}.withDefaults()
	file, err := openFile(e.path, config)
	if err != nil {
		t.Fatal(err)
	}
	err = file.database.Update(func(tx *bolt.Tx) error { return file.setEpoch(tx, "another") })
	if err := errors.Join(err, file.close()); err != nil {
		t.Fatal(err)
	}
	store := mustOpen(t, e.path, Config{Unanchored: true})
	_, _, damaged := loadAll(t, store)
	if store.Epoch() != "another" || len(damaged) != 1 || damaged[0].KeyID != storagetest.KeyID(1) {
		t.Errorf("epoch %s, damaged %+v; want the stale key", store.Epoch(), damaged)
	}
}

func TestOpenLogsTheDamageThatItFinds(t *testing.T) {
	e := newEdited(t,
		func(w *storagetest.Workspace) *storage.Change { return w.PutMember("member", "admin") },
		func(w *storagetest.Workspace) *storage.Change { return w.PutMember("member", "manager") },
	)
	edit(t, e.path, e.back(0, bucketMembers, memberName("acme", "member")))
	var lines bytes.Buffer
	mustOpen(t, e.path, Config{Log: slog.New(slog.NewTextHandler(&lines, nil))})
	if text := lines.String(); strings.Count(text, "level=ERROR") != 1 || !strings.Contains(text, `damaged member \"member\"`) {
		t.Errorf("logged: %s", text)
	}
}

// TestTagOfANewerVersionIsErrNewer: a version of keys that this program does not know is
// not damage.
func TestTagOfANewerVersionIsErrNewer(t *testing.T) {
	e := newEdited(t, func(w *storagetest.Workspace) *storage.Change { return w.PutMember("member", "admin") })
	edit(t, e.path, func(tx *bolt.Tx) error {
		return rewrite(tx, bucketHeads, "acme", &storagev1.HeadRecord{}, func(head *storagev1.HeadRecord) { head.TagKeyVersion++ })
	})
	if _, err := Open(e.path, quick); !errors.Is(err, storage.ErrNewer) {
		t.Errorf("Open: %v, want ErrNewer", err)
	}
}
