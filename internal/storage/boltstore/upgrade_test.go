package boltstore

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
	"github.com/scribe-mail/keysvc/internal/token"
)

// committed copies a committed file into a folder of its own. testdata/README.md says what
// the files hold and how they were made.
func committed(t testing.TB, name string) string {
	t.Helper()
	packed, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	unpacked, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keysvc.db")
	writeFile(t, path, content)
	return path
}

// issued is a token of a committed file.
type issued struct {
	KeyID string `json:"key_id"`
	Token string `json:"token"`
	What  string `json:"what"`
}

func committedTokens(t testing.TB) []issued {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "schema1.tokens.json"))
	if err != nil {
		t.Fatal(err)
	}
	var content struct{ Tokens []issued }
	if err := json.Unmarshal(text, &content); err != nil {
		t.Fatal(err)
	}
	return content.Tokens
}

// stored reads a file's records without opening it as a store.
func stored(t testing.TB, path string) (records map[string]storage.Item, header *storagev1.HeaderRecord, position storage.Position) {
	t.Helper()
	records = make(map[string]storage.Item)
	file := &opened{}
	inspect(t, path, func(tx *bolt.Tx) error {
		for _, bucket := range loaded {
			err := tx.Bucket([]byte(bucket)).ForEach(func(name, value []byte) error {
				records[bucket+"/"+string(name)] = decode(bucket, string(name), value)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return file.readHeader(tx)
	})
	return records, file.header, file.position
}

func inspect(t testing.TB, path string, look func(tx *bolt.Tx) error) {
	t.Helper()
	database, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(database.View(look), database.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestUpgradeKeepsRecordsAndListsThem(t *testing.T) {
	path := committed(t, "schema1.db.gz")
	original := readFile(t, path)
	before, header, position := stored(t, path)
	if header.GetSchema() != storage.SchemaFirst {
		t.Fatalf("the committed file has schema %d", header.GetSchema())
	}
	if report := mustBeSound(t, path); report.Schema != storage.SchemaFirst {
		t.Errorf("Check of the old file: %+v", report)
	}
	store := mustOpen(t, path, Config{Now: func() time.Time { return time.Date(2126, 1, 1, 0, 0, 0, 0, time.UTC) }})
	storagetest.Check(t, store)
	if store.Epoch() != header.GetEpoch() {
		t.Errorf("epoch %s, want %s", store.Epoch(), header.GetEpoch())
	}
	loaded, err := store.Load(t.Context(), func(storage.Item) error { return nil })
	if err != nil || loaded.Revision <= position.Revision || !loaded.Time.Equal(position.Time) {
		t.Errorf("position %+v after %+v, %v", loaded, position, err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if report := mustBeSound(t, path); report.Schema != storage.SchemaIntegrity {
		t.Errorf("Check of the new file: %+v", report)
	}
	if kept := readFile(t, path+".schema1"); !bytes.Equal(kept, original) {
		t.Error("the old file was not kept as it was")
	}
	after, _, _ := stored(t, path)
	if len(after) != len(before) {
		t.Errorf("%d records, want %d", len(after), len(before))
	}
	events := make(map[string]int)
	for name, old := range before {
		compareUpgraded(t, name, old, after[name], events)
	}
	// This workspace has more records than one event may list.
	if events["delta"] != 2 {
		t.Errorf("the records of the largest workspace are listed in %d events", events["delta"])
	}
}

// compareUpgraded fails the test if a record differs from its old form by more than the
// upgrade changes.
func compareUpgraded(t *testing.T, name string, old, upgraded storage.Item, events map[string]int) {
	t.Helper()
	var before, after proto.Message
	switch {
	case old.Policy != nil && upgraded.Policy != nil:
		copied := proto.CloneOf(upgraded.Policy)
		copied.ChangeSequence = 0
		before, after = old.Policy, copied
	case old.Workspace != nil && upgraded.Workspace != nil:
		copied := proto.CloneOf(upgraded.Workspace)
		copied.ChangeSequence = 0
		before, after = old.Workspace, copied
	case old.Member != nil && upgraded.Member != nil:
		copied := proto.CloneOf(upgraded.Member)
		copied.ChangeSequence = 0
		before, after = old.Member, copied
	case old.Key != nil && upgraded.Key != nil:
		copied := proto.CloneOf(upgraded.Key)
		copied.ChangeSequence = old.Key.GetChangeSequence()
		for index, secret := range copied.GetSecrets() {
			digest := old.Key.GetSecrets()[index]
			verifier := token.VerifierOf([32]byte(digest.GetHash()))
			if secret.GetScheme() != uint32(token.SchemeVerifier) || !bytes.Equal(secret.GetHash(), verifier[:]) {
				t.Errorf("%q: secret %d is not the verifier of the digest", name, index)
			}
			secret.Scheme, secret.Hash = digest.GetScheme(), digest.GetHash()
		}
		before, after = old.Key, copied
	case old.Head != nil && upgraded.Head != nil:
		if upgraded.Head.Head.Sequence <= old.Head.Head.Sequence {
			t.Errorf("%q: no event was appended", name)
		}
		events[old.Head.WorkspaceID] = int(upgraded.Head.Head.Sequence - old.Head.Head.Sequence)
		return
	default:
		t.Errorf("%q: %+v became %+v", name, old, upgraded)
		return
	}
	if !proto.Equal(before, after) {
		t.Errorf("%q: %v became %v", name, before, after)
	}
}

// TestUpgradeKeepsTokens: every token still matches the stored verifier.
func TestUpgradeKeepsTokens(t *testing.T) {
	store := mustOpen(t, committed(t, "schema1.db.gz"), Config{})
	found := 0
	for _, each := range committedTokens(t) {
		parsed, err := token.Parse(each.Token)
		if err != nil {
			t.Fatal(err)
		}
		verifier := token.VerifierOf(parsed.Digest())
		key, _, err := store.GetKey(t.Context(), "", each.KeyID)
		if errors.Is(err, storage.ErrNotFound) && strings.HasPrefix(each.What, "purged") {
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", each.What, err)
		}
		for _, secret := range key.GetSecrets() {
			if bytes.Equal(secret.GetHash(), verifier[:]) {
				found++
			}
		}
	}
	// Two were purged. Two ended: one by a rotation without overlap, one by finishing a
	// rotation.
	if want := len(committedTokens(t)) - 4; found != want {
		t.Errorf("%d tokens match a secret, want %d", found, want)
	}
}

// TestInterruptedUpgradeCanBeRepeated copies the folder after every part of an upgrade, as a
// crash could leave it. In each copy the path names the old file or the new one, complete, and
// opening it succeeds.
func TestInterruptedUpgradeCanBeRepeated(t *testing.T) {
	path := committed(t, "schema1.db.gz")
	original := readFile(t, path)
	folders := make(map[string]string)
	snapshot := func(part string) {
		copied := t.TempDir()
		if err := os.CopyFS(copied, os.DirFS(filepath.Dir(path))); err != nil {
			t.Fatal(err)
		}
		// Copying does not keep hard links, so they are made again.
		kept := filepath.Join(copied, "keysvc.db.schema1")
		if current := readFile(t, filepath.Join(copied, "keysvc.db")); bytes.Equal(current, original) {
			if err := os.Remove(kept); err == nil {
				if err := os.Link(filepath.Join(copied, "keysvc.db"), kept); err != nil {
					t.Fatal(err)
				}
			}
		}
		folders[part] = copied
	}
	mustOpen(t, path, Config{upgraded: snapshot})
	if len(folders) != 5 {
		t.Fatalf("%d parts: %v", len(folders), folders)
	}
	// An incomplete new file.
	torn := t.TempDir()
	writeFile(t, filepath.Join(torn, "keysvc.db"), original)
	writeFile(t, filepath.Join(torn, "keysvc.db.upgrade"), original[:10_000])
	folders["torn"] = torn
	for part, folder := range folders {
		interrupted := filepath.Join(folder, "keysvc.db")
		mustBeSound(t, interrupted)
		store := mustOpen(t, interrupted, Config{})
		storagetest.Check(t, store)
		if err := store.Close(); err != nil {
			t.Errorf("%s: %v", part, err)
		}
		if report := mustBeSound(t, interrupted); report.Schema != storage.Schema {
			t.Errorf("%s: schema %d", part, report.Schema)
		}
		if !bytes.Equal(readFile(t, interrupted+".schema1"), original) {
			t.Errorf("%s: the old file was not kept", part)
		}
		if _, err := os.Stat(interrupted + ".upgrade"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the new file is left over: %v", part, err)
		}
	}
}

// TestUpgradeRefusesDamageAndTakenNames: a refused upgrade changes nothing.
func TestUpgradeRefusesDamageAndTakenNames(t *testing.T) {
	for name, spoil := range map[string]func(path string){
		"a key without its event": func(path string) {
			edit(t, path, func(tx *bolt.Tx) error {
				name, _ := tx.Bucket([]byte(bucketKeys)).Cursor().First()
				return rewrite(tx, bucketKeys, string(name), &storagev1.KeyRecord{}, func(key *storagev1.KeyRecord) { key.Sequence++ })
			})
		},
		// The upgrade would make this right, and hide it.
		"a key changed without an event": func(path string) {
			edit(t, path, func(tx *bolt.Tx) error {
				name, _ := tx.Bucket([]byte(bucketKeys)).Cursor().First()
				return rewrite(tx, bucketKeys, string(name), &storagev1.KeyRecord{}, func(key *storagev1.KeyRecord) { key.ChangeSequence = 1 })
			})
		},
		"the name is taken": func(path string) { writeFile(t, path+".schema1", []byte("something else")) },
	} {
		t.Run(name, func(t *testing.T) {
			path := committed(t, "schema1.db.gz")
			spoil(path)
			before := readFile(t, path)
			if _, err := Open(path, quick); err == nil || !strings.Contains(err.Error(), "upgrading "+path) {
				t.Errorf("Open: %v, want an error that says that the upgrade failed", err)
			}
			if !bytes.Equal(readFile(t, path), before) {
				t.Error("the file was changed")
			}
		})
	}
}

// TestEveryCommittedSchemaOpens opens the committed file of every schema, changes it, and
// opens it again.
func TestEveryCommittedSchemaOpens(t *testing.T) {
	for schema := storage.SchemaFirst; schema <= storage.Schema; schema++ {
		t.Run(strconv.Itoa(schema), func(t *testing.T) {
			path := committed(t, "schema"+strconv.Itoa(schema)+".db.gz")
			if report := mustBeSound(t, path); int(report.Schema) != schema {
				t.Fatalf("the committed file has schema %d", report.Schema)
			}
			store := mustOpen(t, path, Config{})
			storagetest.Check(t, store)
			_, _, damaged := loadAll(t, store)
			if len(damaged) > 0 {
				t.Errorf("damaged: %+v", damaged)
			}
			workspace := &storagetest.Workspace{ID: "acme", Head: mustHead(t, store, "acme")}
			for _, change := range []func() *storage.Change{
				func() *storage.Change { return workspace.PutMember("ann", "manager") },
				func() *storage.Change { return workspace.CreateKey(storagetest.KeyID(7)) },
			} {
				made := change()
				if _, err := store.Commit(t.Context(), made); err != nil {
					t.Fatal(err)
				}
				workspace.Follow(made)
			}
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
			if report := mustBeSound(t, path); report.Schema != storage.Schema {
				t.Errorf("schema %d", report.Schema)
			}
			if _, err := os.Stat(path + ".schema" + strconv.Itoa(schema)); (err == nil) != (schema < storage.Schema) {
				t.Errorf("the old file: %v", err)
			}
		})
	}
}
