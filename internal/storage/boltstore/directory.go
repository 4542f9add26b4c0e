package boltstore

import (
	"slices"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// directory is what the store knows in memory about its file: where each key lies,
// which request ids were used, and every head. The names on disk can thus grow with
// time, and nothing that a commit must check costs a read.
type directory struct {
	keys       map[string]place
	workspaces map[string]*workspace
	nextSlot   int64
}

// place is where a key's record lies.
type place struct {
	slot      int64
	workspace *workspace
}

// workspace is what the directory knows of one workspace.
type workspace struct {
	id string
	// head is that of the newest change, made by revision headRevision.
	head         storage.Head
	headRevision int64
	// damagedHead is set if the stored head cannot be read; it ends all changes.
	damagedHead error
	// slots of the workspace's keys, ascending.
	slots []int64
	// requestIDs maps those that were used to the key they were used for.
	requestIDs map[string]string
}

func newDirectory() *directory {
	return &directory{
		keys:       make(map[string]place),
		workspaces: make(map[string]*workspace),
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
func (d *directory) addKey(workspaceID, keyID string, slot int64) {
	entry := d.workspace(workspaceID)
	d.keys[keyID] = place{slot: slot, workspace: entry}
	entry.slots = append(entry.slots, slot)
	d.nextSlot = max(d.nextSlot, slot+1)
}

// removeKey forgets a key and its request ids.
func (d *directory) removeKey(keyID string, requestIDs []string) {
	at, found := d.keys[keyID]
	if !found {
		return
	}
	delete(d.keys, keyID)
	if index, found := slices.BinarySearch(at.workspace.slots, at.slot); found {
		at.workspace.slots = slices.Delete(at.workspace.slots, index, index+1)
	}
	for _, requestID := range requestIDs {
		delete(at.workspace.requestIDs, requestID)
	}
}

// addRequestIDs notes for which key request ids were used.
func (w *workspace) addRequestIDs(keyID string, requestIDs []string) {
	if len(requestIDs) > 0 && w.requestIDs == nil {
		w.requestIDs = make(map[string]string)
	}
	for _, requestID := range requestIDs {
		w.requestIDs[requestID] = keyID
	}
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
