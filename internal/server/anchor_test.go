package server

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// TestRolledBackStoreIsServedOnceItIsAccepted takes the steps of an operator: a start is
// refused and says what to do, check says why, accept asks for confirmation, and then the
// store is served.
func TestRolledBackStoreIsServedOnceItIsAccepted(t *testing.T) {
	data, anchor := t.TempDir(), filepath.Join(t.TempDir(), "elsewhere")
	file := filepath.Join(data, storeFile)
	workspace := storagetest.NewWorkspace("w")
	var older []byte
	for number := range 3 {
		older, _ = os.ReadFile(file)
		store, err := boltstore.Open(file, boltstore.Config{Anchor: anchor, Create: boltstore.CreateIfAbsent, Reserve: -1})
		if err != nil {
			t.Fatal(err)
		}
		change := workspace.PutMember("member", "admin")
		if number > 0 {
			change = workspace.CreateKey(storagetest.KeyID(number))
		}
		_, err = store.Commit(t.Context(), change)
		if err = errors.Join(err, store.Close()); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	if err := os.WriteFile(file, older, 0o600); err != nil {
		t.Fatal(err)
	}
	settings := config.Defaults()
	settings.Data, settings.Anchor, settings.Listen = data, anchor, "unix://"+filepath.Join(shortFolder(t), "s")
	var out bytes.Buffer
	err := Run(t.Context(), settings, &out, &out)
	if !errors.Is(err, storage.ErrAnchor) || !strings.Contains(err.Error(), "keysvc anchor accept") || strings.Contains(err.Error(), "\n") {
		t.Errorf("Run: %v, want ErrAnchor and what to do", err)
	}
	out.Reset()
	if err := Check(t.Context(), file, Outside{Anchor: anchor}, &out); err == nil || !strings.Contains(out.String(), "problem: anchor: ") {
		t.Errorf("Check: %v\n%s", err, &out)
	}
	out.Reset()
	no := errors.New("no")
	if err := AcceptAnchor(t.Context(), file, Outside{Anchor: anchor}, &out, func() error { return no }); !errors.Is(err, no) {
		t.Errorf("AcceptAnchor that was not confirmed: %v", err)
	}
	if err := Check(t.Context(), file, Outside{Anchor: anchor}, &out); err == nil {
		t.Error("it was accepted without a person's word")
	}
	if err := AcceptAnchor(t.Context(), file, Outside{Anchor: anchor}, &out, func() error { return nil }); err != nil || !strings.Contains(out.String(), "Accepted at revision 2, with the new epoch ") {
		t.Errorf("AcceptAnchor: %v\n%s", err, &out)
	}
	out.Reset()
	if err := Check(t.Context(), file, Outside{Anchor: anchor}, &out); err != nil || !strings.Contains(out.String(), "anchor        agrees, at revision 2\n") {
		t.Errorf("Check: %v\n%s", err, &out)
	}
	if err := AcceptAnchor(t.Context(), filepath.Join(data, "missing"), Outside{Anchor: anchor}, &out, func() error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("AcceptAnchor of a file that is not there: %v", err)
	}
}
