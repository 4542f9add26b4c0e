package boltstore

import (
	"maps"
	"slices"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// directory is what the store knows in memory about its file: where each key lies,
// which request ids were used, and every head. The names on disk can thus grow with
// time, and nothing that a commit must check costs a read.
type directory struct {
	keys       map[string]place
	workspaces map[string]*workspace
	nextSlot   int64
	// lostHeads names the workspaces whose head was not in the file.
	lostHeads []string
	// lostKeys are keys whose record should be in the file, and is not.
	lostKeys map[string]*workspace
	// damage is what was wrong with the file when the directory was made of it.
	damage *damage
}

// place is where a key's record lies.
type place struct {
	slot      int64
	workspace *workspace
	// requests is how many request ids the key has.
	requests int
	// element has the first bytes of the record's.
	element uint64
}

// workspace is what the directory knows of one workspace.
type workspace struct {
	id string
	// head is that of the newest change, made by revision headRevision.
	head         storage.Head
	headRevision int64
	// damagedHead is set if the stored head cannot be read, or is stale; it ends all
	// changes.
	damagedHead error
	// sum is what the workspace's records add up to, and members and own have the first
	// bytes of the elements of the members' records and of the workspace's own (the
	// policy's in the empty workspace): all as they should be.
	sum     integrity.Sum
	members map[string]uint64
	own     uint64
	hasOwn  bool
	// faults are records that are not as they should be; missing are those among them
	// that are not there.
	faults  map[recordID]error
	missing []recordID
	// damaged is set if it cannot be told which records are wrong: then all are.
	damaged error
	// tag is that of the stored head while the file is being opened.
	tag []byte
	// slots of the workspace's keys, ascending.
	slots []int64
	// requestIDs maps those that were used to the key they were used for.
	requestIDs map[string]string
}

func newDirectory() *directory {
	return &directory{
		keys:       make(map[string]place),
		workspaces: make(map[string]*workspace),
		lostKeys:   make(map[string]*workspace),
		nextSlot:   1,
	}
}

// workspace returns the entry of a workspace, which it adds if need be.
func (d *directory) workspace(id string) *workspace {
	entry := d.workspaces[id]
	if entry == nil {
		entry = &workspace{id: id}
		d.workspaces[id] = entry
	}
	return entry
}

// addKey notes where a key lies. Slots are added in ascending order.
func (d *directory) addKey(workspaceID, keyID string, slot int64, element uint64) {
	entry := d.workspace(workspaceID)
	d.keys[keyID] = place{slot: slot, workspace: entry, element: element}
	entry.slots = append(entry.slots, slot)
	d.nextSlot = max(d.nextSlot, slot+1)
}

// removeKey forgets a key and its request ids, as far as they are known.
func (d *directory) removeKey(keyID string, requestIDs []string) {
	at, found := d.keys[keyID]
	if !found {
		return
	}
	for _, requestID := range requestIDs {
		if at.workspace.requestIDs[requestID] == keyID {
			delete(at.workspace.requestIDs, requestID)
			at.requests--
		}
	}
	d.keys[keyID] = at
	d.setRequestIDs(keyID, nil)
	delete(d.keys, keyID)
	if index, found := slices.BinarySearch(at.workspace.slots, at.slot); found {
		at.workspace.slots = slices.Delete(at.workspace.slots, index, index+1)
	}
}

// setRequestIDs notes which request ids a key has, and forgets those it had.
func (d *directory) setRequestIDs(keyID string, requestIDs []string) {
	at := d.keys[keyID]
	used, kept := at.workspace.requestIDs, 0
	for _, requestID := range requestIDs {
		if used[requestID] == keyID {
			kept++
		}
	}
	if kept < at.requests { // rare: keys keep their request ids
		maps.DeleteFunc(used, func(_, by string) bool { return by == keyID })
	}
	if len(requestIDs) > 0 && used == nil {
		used = make(map[string]string)
		at.workspace.requestIDs = used
	}
	for _, requestID := range requestIDs {
		used[requestID] = keyID
	}
	at.requests = len(requestIDs)
	d.keys[keyID] = at
}

// page returns up to limit+1 slots of the workspace below before, newest first; the
// one too many tells that there is another page.
func (w *workspace) page(before int64, limit int) []int64 {
	end, _ := slices.BinarySearch(w.slots, before)
	start := max(0, end-limit-1)
	page := slices.Clone(w.slots[start:end])
	slices.Reverse(page)
	return page
}
