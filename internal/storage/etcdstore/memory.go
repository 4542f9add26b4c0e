package etcdstore

import (
	"hash/maphash"
	"sync"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// memory is what the records of the store should be: eight bytes of each record's element, and the
// sum of each workspace. Load fills it; commits of this process and the watch keep it (follow.go).
//
// What it holds of keys and members has no pointers: the garbage collector would visit them, millions
// of them in a large store. A key takes 8 bytes here, and its number, which the projection uses as
// well, about 17 (flat.IDs).
//
// Lock: mutex guards everything. flat.IDs takes its own lock with it held; no other is taken.
type memory struct {
	mutex sync.Mutex
	// complete reports whether a Load has filled the memory. Then there is no workspace that the memory
	// does not have.
	complete bool
	// ids has the numbers of the keys, and keys their elements by number.
	ids        *flat.IDs
	keys       flat.Chunks[uint64]
	members    memberElements
	workspaces map[string]*remembered
}

// remembered is what the memory holds of a workspace. The empty id is the policy's.
type remembered struct {
	// head is the head of which the rest is true. Its fence is not kept: it changes without an event.
	head storage.Head
	// revision is that of the change that put the head.
	revision int64
	// sum is the sum of the workspace's records. own is the beginning of the element of the workspace's
	// own record (the policy in the empty workspace).
	sum    integrity.Sum
	own    uint64
	hasOwn bool
	// settings is the beginning of the element of the settings, which are in the empty workspace only.
	settings    uint64
	hasSettings bool
	// faults are the errors of records that are not what they should be.
	faults map[recordID]error
	// damaged is set if it is unknown which records are wrong. Then all count as wrong, and sum is unknown.
	damaged error
	// damagedHead is set if the stored head cannot be read, is lost or stale. Then every change is refused.
	damagedHead error
	// tag is the tag of the stored head. It is set only during a Load.
	tag []byte
	// outdated is set if changes were missed. Then nothing of this is known.
	outdated bool
}

// isAt reports whether the rest is true of a head.
func (e *remembered) isAt(head storage.Head) bool {
	return !e.outdated && e.head.Sequence == head.Sequence && e.head.Hash == head.Hash
}

// problem returns why the record with an id cannot be changed; nil if nothing is wrong.
func (e *remembered) problem(id recordID) error {
	switch {
	case e.damagedHead != nil:
		return e.damagedHead
	case e.damaged != nil:
		return e.damaged
	}
	return e.faults[id]
}

// setFault notes what is wrong with a record; nil if nothing is wrong any more.
func (e *remembered) setFault(id recordID, err error) {
	switch {
	case err == nil:
		delete(e.faults, id)
	case e.faults == nil:
		e.faults = map[recordID]error{id: err}
	default:
		e.faults[id] = err
	}
}

// newMemory returns a memory for about that many keys and members.
func newMemory(keys, members int) *memory {
	return &memory{ids: flat.NewIDs(keys), members: newMemberElements(members), workspaces: make(map[string]*remembered)}
}

// workspace returns what is known of a workspace, and adds it if it is not known.
func (m *memory) workspace(id string) *remembered {
	entry := m.workspaces[id]
	if entry == nil {
		entry = &remembered{}
		m.workspaces[id] = entry
	}
	return entry
}

// element returns the beginning of the element that a record should have, and reports whether the
// record should be there. Elements cover the workspace, so one of another workspace never fits.
func (m *memory) element(workspaceID string, id recordID) (short uint64, there bool) {
	switch id.kind {
	case kindKey:
		if number := m.ids.Find(id.name, flat.Store); number != 0 {
			return *m.keys.At(number), true
		}
	case kindMember:
		return m.members.get(workspaceID, id.name)
	case kindSettings:
		if entry := m.workspaces[workspaceID]; entry != nil {
			return entry.settings, entry.hasSettings
		}
	case kindPolicy, kindWorkspace:
		if entry := m.workspaces[workspaceID]; entry != nil {
			return entry.own, entry.hasOwn
		}
	}
	return 0, false
}

// put sets the element that a record should have.
func (m *memory) put(workspaceID string, id recordID, short uint64) {
	switch id.kind {
	case kindKey:
		number, _ := m.ids.Hold(id.name, flat.Store)
		m.keys.Grow(number)
		*m.keys.At(number) = short
	case kindMember:
		m.members.set(m.members.hash(workspaceID, id.name), short)
	case kindSettings:
		entry := m.workspace(workspaceID)
		entry.settings, entry.hasSettings = short, true
	case kindPolicy, kindWorkspace:
		entry := m.workspace(workspaceID)
		entry.own, entry.hasOwn = short, true
	}
}

// remove forgets a record, if it has an element. A key that was deleted in one workspace may be there
// in another one by now.
func (m *memory) remove(workspaceID string, id recordID, short uint64) {
	if present, there := m.element(workspaceID, id); !there || present != short {
		return
	}
	switch id.kind {
	case kindKey:
		m.ids.Release(m.ids.Find(id.name, flat.Store), flat.Store)
	case kindMember:
		m.members.remove(workspaceID, id.name)
	case kindSettings:
		entry := m.workspace(workspaceID)
		entry.settings, entry.hasSettings = 0, false
	case kindPolicy, kindWorkspace:
		entry := m.workspace(workspaceID)
		entry.own, entry.hasOwn = 0, false
	}
}

// memberElements holds the beginnings of the elements of all members' records. It knows members by a
// hash of workspace and member with a random seed: two of them in one place are as unlikely as two
// records with the same element.
type memberElements struct {
	seed    maphash.Seed
	index   *flat.Index
	records flat.Arena[memberElement]
}

type memberElement struct{ hash, element uint64 }

// newMemberElements returns the elements of about that many members.
func newMemberElements(expected int) memberElements {
	made := memberElements{seed: maphash.MakeSeed(), index: flat.NewIndex(max(expected, 1<<20))}
	made.index.Reserve(expected)
	return made
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
