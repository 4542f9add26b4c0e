package boltstore

import (
	"maps"
	"slices"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// fileIndex is what the store keeps in memory about its file: the slot of each key, the
// request ids that were used, every head, and what each record should be. Because it knows the
// slots, the names of keys in the file can ascend with time. A commit checks heads and ids
// without reading the file. Store.state guards the index; only the committer changes it.
type fileIndex struct {
	keys       map[string]indexedKey
	workspaces map[string]*indexedWorkspace
	nextSlot   int64
	// lostHeads are the ids of workspaces whose head is missing in the file.
	lostHeads []string
	// lostKeys are the ids of keys whose record is missing in the file, and their workspaces.
	lostKeys map[string]*indexedWorkspace
	// damage is what was wrong with the file when the index was built.
	damage *damage
}

// indexedKey is what the index holds of one key.
type indexedKey struct {
	slot      int64
	workspace *indexedWorkspace
	// requestIDs is how many request ids the key has.
	requestIDs int
	// element is the beginning of the record's element (integrity.Element.Short).
	element uint64
}

// indexedWorkspace is what the index holds of one workspace. The empty id is the policy's.
type indexedWorkspace struct {
	id string
	// head is the workspace's newest head, which revision headRevision put.
	head         storage.Head
	headRevision int64
	// damagedHead is set if the stored head is unreadable or stale. Then every change is
	// refused.
	damagedHead error
	// sum is the sum of the workspace's records as they should be. members and own hold the
	// beginnings of the elements of the members' records, and of the workspace's own record
	// (the policy in the empty workspace), as they should be.
	sum     integrity.Sum
	members map[string]uint64
	own     uint64
	hasOwn  bool
	// faults are the errors of records that are unreadable, wrong or missing; missing are only
	// the missing records.
	faults  map[recordID]error
	missing []recordID
	// damaged is set if it is unknown which records are wrong. Then all records count as wrong.
	damaged error
	// tag is the tag of the stored head. It is set only while the file is being opened.
	tag []byte
	// slots of the workspace's keys, ascending.
	slots []int64
	// requestIDs maps each used request id to the id of its key.
	requestIDs map[string]string
}

func newFileIndex() *fileIndex {
	return &fileIndex{
		keys:       make(map[string]indexedKey),
		workspaces: make(map[string]*indexedWorkspace),
		lostKeys:   make(map[string]*indexedWorkspace),
		nextSlot:   1,
	}
}

// workspace returns a workspace of the index, and adds it if the index does not have it.
func (d *fileIndex) workspace(id string) *indexedWorkspace {
	entry := d.workspaces[id]
	if entry == nil {
		entry = &indexedWorkspace{id: id}
		d.workspaces[id] = entry
	}
	return entry
}

// addKey adds a key. Keys are added in the order of their slots.
func (d *fileIndex) addKey(workspaceID, keyID string, slot int64, element uint64) {
	entry := d.workspace(workspaceID)
	d.keys[keyID] = indexedKey{slot: slot, workspace: entry, element: element}
	entry.slots = append(entry.slots, slot)
	d.nextSlot = max(d.nextSlot, slot+1)
}

// removeKey removes a key and its request ids.
func (d *fileIndex) removeKey(keyID string, requestIDs []string) {
	at, found := d.keys[keyID]
	if !found {
		return
	}
	for _, requestID := range requestIDs {
		if at.workspace.requestIDs[requestID] == keyID {
			delete(at.workspace.requestIDs, requestID)
			at.requestIDs--
		}
	}
	d.keys[keyID] = at
	d.setRequestIDs(keyID, nil)
	delete(d.keys, keyID)
	if index, found := slices.BinarySearch(at.workspace.slots, at.slot); found {
		at.workspace.slots = slices.Delete(at.workspace.slots, index, index+1)
	}
}

// setRequestIDs replaces the request ids of a key.
func (d *fileIndex) setRequestIDs(keyID string, requestIDs []string) {
	at := d.keys[keyID]
	used, kept := at.workspace.requestIDs, 0
	for _, requestID := range requestIDs {
		if used[requestID] == keyID {
			kept++
		}
	}
	if kept < at.requestIDs { // rare: keys keep their request ids
		maps.DeleteFunc(used, func(_, by string) bool { return by == keyID })
	}
	if len(requestIDs) > 0 && used == nil {
		used = make(map[string]string)
		at.workspace.requestIDs = used
	}
	for _, requestID := range requestIDs {
		used[requestID] = keyID
	}
	at.requestIDs = len(requestIDs)
	d.keys[keyID] = at
}

// page returns up to limit+1 slots of the workspace below before, newest first. The
// additional slot shows that there is another page.
func (w *indexedWorkspace) page(before int64, limit int) []int64 {
	end, _ := slices.BinarySearch(w.slots, before)
	start := max(0, end-limit-1)
	page := slices.Clone(w.slots[start:end])
	slices.Reverse(page)
	return page
}
