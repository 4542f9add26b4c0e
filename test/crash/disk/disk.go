// Package disk models a folder of files as an operating system keeps it: what processes
// see, and what a power cut leaves.
//
// A write is visible at once. It is durable once the file was synced, and a name once the
// folder was synced. A power cut before that may keep, of each page of 4 KiB, any version
// since the last sync, or sectors of two versions; of a file's size, any value since the
// last sync; and of the changes of names, a first part in order, like filesystems with a
// journal. A failed sync marks the pages that it did not write as clean: they are visible,
// and later syncs do not write them either. ext4 and XFS work like this.
package disk

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

const (
	// PageSize is the unit in which the system writes files back.
	PageSize = 4096
	// SectorSize is what a disk writes whole or not at all.
	SectorSize = 512
)

// page is the content of a page; nil stands for zeros. The content is replaced, never changed.
type page *[PageSize]byte

// Disk is one folder. The zero value is an empty folder.
type Disk struct {
	files []*file // by number; a number is never used again
	names map[string]int
	// changes are the changes of names that are not durable yet, in order. durable are the names
	// without these changes.
	changes []map[string]int // name to number, -1 if the name is removed
	durable map[string]int
	clock   int // counts versions
}

// file is one file.
type file struct {
	// seen are the pages as processes see them, kept the durable pages.
	seen, kept []page
	// versions are the contents of each dirty page since the page was last clean, in order; the
	// last one is the page in seen.
	versions map[int][]version
	size     int64
	keptSize int64
	sizes    []int64 // since the last sync, in order; the last one is size
}

type version struct {
	at      int // the disk's clock
	content page
}

// Kind is what an Op does.
type Kind int

// The kinds of operations.
const (
	Create     Kind = iota // a new file under Name
	Write                  // Data at Offset
	Resize                 // to Size
	Allocate               // at least Offset+Size bytes, of which those not written are zeros
	Punch                  // zeros for Size bytes at Offset
	Sync                   // of one file
	FailedSync             // of one file; Seed decides what it wrote
	SyncFolder             // of all names
	Link                   // Name also as NewName
	Rename                 // Name to NewName
	Unlink                 // Name
)

var kinds = []string{"create", "write", "resize", "allocate", "punch", "sync", "failed sync", "sync of the folder", "link", "rename", "unlink"}

// Op is one thing that a process did to the folder.
type Op struct {
	Kind          Kind
	File          int // number of the file, for all but names
	Name, NewName string
	Data          []byte
	Offset, Size  int64
	Seed          uint64
}

// String describes the operation for a person.
func (o Op) String() string {
	switch o.Kind {
	case Write:
		return fmt.Sprintf("write of %d bytes at %d (page %d) of file %d", len(o.Data), o.Offset, o.Offset/PageSize, o.File)
	case Create, Link, Rename, Unlink, SyncFolder:
		return fmt.Sprintf("%s %s %s", kinds[o.Kind], o.Name, o.NewName)
	default:
		return fmt.Sprintf("%s of file %d, %d bytes at %d", kinds[o.Kind], o.File, o.Size, o.Offset)
	}
}

// Clone returns an independent copy.
func (d *Disk) Clone() *Disk {
	clone := &Disk{names: maps.Clone(d.names), durable: maps.Clone(d.durable), changes: slices.Clone(d.changes), clock: d.clock}
	for _, f := range d.files {
		copied := *f
		copied.seen, copied.kept, copied.sizes = slices.Clone(f.seen), slices.Clone(f.kept), slices.Clone(f.sizes)
		copied.versions = make(map[int][]version, len(f.versions))
		for index, versions := range f.versions {
			copied.versions[index] = slices.Clip(versions)
		}
		clone.files = append(clone.files, &copied)
	}
	return clone
}

// Number returns the number of the file that processes see under a name, -1 if no file has the
// name.
func (d *Disk) Number(name string) int {
	if number, found := d.names[name]; found {
		return number
	}
	return -1
}

// Size returns the size of a file as processes see it.
func (d *Disk) Size(number int) int64 { return d.files[number].size }

// Dirty reports whether something is not durable.
func (d *Disk) Dirty() bool {
	for _, f := range d.files {
		if len(f.versions) > 0 || len(f.sizes) > 0 {
			return true
		}
	}
	return len(d.changes) > 0
}

// Apply makes the change of an operation.
func (d *Disk) Apply(op Op) {
	switch op.Kind {
	case Create:
		d.files = append(d.files, &file{versions: make(map[int][]version)})
		d.rename(map[string]int{op.Name: len(d.files) - 1})
	case Link:
		d.rename(map[string]int{op.NewName: d.names[op.Name]})
	case Rename:
		d.rename(map[string]int{op.NewName: d.names[op.Name], op.Name: -1})
	case Unlink:
		d.rename(map[string]int{op.Name: -1})
	case SyncFolder:
		d.durable, d.changes = maps.Clone(d.names), nil
	case Write:
		d.write(d.files[op.File], op.Offset, op.Data)
	case Resize:
		d.resize(d.files[op.File], op.Size)
	case Allocate:
		if f := d.files[op.File]; op.Offset+op.Size > f.size {
			d.resize(f, op.Offset+op.Size)
		}
	case Punch:
		d.write(d.files[op.File], op.Offset, make([]byte, op.Size))
	case Sync:
		d.files[op.File].sync()
	case FailedSync:
		d.files[op.File].failSync(rand.New(rand.NewPCG(op.Seed, 1)))
	}
}

func (d *Disk) rename(change map[string]int) {
	if d.names == nil {
		d.names = make(map[string]int)
	}
	follow(d.names, change)
	d.changes = append(d.changes, change)
}

func follow(names, change map[string]int) {
	for name, number := range change {
		if number < 0 {
			delete(names, name)
		} else {
			names[name] = number
		}
	}
}

func (d *Disk) write(f *file, offset int64, data []byte) {
	for len(data) > 0 {
		index, within := int(offset/PageSize), int(offset%PageSize)
		content := new([PageSize]byte)
		if index < len(f.seen) && f.seen[index] != nil {
			*content = *f.seen[index]
		}
		length := copy(content[within:], data)
		d.replace(f, index, content)
		data, offset = data[length:], offset+int64(length)
	}
	if offset > f.size {
		f.size = offset
		f.sizes = append(f.sizes, offset)
	}
}

func (d *Disk) replace(f *file, index int, content page) {
	for len(f.seen) <= index {
		f.seen = append(f.seen, nil)
	}
	f.seen[index] = content
	d.clock++
	f.versions[index] = append(f.versions[index], version{d.clock, content})
}

func (d *Disk) resize(f *file, size int64) {
	if size < f.size {
		for index := range f.seen {
			switch start := int64(index) * PageSize; {
			case start >= size:
				d.replace(f, index, nil)
			case start+PageSize > size && f.seen[index] != nil:
				content := new([PageSize]byte)
				copy(content[:size-start], f.seen[index][:])
				d.replace(f, index, content)
			}
		}
	}
	f.size = size
	f.sizes = append(f.sizes, size)
}

func (f *file) sync() {
	f.kept, f.keptSize, f.sizes = slices.Clone(f.seen), f.size, nil
	clear(f.versions)
}

// failSync writes some of the dirty pages, and marks all of them as clean.
func (f *file) failSync(random *rand.Rand) {
	part := []float64{0, 0.1, 0.5, 0.9}[random.IntN(4)]
	for _, index := range slices.Sorted(maps.Keys(f.versions)) {
		if random.Float64() < part {
			f.keep(index, f.seen[index])
		}
	}
	clear(f.versions)
	// sizes stay pending: the journal writes them, and has not failed.
}

func (f *file) keep(index int, content page) {
	for len(f.kept) <= index {
		f.kept = append(f.kept, nil)
	}
	f.kept[index] = content
}

// Cut is which changes a power cut leaves of those that were not durable.
type Cut int

// The values of Cut.
const (
	// Nothing leaves none of the changes.
	Nothing Cut = iota
	// Everything leaves all changes.
	Everything
	// Some leaves a random version of some pages.
	Some
	// Older leaves the changes that were made before a random moment.
	Older
	// Header leaves the first two pages of a file, and few others.
	Header
	// Body leaves all pages but the first two of a file.
	Body
	// Single leaves one page.
	Single
	// AllButOne leaves all pages but one.
	AllButOne
	// Cuts is the number of values.
	Cuts
)

func (c Cut) String() string {
	return []string{"nothing", "everything", "some", "older", "header", "body", "single", "all but one"}[c]
}

// PowerCut returns what is left of the disk. All of it is durable. If torn is true, pages
// may be mixed from two versions, by sectors.
func (d *Disk) PowerCut(cut Cut, torn bool, random *rand.Rand) *Disk {
	left := &Disk{names: maps.Clone(d.durable)}
	if left.names == nil {
		left.names = make(map[string]int)
	}
	kept := 0
	switch cut {
	case Nothing:
	case Everything:
		kept = len(d.changes)
	default:
		kept = random.IntN(len(d.changes) + 1)
	}
	for _, change := range d.changes[:kept] {
		follow(left.names, change)
	}
	left.durable = maps.Clone(left.names)
	choose := d.chooser(cut, random)
	for number, f := range d.files {
		after := &file{versions: make(map[int][]version), kept: slices.Clone(f.kept), keptSize: f.keptSize}
		for _, index := range slices.Sorted(maps.Keys(f.versions)) {
			chosen := choose(number, index, f.versions[index])
			content := f.contentOf(index, chosen)
			if torn && random.IntN(2) == 0 {
				content = tear(content, f.contentOf(index, random.IntN(len(f.versions[index])+1)-1), random)
			}
			after.keep(index, content)
		}
		if cut == Everything {
			after.keptSize = f.size
		} else if pick := random.IntN(len(f.sizes) + 1); cut != Nothing && pick > 0 {
			after.keptSize = f.sizes[pick-1]
		}
		after.trim()
		after.seen, after.size = slices.Clone(after.kept), after.keptSize
		left.files = append(left.files, after)
	}
	return left
}

// contentOf returns the chosen version of a page, or the durable content if chosen is -1.
func (f *file) contentOf(index, chosen int) page {
	switch {
	case chosen >= 0:
		return f.versions[index][chosen].content
	case index < len(f.kept):
		return f.kept[index]
	}
	return nil
}

// trim cuts off the durable content behind the durable size.
func (f *file) trim() {
	pages := int((f.keptSize + PageSize - 1) / PageSize)
	if pages < len(f.kept) {
		f.kept = f.kept[:pages]
	}
	if within := f.keptSize % PageSize; within > 0 && pages == len(f.kept) && f.kept[pages-1] != nil {
		content := new([PageSize]byte)
		copy(content[:within], f.kept[pages-1][:])
		f.kept[pages-1] = content
	}
}

// chooser returns a function that chooses a version of a dirty page, -1 for the durable content.
func (d *Disk) chooser(cut Cut, random *rand.Rand) func(number, index int, versions []version) int {
	type place struct{ number, index int }
	var dirty []place
	oldest, newest := 0, 0
	for number, f := range d.files {
		for _, index := range slices.Sorted(maps.Keys(f.versions)) {
			dirty = append(dirty, place{number, index})
			if first := f.versions[index][0].at; oldest == 0 || first < oldest {
				oldest = first
			}
			newest = max(newest, f.versions[index][len(f.versions[index])-1].at)
		}
	}
	one := place{-1, -1}
	if len(dirty) > 0 {
		one = dirty[random.IntN(len(dirty))]
	}
	moment := oldest + random.IntN(newest-oldest+1)
	part := []float64{0.1, 0.3, 0.5, 0.7, 0.9}[random.IntN(5)]
	last := func(versions []version) int { return len(versions) - 1 }
	return func(number, index int, versions []version) int {
		header := index < 2
		switch cut {
		case Everything:
			return last(versions)
		case Older:
			chosen := -1
			for at, version := range versions {
				if version.at <= moment {
					chosen = at
				}
			}
			return chosen
		case Some:
			if random.Float64() < part {
				return random.IntN(len(versions))
			}
		case Header:
			if header || random.Float64() < 0.1 {
				return last(versions)
			}
		case Body:
			if !header {
				return last(versions)
			}
		case Single:
			if one == (place{number, index}) {
				return last(versions)
			}
		case AllButOne:
			if one != (place{number, index}) {
				return last(versions)
			}
		case Nothing, Cuts:
		}
		return -1
	}
}

// tear mixes two contents of a page by sectors.
func tear(one, other page, random *rand.Rand) page {
	mixed := new([PageSize]byte)
	for start := 0; start < PageSize; start += SectorSize {
		from := one
		if random.IntN(2) == 0 {
			from = other
		}
		if from != nil {
			copy(mixed[start:start+SectorSize], from[start:start+SectorSize])
		}
	}
	return mixed
}

// Restore writes what processes see into an empty folder.
func (d *Disk) Restore(folder string) error {
	first := make(map[int]string)
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		number, path := d.names[name], filepath.Join(folder, name)
		if other, linked := first[number]; linked {
			if err := os.Link(filepath.Join(folder, other), path); err != nil {
				return err
			}
			continue
		}
		first[number] = name
		// Most files get disk space for all of their pages; a quarter has holes, as copies may.
		if err := d.files[number].restore(path, d.clock%4 == 0); err != nil {
			return err
		}
	}
	return nil
}

func (f *file) restore(path string, holes bool) error {
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	zeros := new([PageSize]byte)
	for index := range int((f.size + PageSize - 1) / PageSize) {
		content := zeros
		switch {
		case index < len(f.seen) && f.seen[index] != nil:
			content = f.seen[index]
		case holes:
			continue
		}
		if _, err := out.WriteAt(content[:], int64(index)*PageSize); err != nil {
			return err
		}
	}
	return out.Truncate(f.size)
}

// Damage replaces bytes of a file, without an operation, both as processes see them and as they
// are durable. The rest of the file becomes durable, too.
func (d *Disk) Damage(number int, offset int64, data []byte) {
	f := d.files[number]
	size := f.size
	d.write(f, offset, data)
	f.sync()
	if f.size > size {
		f.size, f.keptSize = size, size
		f.trim()
		f.seen = slices.Clone(f.kept)
	}
}

// Read returns what processes see in a file.
func (d *Disk) Read(number int) []byte {
	f := d.files[number]
	content := make([]byte, f.size)
	for index, page := range f.seen {
		if page != nil && int64(index)*PageSize < f.size {
			copy(content[index*PageSize:], page[:])
		}
	}
	return content
}

// Bytes returns bytes of a file as processes see it, zeros where there are none.
func (d *Disk) Bytes(number int, offset, length int64) []byte {
	content := make([]byte, length)
	f := d.files[number]
	for done := int64(0); done < length; {
		index, within := (offset+done)/PageSize, (offset+done)%PageSize
		part := min(PageSize-within, length-done)
		if index < int64(len(f.seen)) && f.seen[index] != nil {
			copy(content[done:done+part], f.seen[index][within:])
		}
		done += part
	}
	return content
}

// Equal reports whether processes see the same in two folders.
func (d *Disk) Equal(other *Disk) bool {
	names := d.Names()
	if !slices.Equal(names, other.Names()) {
		return false
	}
	for _, name := range names {
		if !bytes.Equal(d.Read(d.names[name]), other.Read(other.names[name])) {
			return false
		}
	}
	return true
}

// Names returns the names that processes see, sorted.
func (d *Disk) Names() []string { return slices.Sorted(maps.Keys(d.names)) }

// Compare returns an error that says how a real folder differs from what processes see, or why
// it cannot be read. A difference means that something was not recorded.
func (d *Disk) Compare(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	var found []string
	for _, entry := range entries {
		if entry.Type().IsRegular() {
			found = append(found, entry.Name())
		}
	}
	if names := d.Names(); !slices.Equal(found, names) {
		return fmt.Errorf("the folder holds %q, the record says %q", found, names)
	}
	for _, name := range found {
		content, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return err
		}
		recorded := d.Read(d.names[name])
		if len(recorded) != len(content) {
			return fmt.Errorf("%s has %d bytes, the record says %d", name, len(content), len(recorded))
		}
		for index := range content {
			if content[index] != recorded[index] {
				return fmt.Errorf("%s differs from the record at byte %d", name, index)
			}
		}
	}
	return nil
}
