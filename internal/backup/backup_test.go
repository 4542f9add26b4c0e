package backup_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/backup"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// store is a Snapshotter with a content.
type store struct {
	content []byte
	closed  int
	err     error
}

// Snapshot implements storage.Snapshotter.
func (s *store) Snapshot(context.Context) (storage.Snapshot, error) {
	return storage.Snapshot{
		Content: &content{Reader: bytes.NewReader(s.content), store: s}, Size: int64(len(s.content)), Epoch: "e", Position: storage.Position{Revision: 7},
	}, s.err
}

type content struct {
	io.Reader
	store *store
}

// Close implements io.Closer.
func (c *content) Close() error {
	c.store.closed++
	return nil
}

func newBackups(from *store, check func(context.Context, string) error) *backup.Backups {
	return backup.New(backup.Config{Store: from, Rate: backup.MaxRate, Now: time.Now, Check: check})
}

func TestStreamPassesOnEveryByteWithItsDigest(t *testing.T) {
	for _, size := range []int{1, backup.ChunkBytes, backup.ChunkBytes + 1, 3*backup.ChunkBytes - 1} {
		from := &store{content: bytes.Repeat([]byte("abc"), size)[:size]}
		backups := newBackups(from, nil)
		var got []byte
		made, err := backups.Stream(t.Context(), 0, func(header backup.Header) error {
			if header.Size != int64(size) || header.Revision != 7 || header.Epoch != "e" {
				t.Errorf("the header is %+v", header)
			}
			return nil
		}, func(piece []byte) error { got = append(got, piece...); return nil })
		if err != nil || !bytes.Equal(got, from.content) || made.SHA256 != sha256.Sum256(from.content) || from.closed != 1 {
			t.Errorf("%d bytes: %v; %d came, closed %d times", size, err, len(got), from.closed)
		}
		if state := backups.State(); state.Last.SHA256 != made.SHA256 || state.Running || state.Failures != 0 {
			t.Errorf("the state is %+v", state)
		}
	}
}

// TestStreamThatBreaksOffGivesTheCopyUp, whatever it is that breaks off.
func TestStreamThatBreaksOffGivesTheCopyUp(t *testing.T) {
	broken := errors.New("broken")
	fine := func(backup.Header) error { return nil }
	take := func([]byte) error { return nil }
	for name, test := range map[string]struct {
		from  store
		begin func(backup.Header) error
		send  func([]byte) error
	}{
		"begin": {store{content: []byte("abc")}, func(backup.Header) error { return broken }, take},
		"send":  {store{content: []byte("abc")}, fine, func([]byte) error { return broken }},
		"store": {store{err: broken}, fine, take},
	} {
		backups := newBackups(&test.from, nil)
		for round := range 2 { // the turn is given back
			if _, err := backups.Stream(t.Context(), 0, test.begin, test.send); !errors.Is(err, broken) {
				t.Errorf("%s: %v", name, err)
			}
			if state := backups.State(); state.Failures != round+1 || !errors.Is(state.Error, broken) || state.Last.Size != 0 {
				t.Errorf("%s: the state is %+v", name, state)
			}
		}
		if test.from.err == nil && test.from.closed != 2 {
			t.Errorf("%s: the copies were closed %d times", name, test.from.closed)
		}
	}
}

func TestOneBackupIsMadeAtATime(t *testing.T) {
	backups := newBackups(&store{content: []byte("abc")}, nil)
	_, err := backups.Stream(t.Context(), 0, func(backup.Header) error {
		if !backups.State().Running {
			t.Error("it is not running")
		}
		_, err := backups.Save(t.Context(), t.TempDir())
		return err
	}, nil)
	if !errors.Is(err, backup.ErrRunning) {
		t.Errorf("the second one: %v, want ErrRunning", err)
	}
	if _, err := backup.New(backup.Config{}).Save(t.Context(), t.TempDir()); !errors.Is(err, backup.ErrUnsupported) {
		t.Errorf("without a store: %v, want ErrUnsupported", err)
	}
}

// TestSavedFileIsWholeAndCheckedOrNotThere: an unsound copy gets no name, and an existing file stays.
func TestSavedFileIsWholeAndCheckedOrNotThere(t *testing.T) {
	folder, from := t.TempDir(), &store{content: []byte("abc")}
	unsound := errors.New("unsound")
	check := func(_ context.Context, path string) error {
		if content, err := os.ReadFile(path); err != nil || string(content) != "abc" {
			t.Errorf("checked is %q, %v", content, err)
		}
		return unsound
	}
	backups := newBackups(from, func(ctx context.Context, path string) error { return check(ctx, path) })
	left := func() int {
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	if _, err := backups.Save(t.Context(), folder); !errors.Is(err, unsound) || left() != 0 {
		t.Errorf("an unsound copy: %v, %d files are left", err, left())
	}
	unsound = nil
	made, err := backups.Save(t.Context(), folder)
	if err != nil || left() != 1 {
		t.Fatalf("a sound copy: %v, %d files are left", err, left())
	}
	if info, err := os.Stat(made.Path); err != nil || info.Mode() != 0o600 || filepath.Base(made.Path) != backup.NameOf(made.Header) {
		t.Errorf("%s: %v, %v", made.Path, info.Mode(), err)
	}
	for _, force := range []bool{false, true} {
		file, err := backup.Create(folder, ".test-")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Write([]byte("abc")); err != nil {
			t.Fatal(err)
		}
		err = file.Finish(made.Path, force, func(path string) error { return check(t.Context(), path) })
		if discarded := file.Discard(); (err == nil) != force || discarded != nil || left() != 1 {
			t.Errorf("over a file, force %t: %v, %v, %d files are left", force, err, discarded, left())
		}
	}
}
