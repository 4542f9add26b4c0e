package anchor

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func mark(revision int64) Mark {
	return Mark{Epoch: "0123456789abcdef01234567", Revision: revision, Hash: [32]byte{byte(revision), 1}}
}

func create(t *testing.T) (string, *File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.anchor")
	if err := Create(path, mark(0)); err != nil {
		t.Fatal(err)
	}
	file, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return path, file
}

func TestAnchorRemembersTheNewestMark(t *testing.T) {
	path, file := create(t)
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 || info.Sys().(*syscall.Stat_t).Blocks*512 < slots*slotStride {
		t.Errorf("the file is %v, %v; want mode 0600 and room for all slots", info.Mode(), err)
	}
	for revision := range int64(20) {
		if err := file.Write(mark(revision)); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path); err != nil || got != mark(revision) || file.Mark() != got {
			t.Errorf("Read: %v, %v; want %v", got, err, mark(revision))
		}
	}
	again, err := Open(path)
	if err != nil || again.Mark() != mark(19) {
		t.Fatalf("Open: %v, %v", again.Mark(), err)
	}
	defer again.Close()
	if err := again.Write(mark(20)); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err != nil || got != mark(20) {
		t.Errorf("Read: %v, %v", got, err)
	}
}

// TestBrokenWriteLeavesTheMarkBefore interrupts writes, and damages slots.
func TestBrokenWriteLeavesTheMarkBefore(t *testing.T) {
	path, file := create(t)
	for revision := range int64(4) {
		if err := file.Write(mark(revision)); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := encode(mark(4), file.number+1)
	at := int(file.number+1) % slots * slotStride
	for torn := 0; torn < len(next); torn += 7 {
		content := bytes.Clone(good)
		copy(content[at:], next[:torn])
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path); err != nil || got != mark(3) {
			t.Fatalf("torn after %d bytes: %v, %v; want revision 3", torn, got, err)
		}
	}
	for index := range good {
		if index%slotStride >= slotSize && index%64 > 0 {
			continue // nothing is there
		}
		content := bytes.Clone(good)
		content[index] ^= 0x40
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path); err != nil || got != mark(3) && got != mark(2) {
			t.Fatalf("byte %d is damaged: %v, %v", index, got, err)
		}
	}
	for name, content := range map[string][]byte{
		"empty": nil, "short": good[:100], "zeros": make([]byte, len(good)), "no slot": append(make([]byte, slotStride), good[:100]...),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		}
		if _, err := Open(path); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: Open: %v, want ErrDamaged", name, err)
		}
	}
	if _, err := Read(filepath.Dir(path)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a folder: %v, want ErrDamaged", err)
	}
}

func TestCreateRefusesAndReplaceOverwritesAnAnchor(t *testing.T) {
	path, _ := create(t)
	if err := Create(path, mark(1)); !errors.Is(err, os.ErrExist) {
		t.Errorf("Create of what is there: %v, want ErrExist", err)
	}
	if err := Replace(path, mark(2)); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err != nil || got != mark(2) {
		t.Errorf("Read: %v, %v", got, err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("in the folder: %v, %v", entries, err)
	}
	for _, epoch := range []string{"", string(make([]byte, maxEpoch+1))} {
		if err := Replace(path, Mark{Epoch: epoch}); err == nil {
			t.Errorf("an epoch of %d bytes was taken", len(epoch))
		}
	}
}

// TestReplacedAnchorIsNoticed: a write fails if the path no longer names the file.
func TestReplacedAnchorIsNoticed(t *testing.T) {
	path, file := create(t)
	if err := Replace(path, mark(0)); err != nil {
		t.Fatal(err)
	}
	if err := file.Write(mark(1)); !errors.Is(err, ErrReplaced) {
		t.Errorf("Write: %v, want ErrReplaced", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := file.Write(mark(1)); !errors.Is(err, ErrReplaced) {
		t.Errorf("Write: %v, want ErrReplaced", err)
	}
}

// FuzzDecode decodes any bytes as a slot. A valid slot encodes to the same content, and
// nothing panics.
func FuzzDecode(f *testing.F) {
	f.Add(encode(mark(7), 3))
	f.Add(encode(Mark{Epoch: "e"}, 1<<63))
	f.Add(make([]byte, slotSize))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, slot []byte) {
		mark, number, ok := decode(slot)
		if !ok {
			return
		}
		if again, at, ok := decode(encode(mark, number)); !ok || again != mark || at != number {
			t.Errorf("%v, %d became %v, %d", mark, number, again, at)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	path := filepath.Join(b.TempDir(), "store.anchor")
	if err := Create(path, mark(0)); err != nil {
		b.Fatal(err)
	}
	file, err := Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	for b.Loop() {
		if err := file.Write(mark(rand.Int64())); err != nil {
			b.Fatal(err)
		}
	}
}
