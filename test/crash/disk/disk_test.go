package disk_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/scribe-mail/keysvc/test/crash/disk"
)

// made returns a disk with one durable file of two pages, the first of them full of 'a',
// the second of 'b'.
func made() *disk.Disk {
	d := &disk.Disk{}
	for _, op := range []disk.Op{
		{Kind: disk.Create, Name: "file"},
		{Kind: disk.Write, Data: bytes.Repeat([]byte("a"), disk.PageSize)},
		{Kind: disk.Write, Offset: disk.PageSize, Data: bytes.Repeat([]byte("b"), disk.PageSize)},
		{Kind: disk.Sync},
		{Kind: disk.SyncFolder},
	} {
		d.Apply(op)
	}
	return d
}

// seen returns the first byte of each page, '0' for zeros.
func seen(d *disk.Disk) string {
	var letters []byte
	content := d.Read(d.Number("file"))
	for start := 0; start < len(content); start += disk.PageSize {
		letter := content[start]
		if letter == 0 {
			letter = '0'
		}
		letters = append(letters, letter)
	}
	return string(letters)
}

// TestPowerCutKeepsVersions collects what power cuts leave of two pages that were written
// without a sync: each may be of any age, and nothing else.
func TestPowerCutKeepsVersions(t *testing.T) {
	d := made()
	if d.Dirty() {
		t.Error("dirty after its syncs")
	}
	for _, letter := range []string{"c", "d"} {
		d.Apply(disk.Op{Kind: disk.Write, Data: bytes.Repeat([]byte(letter), disk.PageSize)})
		d.Apply(disk.Op{Kind: disk.Write, Offset: disk.PageSize, Data: bytes.Repeat([]byte(letter), disk.PageSize)})
	}
	random := rand.New(rand.NewPCG(1, 1))
	found := make(map[disk.Cut]map[string]bool)
	for cut := range disk.Cuts {
		found[cut] = make(map[string]bool)
		for range 300 {
			left := d.PowerCut(cut, false, random)
			if left.Dirty() {
				t.Fatalf("%s: something is dirty after a power cut", cut)
			}
			found[cut][seen(left)] = true
		}
	}
	if got := found[disk.Nothing]; len(got) != 1 || !got["ab"] {
		t.Errorf("nothing: %v", got)
	}
	if got := found[disk.Everything]; len(got) != 1 || !got["dd"] {
		t.Errorf("everything: %v", got)
	}
	if got := found[disk.Some]; len(got) != 9 {
		t.Errorf("some: %v, expected every combination", got)
	}
	if got := found[disk.Older]; len(got) != 4 || !got["cb"] || !got["cc"] || !got["dc"] || !got["dd"] {
		t.Errorf("older: %v", got)
	}
	if got := seen(d); got != "dd" {
		t.Errorf("processes see %s", got)
	}
	d.Apply(disk.Op{Kind: disk.Sync})
	if got := seen(d.PowerCut(disk.Nothing, false, random)); got != "dd" {
		t.Errorf("%s is left of what was synced", got)
	}
}

// TestPowerCutTearsPagesBySector: half of the sectors may be older.
func TestPowerCutTearsPagesBySector(t *testing.T) {
	d := made()
	d.Apply(disk.Op{Kind: disk.Write, Data: bytes.Repeat([]byte("c"), disk.PageSize)})
	random, mixed := rand.New(rand.NewPCG(1, 1)), false
	for range 100 {
		content := d.PowerCut(disk.Everything, true, random).Read(0)[:disk.PageSize]
		for start := 0; start < disk.PageSize; start += disk.SectorSize {
			if count := bytes.Count(content[start:start+disk.SectorSize], content[start:start+1]); count != disk.SectorSize {
				t.Fatalf("a sector is torn: %d bytes are like the first", count)
			}
		}
		mixed = mixed || bytes.Contains(content, []byte("ac")) || bytes.Contains(content, []byte("ca"))
	}
	if !mixed {
		t.Error("no page was torn")
	}
}

// TestFailedSyncDropsWhatItDidNotWrite: processes see pages that a failed sync did not write, but
// a later sync does not write them either.
func TestFailedSyncDropsWhatItDidNotWrite(t *testing.T) {
	lost := false
	for seed := range uint64(50) {
		d := made()
		d.Apply(disk.Op{Kind: disk.Write, Data: bytes.Repeat([]byte("c"), disk.PageSize)})
		d.Apply(disk.Op{Kind: disk.FailedSync, Seed: seed})
		d.Apply(disk.Op{Kind: disk.Write, Offset: disk.PageSize, Data: bytes.Repeat([]byte("d"), disk.PageSize)})
		if got := seen(d); got != "cd" {
			t.Fatalf("processes see %s", got)
		}
		lost = lost || seen(d.PowerCut(disk.Everything, false, rand.New(rand.NewPCG(1, 1)))) == "ad"
	}
	if !lost {
		t.Error("nothing was lost")
	}
	d := made()
	d.Apply(disk.Op{Kind: disk.Write, Data: bytes.Repeat([]byte("c"), disk.PageSize)})
	d.Apply(disk.Op{Kind: disk.FailedSync, Seed: 1})
	d.Apply(disk.Op{Kind: disk.Write, Data: []byte("e")})
	d.Apply(disk.Op{Kind: disk.Sync})
	if got := seen(d.PowerCut(disk.Nothing, false, rand.New(rand.NewPCG(1, 1)))); got != "eb" {
		t.Errorf("%s is left of a page that was written again and synced", got)
	}
}

// TestUnsyncedSizesAndNamesAreLostInOrder: a size or a name that was not synced may be lost; of
// the changes of names, the newest are lost first.
func TestUnsyncedSizesAndNamesAreLostInOrder(t *testing.T) {
	d := made()
	d.Apply(disk.Op{Kind: disk.Resize, Size: 3 * disk.PageSize})
	d.Apply(disk.Op{Kind: disk.Create, Name: "other"})
	d.Apply(disk.Op{Kind: disk.Rename, Name: "other", NewName: "renamed"})
	d.Apply(disk.Op{Kind: disk.Unlink, Name: "renamed"})
	random, sizes, names := rand.New(rand.NewPCG(1, 1)), make(map[string]bool), make(map[string]bool)
	for range 200 {
		left := d.PowerCut(disk.Some, false, random)
		sizes[seen(left)] = true
		names[filepath.Join(left.Names()...)] = true
	}
	if len(sizes) != 2 || !sizes["ab"] || !sizes["ab0"] {
		t.Errorf("sizes: %v", sizes)
	}
	if len(names) != 3 || !names["file"] || !names["file/other"] || !names["file/renamed"] {
		t.Errorf("names: %v", names)
	}
}

// TestRestoreAndCompareSeeEveryDifference restores a disk into a real folder. Compare notices a
// write that was not recorded.
func TestRestoreAndCompareSeeEveryDifference(t *testing.T) {
	d := made()
	d.Apply(disk.Op{Kind: disk.Link, Name: "file", NewName: "link"})
	d.Apply(disk.Op{Kind: disk.Resize, Size: disk.PageSize + 100})
	d.Apply(disk.Op{Kind: disk.Allocate, Offset: disk.PageSize, Size: 4 * disk.PageSize})
	d.Apply(disk.Op{Kind: disk.Punch, Offset: 10, Size: 10})
	folder := t.TempDir()
	if err := d.Restore(folder); err != nil {
		t.Fatal(err)
	}
	if err := d.Compare(folder); err != nil {
		t.Error(err)
	}
	if got := seen(d); got != "ab000" {
		t.Errorf("processes see %s", got)
	}
	file, err := os.OpenFile(filepath.Join(folder, "link"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte("x"), 3*disk.PageSize); err != nil {
		t.Fatal(err)
	}
	if err := d.Compare(folder); err == nil {
		t.Error("a write that was not recorded was not noticed")
	}
}
