package keys_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/validation"
)

const testedScope = "signatures:read"

// narrowing takes something away from a key of the member ann in acme.
type narrowing struct {
	name string
	do   func(t *testing.T, w *keystest.World, key *keysvcv1.Key)
	// named is how the line of `keysvc check` about the record begins; KEY is the key's id.
	named string
}

func narrowings() []narrowing {
	update := func(key *keysvcv1.Key, path string) *keysvcv1.UpdateKeyRequest {
		key.WorkspaceId = "acme"
		return &keysvcv1.UpdateKeyRequest{Key: key, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{path}}}
	}
	return []narrowing{
		{"key revoked", func(t *testing.T, w *keystest.World, key *keysvcv1.Key) {
			w.Must(w.RevokeKey(t.Context(), keystest.Actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: key.GetKeyId()}))
		}, "key KEY"},
		{"scope taken", func(t *testing.T, w *keystest.World, key *keysvcv1.Key) {
			w.Must(w.UpdateKey(t.Context(), keystest.Actor, update(&keysvcv1.Key{KeyId: key.GetKeyId(), Scopes: []string{"emails:read"}}, "scopes")))
		}, "key KEY"},
		{"rotated away", func(t *testing.T, w *keystest.World, key *keysvcv1.Key) {
			w.Must(w.RotateKey(t.Context(), keystest.Actor, &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: key.GetKeyId(), Overlap: durationpb.New(0)}))
		}, "key KEY"},
		{"address rule added", func(t *testing.T, w *keystest.World, key *keysvcv1.Key) {
			w.Must(w.UpdateKey(t.Context(), keystest.Actor, update(&keysvcv1.Key{KeyId: key.GetKeyId(), AllowedCidrs: []string{"192.0.2.0/24"}}, "allowed_cidrs")))
		}, "key KEY"},
		{"member suspended", func(_ *testing.T, w *keystest.World, _ *keysvcv1.Key) {
			w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
		}, `member "ann" of workspace "acme"`},
		{"member lowered", func(_ *testing.T, w *keystest.World, _ *keysvcv1.Key) {
			w.Put("acme", "ann", "member", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
		}, `member "ann" of workspace "acme"`},
		{"member removed", func(t *testing.T, w *keystest.World, _ *keysvcv1.Key) {
			w.Must(w.RemoveMember(t.Context(), keystest.Actor, &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "ann"}))
		}, `member "ann" of workspace "acme"`},
		{"workspace removed", func(t *testing.T, w *keystest.World, _ *keysvcv1.Key) {
			w.Must(w.RemoveWorkspace(t.Context(), keystest.Actor, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme"}))
		}, `workspace "acme"`},
		{"policy narrowed", func(t *testing.T, w *keystest.World, _ *keysvcv1.Key) {
			current, err := w.GetPolicy(t.Context(), access.All(), &keysvcv1.GetPolicyRequest{})
			w.Must(nil, err)
			for _, role := range current.GetPolicy().GetRoles() {
				if role.GetName() == "manager" {
					role.Scopes = []string{"emails:read"}
				}
			}
			w.Must(w.ApplyPolicy(t.Context(), keystest.Actor, &keysvcv1.ApplyPolicyRequest{
				Policy: current.GetPolicy(), ReplacesDigest: current.GetDigest(),
			}))
		}, "policy"},
	}
}

// narrowed is a store's file before and after a narrowing.
type narrowed struct {
	narrowing

	before, after string // paths
	// history has the content of the file after each of twelve changes before the narrowing;
	// final after three changes behind it.
	history [][]byte
	final   []byte
	token   string
	keyID   string
	// other is a token that the narrowing does not affect; empty if it affects all tokens.
	other string
}

// narrow makes a store with some content, and narrows a key of it.
func narrow(t *testing.T, n narrowing) narrowed {
	t.Helper()
	backend := keystest.NewBolt(t)
	// With a fixed seed, the pages of the file are used in the same order in every run.
	const seed = 5
	t.Logf("seed %d", seed)
	w := keystest.NewWorld(t, backend, rand.NewChaCha8([32]byte{seed}))
	for _, id := range []string{"acme", "beta"} {
		for _, member := range []string{"ann", "bob"} {
			w.Put(id, member, "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
			for range 12 {
				w.Create(id, member, testedScope)
			}
		}
	}
	created := w.Create("acme", "ann", testedScope)
	result := narrowed{narrowing: n, token: created.GetToken(), keyID: created.GetKey().GetKeyId()}
	if n.named != "policy" {
		result.other = w.Create("beta", "bob", testedScope).GetToken()
	}
	w.Want(result.token, testedScope, decide.NoReason)
	for range 12 {
		w.Create("acme", "bob", testedScope)
		result.history = append(result.history, read(t, backend.Path))
	}
	w.Restart(true)
	result.before = copyFile(t, backend.Path)
	n.do(t, w, created.GetKey())
	w.Restart(true)
	result.after = copyFile(t, backend.Path)
	if allowed, err := ask(t, result.after, result.token); allowed || err != nil {
		t.Fatalf("after the narrowing: allowed %t, %v", allowed, err)
	}
	for range 3 {
		w.Create("beta", "bob", "emails:read")
	}
	result.final = read(t, backend.Path)
	return result
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func copyFile(t *testing.T, path string) string {
	t.Helper()
	return newFile(t, read(t, path))
}

func newFile(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keysvc.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// ask opens a file and validates a token. The error is that of opening, loading or validating.
func ask(t *testing.T, path, token string) (allowed bool, err error) {
	t.Helper()
	// Without its anchor, which would refuse these copies before any other check sees them.
	store, err := boltstore.Open(path, boltstore.Config{Unanchored: true, Reserve: -1})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	index := projection.New(store, nil)
	if _, err := index.Load(t.Context()); err != nil {
		return false, err
	}
	at := func() time.Time { return time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC) }
	answer, err := validation.New(index, store, at).Validate(t.Context(), validation.Question{
		Workspaces: access.All(),
		Token:      token, Requirement: decide.Requirement{Scope: testedScope},
	})
	return answer.Decision == decide.Allowed, err
}

// values returns the content of a file's buckets of records, by bucket and name.
func values(t *testing.T, path string) map[[2]string][]byte {
	t.Helper()
	found := make(map[[2]string][]byte)
	withFile(t, path, func(tx *bolt.Tx) error {
		for _, bucket := range []string{"policy", "workspaces", "members", "keys"} {
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
	return found
}

func withFile(t *testing.T, path string, use func(tx *bolt.Tx) error) {
	t.Helper()
	database, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(database.Update(use), database.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestRecordThatWasPutBackIsFoundAtTheStart puts back the previous valid value of the record that a narrowing
// changed. The start finds it: no token that depends on the record is allowed, and tokens of other
// workspaces still are.
func TestRecordThatWasPutBackIsFoundAtTheStart(t *testing.T) {
	for _, n := range narrowings() {
		t.Run(n.name, func(t *testing.T) {
			file := narrow(t, n)
			before, after := values(t, file.before), values(t, file.after)
			var changed [][2]string
			for name, value := range after {
				if old, found := before[name]; found && !bytes.Equal(old, value) {
					changed = append(changed, name)
				}
			}
			if len(changed) != 1 || len(before) != len(after) {
				t.Fatalf("changed are %q", changed)
			}
			withFile(t, file.after, func(tx *bolt.Tx) error {
				return tx.Bucket([]byte(changed[0][0])).Put([]byte(changed[0][1]), before[changed[0]])
			})
			allowed, err := ask(t, file.after, file.token)
			if allowed || !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("allowed %t, %v; want ErrDamaged", allowed, err)
			}
			if file.other != "" {
				if allowed, err := ask(t, file.after, file.other); !allowed || err != nil {
					t.Errorf("another workspace: allowed %t, %v", allowed, err)
				}
			}
			checkNames(t, file)
		})
	}
}

// checkNames fails the test if the check of a file does not name the record that was put back, or
// names another one.
func checkNames(t *testing.T, file narrowed) {
	t.Helper()
	report, err := boltstore.Check(context.Background(), file.after)
	if err != nil {
		t.Fatal(err)
	}
	named := strings.ReplaceAll(file.named, "KEY", file.keyID) + ": it is not the record that audit event"
	if !slices.ContainsFunc(report.Problems, func(problem string) bool { return strings.HasPrefix(problem, named) }) {
		t.Errorf("check: %q, want one that begins with %q", report.Problems, named)
	}
	for _, problem := range report.Problems {
		if strings.Contains(problem, ": it is not the record") && !strings.HasPrefix(problem, named) {
			t.Errorf("check also names %q", problem)
		}
	}
}

// TestStalePagesNeverAllowAToken puts back the earlier content of the pages of a file, one page at a time.
// The meta pages are left out, because only an anchor can tell that the newest of them is stale.
func TestStalePagesNeverAllowAToken(t *testing.T) {
	outcomes := make(map[string]int)
	size := os.Getpagesize()
	// Opening a file has no more than one goroutine that matters, so the race detector need not
	// see all of them.
	tried, each := 0, 1
	if race.Enabled() {
		each = 4
	}
	for _, n := range narrowings() {
		file := narrow(t, n)
		seen := make(map[string]bool)
		for _, old := range file.history {
			for begin := 2 * size; begin+size <= min(len(old), len(file.final)); begin += size {
				page := old[begin : begin+size]
				if bytes.Equal(page, file.final[begin:begin+size]) || seen[string(page)] {
					continue
				}
				seen[string(page)] = true
				if tried++; tried%each != 0 {
					continue
				}
				stale := bytes.Clone(file.final)
				copy(stale[begin:], page)
				outcomes[tryStale(t, file, begin/size, newFile(t, stale))]++
			}
		}
	}
	t.Log(outcomes)
	// Whether a stale page leads to a refused start depends on the layout of the file.
	if outcomes["refused"]+outcomes["damaged"] == 0 || outcomes["without effect"] == 0 {
		t.Error("the pages were not of all kinds")
	}
}

// tryStale opens a file with a stale page and returns the outcome in words.
func tryStale(t *testing.T, file narrowed, page int, path string) string {
	t.Helper()
	allowed, err := ask(t, path, file.token)
	if !allowed && err == nil {
		return "without effect"
	}
	if allowed {
		t.Errorf("%s: page %d is stale, and the token is allowed", file.name, page)
	}
	store, openErr := boltstore.Open(path, boltstore.Config{Unanchored: true, Reserve: -1})
	if openErr != nil {
		return "refused"
	}
	_ = store.Close()
	report, checkErr := boltstore.Check(context.Background(), path)
	if checkErr != nil || len(report.Problems) == 0 {
		t.Errorf("%s: page %d: %v, and the check says %q, %v", file.name, page, err, report.Problems, checkErr)
	}
	return "damaged"
}

// TestAlteredRecordNeverTakesEffect alters the scope of a key in the file of a running store, with
// the right checksum. A change of the key is then refused, and the new scope is never allowed.
func TestAlteredRecordNeverTakesEffect(t *testing.T) {
	backend := keystest.NewBolt(t)
	w := keystest.NewWorld(t, uncheckedBolt{backend}, nil)
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	created := w.Create("acme", "ann", "folders:write")
	keyID := created.GetKey().GetKeyId()
	content := read(t, backend.Path)
	for name, value := range values(t, copyFile(t, backend.Path)) {
		if name[0] == "keys" {
			altered := bytes.Replace(storage.Payload(value), []byte("folders:write"), []byte("emails:delete"), 1)
			content = bytes.ReplaceAll(content, value, storage.Frame("keys/"+name[1], altered))
		}
	}
	file, err := os.OpenFile(backend.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	w.Must(nil, file.Close())
	_, err = w.UpdateKey(t.Context(), keystest.Actor, &keysvcv1.UpdateKeyRequest{
		Key:        &keysvcv1.Key{WorkspaceId: "acme", KeyId: keyID, Name: "honest"},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
	})
	if !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("UpdateKey: %v, want ErrDamaged", err)
	}
	w.Want(created.GetToken(), "folders:write", decide.NoReason)
	w.Want(created.GetToken(), "emails:delete", decide.ScopeNotGranted)
	report, err := boltstore.Check(t.Context(), copyFile(t, backend.Path))
	if err != nil || !slices.ContainsFunc(report.Problems, func(problem string) bool { return strings.Contains(problem, keyID) }) {
		t.Errorf("check: %q, %v; want one that names %s", report.Problems, err, keyID)
	}
}

// uncheckedBolt is a backend without the check at the end, because its file is altered.
type uncheckedBolt struct{ keystest.Bolt }

func (uncheckedBolt) Check(testing.TB) {}
