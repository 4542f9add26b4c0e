package boltstore

import (
	"hash/maphash"
	"maps"
	"math"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// fileIndex is what the store keeps in memory about its file: the slot of each key, the
// request ids that were used, every head, and what each record should be. Because it knows the
// slots, the names of keys in the file can ascend with time. A commit checks heads and ids
// without reading the file. Store.state guards the index; only the committer changes it.
//
// What the index holds of keys and members has no pointers: the garbage collector would visit
// them, millions of them in a large store.
type fileIndex struct {
	// ids gives each key a number. A projection may use the same numbers.
	ids *flat.IDs
	// keys are the keys by number.
	keys flat.Chunks[packedKey]
	// lists has the keys of each workspace.
	lists flat.Lists
	// firstSlot is the slot of the key that was added first; 0 if there was none.
	firstSlot int64
	// farSlots are the slots, by number, that do not fit into a packedKey.
	farSlots map[uint32]int64
	// requestCounts is how many request ids a key has, by number; a key without any is not in it.
	requestCounts map[uint32]int
	members       memberElements

	workspaces map[string]*indexedWorkspace
	// numbered are the workspaces by their number.
	numbered []*indexedWorkspace
	nextSlot int64
	// lostHeads are the ids of workspaces whose head is missing in the file.
	lostHeads []string
	// lostKeys are the ids of keys whose record is missing in the file, and their workspaces.
	lostKeys map[string]*indexedWorkspace
	// damage is what was wrong with the file when the index was built.
	damage *damage
}

// indexedKey is what the index holds of one key.
type indexedKey struct {
	number    uint32
	slot      int64
	workspace *indexedWorkspace
	// element is the beginning of the record's element (integrity.Element.Short).
	element uint64
}

// packedKey is an indexedKey in memory: 16 bytes.
type packedKey struct {
	element uint64
	// slot is less fileIndex.firstSlot.
	slot      uint32
	workspace uint32 // its number
}

// farSlot stands for a slot that does not fit into a packedKey: one more than 4,294,967,294 after
// the first. Only a damaged name has one, or a store in which keys are created faster than memory
// can hold them.
const farSlot = math.MaxUint32

// indexedWorkspace is what the index holds of one workspace. The empty id is the policy's.
type indexedWorkspace struct {
	id     string
	number uint32
	// head is the workspace's newest head, which revision headRevision put.
	head         storage.Head
	headRevision int64
	// damagedHead is set if the stored head is unreadable or stale. Then every change is
	// refused.
	damagedHead error
	// sum is the sum of the workspace's records as they should be. own is the beginning of the
	// element of the workspace's own record (the policy in the empty workspace), as it should be.
	sum    integrity.Sum
	own    uint64
	hasOwn bool
	// faults are the errors of records that are unreadable, wrong or missing; missing are only
	// the missing records.
	faults  map[recordID]error
	missing []recordID
	// damaged is set if it is unknown which records are wrong. Then all records count as wrong.
	damaged error
	// tag is the tag of the stored head. It is set only while the file is being opened.
	tag []byte
	// keys are the numbers of the workspace's keys by ascending slot, in fileIndex.lists.
	keys flat.List
	// requestIDs maps each used request id to the id of its key.
	requestIDs map[string]string
}

// newFileIndex returns an index for about that many keys.
func newFileIndex(keys int) *fileIndex {
	return &fileIndex{
		ids:           flat.NewIDs(keys),
		requestCounts: make(map[uint32]int),
		members:       newMemberElements(),
		workspaces:    make(map[string]*indexedWorkspace),
		lostKeys:      make(map[string]*indexedWorkspace),
		nextSlot:      1,
	}
}

// workspace returns a workspace of the index, and adds it if the index does not have it.
func (d *fileIndex) workspace(id string) *indexedWorkspace {
	entry := d.workspaces[id]
	if entry == nil {
		entry = &indexedWorkspace{id: id, number: uint32(len(d.numbered))} //nolint:gosec // G115: far fewer
		d.workspaces[id] = entry
		d.numbered = append(d.numbered, entry)
	}
	return entry
}

// key returns a key of the index, and reports whether the index has it.
func (d *fileIndex) key(keyID string) (indexedKey, bool) {
	number := d.ids.Find(keyID, flat.Store)
	if number == 0 {
		return indexedKey{}, false
	}
	packed := d.keys.At(number)
	return indexedKey{number: number, slot: d.slot(number), workspace: d.numbered[packed.workspace], element: packed.element}, true
}

// slot returns the slot of the key with a number.
func (d *fileIndex) slot(number uint32) int64 {
	if slot := d.keys.At(number).slot; slot != farSlot {
		return d.firstSlot + int64(slot)
	}
	return d.farSlots[number]
}

// addKey adds a key and reports whether the index did not have it. Keys are added in the order of
// their slots.
func (d *fileIndex) addKey(entry *indexedWorkspace, keyID string, slot int64, element uint64) bool {
	number, before := d.ids.Hold(keyID, flat.Store)
	if before {
		return false
	}
	d.place(entry, number, slot, element)
	return true
}

// place adds a key whose number the index holds.
func (d *fileIndex) place(entry *indexedWorkspace, number uint32, slot int64, element uint64) {
	if d.firstSlot == 0 {
		d.firstSlot = slot
	}
	packed := packedKey{element: element, slot: farSlot, workspace: entry.number}
	if after := slot - d.firstSlot; 0 <= after && after < farSlot {
		packed.slot = uint32(after)
	} else {
		if d.farSlots == nil {
			d.farSlots = make(map[uint32]int64)
		}
		d.farSlots[number] = slot
	}
	d.keys.Grow(number)
	*d.keys.At(number) = packed
	d.lists.Add(&entry.keys, number)
	d.nextSlot = max(d.nextSlot, slot+1)
}

// removeKey removes a key and its request ids.
func (d *fileIndex) removeKey(keyID string, requestIDs []string) {
	at, found := d.key(keyID)
	if !found {
		return
	}
	for _, requestID := range requestIDs {
		if at.workspace.requestIDs[requestID] == keyID {
			delete(at.workspace.requestIDs, requestID)
			d.requestCounts[at.number]--
		}
	}
	d.setRequestIDs(keyID, nil)
	d.lists.Remove(&at.workspace.keys, at.number)
	delete(d.farSlots, at.number)
	d.ids.Release(at.number, flat.Store)
}

// setRequestIDs replaces the request ids of a key.
func (d *fileIndex) setRequestIDs(keyID string, requestIDs []string) {
	at, found := d.key(keyID)
	if !found {
		return
	}
	used, kept := at.workspace.requestIDs, 0
	for _, requestID := range requestIDs {
		if used[requestID] == keyID {
			kept++
		}
	}
	if kept < d.requestCounts[at.number] { // rare: keys keep their request ids
		maps.DeleteFunc(used, func(_, by string) bool { return by == keyID })
	}
	if len(requestIDs) == 0 {
		delete(d.requestCounts, at.number)
		return
	}
	if used == nil {
		used = make(map[string]string)
		at.workspace.requestIDs = used
	}
	for _, requestID := range requestIDs {
		used[requestID] = keyID
	}
	d.requestCounts[at.number] = len(requestIDs)
}

// page returns up to limit+1 slots of a workspace below before, newest first. The
// additional slot shows that there is another page.
func (d *fileIndex) page(entry *indexedWorkspace, before int64, limit int) []int64 {
	page := make([]int64, 0, min(limit+1, entry.keys.Len()))
	for number := range d.lists.Backward(&entry.keys, func(number uint32) bool { return d.slot(number) >= before }) {
		if slot := d.slot(number); slot < before {
			page = append(page, slot)
		}
		if len(page) > limit {
			break
		}
	}
	return page
}

// memberElements holds the beginnings of the elements of all members' records, as they should be.
// It knows members by a hash of workspace and member with a random seed: two of them in one
// place are as unlikely as two records with the same element.
type memberElements struct {
	seed    maphash.Seed
	index   *flat.Index
	records flat.Arena[memberElement]
}

type memberElement struct{ hash, element uint64 }

func newMemberElements() memberElements {
	return memberElements{seed: maphash.MakeSeed(), index: flat.NewIndex(1 << 20)}
}

func (m *memberElements) hash(workspaceID, memberID string) uint64 {
	var hash maphash.Hash
	hash.SetSeed(m.seed)
	_, _ = hash.WriteString(workspaceID)
	_ = hash.WriteByte(0)
	_, _ = hash.WriteString(memberID)
	return hash.Sum64()
}

func (m *memberElements) hashOf(number uint32) uint64 { return m.records.At(number).hash }

// find returns the number of a member's record, or 0.
func (m *memberElements) find(hash uint64) uint32 {
	return m.index.Find(hash, func(number uint32) bool { return m.hashOf(number) == hash })
}

// get returns the element of a member, and reports whether there is one.
func (m *memberElements) get(workspaceID, memberID string) (element uint64, found bool) {
	number := m.find(m.hash(workspaceID, memberID))
	if number == 0 {
		return 0, false
	}
	return m.records.At(number).element, true
}

// set sets the element of the member with a hash.
func (m *memberElements) set(hash, element uint64) {
	number := m.find(hash)
	if number == 0 {
		number = m.records.Add()
		m.records.At(number).hash = hash
		m.index.Insert(hash, number, m.hashOf)
	}
	m.records.At(number).element = element
}

// remove removes a member.
func (m *memberElements) remove(workspaceID, memberID string) {
	hash := m.hash(workspaceID, memberID)
	if number := m.find(hash); number != 0 {
		m.index.Remove(hash, number, m.hashOf)
		m.records.Free(number)
	}
}
