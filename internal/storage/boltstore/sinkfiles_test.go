package boltstore

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage/sink"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// TestLongSinkGoesOnInANewFile writes a sink that may have 4 KiB, opens it again, and deletes its old
// files.
func TestLongSinkGoesOnInANewFile(t *testing.T) {
	clock := time.Date(2026, time.May, 1, 0, 0, 0, 0, time.UTC)
	folder := t.TempDir()
	path, sinkPath := filepath.Join(folder, "store.db"), filepath.Join(folder, "audit.jsonl")
	open := func() *Store {
		store, err := Open(path, Config{
			Create: CreateIfAbsent, Sink: sinkPath, SinkReserve: -1, SinkMaxBytes: 4 << 10, wait: patient,
			Now: func() time.Time { clock = clock.Add(time.Hour); return clock },
		})
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
	store := open()
	workspace := storagetest.NewWorkspace("w")
	for index := range 40 {
		if index == 20 {
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
			store = open()
		}
		change := workspace.PutMember("member", "admin")
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	ordered := func() []string {
		files, err := sink.Files(sinkPath)
		if err == nil {
			files, err = sink.Order(files)
		}
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	files := ordered()
	if got := sunk(t, files...); len(files) < 4 || len(got) != 40+len(files) || got[len(got)-1] != "40" {
		t.Fatalf("the files %v have the revisions %v", files, got)
	}
	for _, name := range files {
		if info, err := os.Stat(name); err != nil || info.Size() > 6<<10 {
			t.Errorf("%s has %d bytes, %v", name, info.Size(), err)
		}
	}
	// Of the files, the first two end before the third begins. Another file is left alone.
	other := filepath.Join(folder, "audit.jsonl.old")
	if err := os.WriteFile(other, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	reader := sink.NewReader(files[2])
	first, err := reader.Next()
	if err = errors.Join(err, reader.Close()); err != nil {
		t.Fatal(err)
	}
	if removed, err := store.TrimSink(t.Context(), first.Time); err != nil || !slices.Equal(removed, files[:1]) {
		t.Errorf("before the third file begins, TrimSink removed %v, %v", removed, err)
	}
	if removed, err := store.TrimSink(t.Context(), first.Time.Add(1)); err != nil || !slices.Equal(removed, files[1:2]) {
		t.Errorf("then TrimSink removed %v, %v", removed, err)
	}
	if _, err := store.TrimSink(t.Context(), clock.Add(1000*time.Hour)); err != nil {
		t.Error(err)
	}
	if left := ordered(); !slices.Equal(left, []string{sinkPath}) {
		t.Errorf("much later %v are left", left)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open().Close(); err != nil {
		t.Errorf("the store is not opened with what is left: %v", err)
	}
}

// TestSinkThatCannotBeRenamedIsWrittenOn has a folder where the next file of a long sink cannot be
// made.
func TestSinkThatCannotBeRenamedIsWrittenOn(t *testing.T) {
	now := time.Date(2026, time.May, 1, 0, 0, 0, 0, time.UTC)
	folder := t.TempDir()
	path, sinkPath := filepath.Join(folder, "store.db"), filepath.Join(folder, "audit")
	taken := sinkPath + ".20260501T000000.000000000Z"
	if err := os.WriteFile(taken, []byte("taken"), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := Open(path, Config{
		Create: CreateIfAbsent, Sink: sinkPath, SinkReserve: -1, SinkMaxBytes: 1, wait: patient,
		Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	workspace := storagetest.NewWorkspace("w")
	for range 10 {
		change := workspace.PutMember("member", "admin")
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if got := sunk(t, sinkPath); len(got) != 11 || got[10] != "10" {
		t.Errorf("the sink has %v", got)
	}
	if content := readFile(t, taken); string(content) != "taken" {
		t.Errorf("the other file has %q", content)
	}
}
