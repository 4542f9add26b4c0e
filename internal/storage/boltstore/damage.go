package boltstore

import (
	"log/slog"
	"maps"
	"slices"
	"strings"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// damage is what was found wrong with a file when it was opened or loaded. It is never
// changed.
type damage struct {
	// revision of the store when the damage was found.
	revision int64
	// heads are the errors of wrong heads, by workspace.
	heads map[string]error
	// workspaces are the errors of workspaces that have wrong records, if it is unknown which.
	workspaces map[string]error
	// records are the errors of wrong records, by workspace.
	records map[string]map[recordID]error
	// lostHeads are the workspaces whose head is missing in the file, in order.
	lostHeads []string
	// missing are the records that are missing in the file, in order.
	missing []expectation
}

// findDamage collects what is wrong.
func (d *fileIndex) findDamage(revision int64) *damage {
	slices.Sort(d.lostHeads)
	found := &damage{
		revision: revision, lostHeads: d.lostHeads, heads: make(map[string]error), workspaces: make(map[string]error),
		records: make(map[string]map[recordID]error),
	}
	for id, entry := range d.workspaces {
		if entry.damagedHead != nil {
			found.heads[id] = entry.damagedHead
		}
		if entry.damaged != nil {
			found.workspaces[id] = entry.damaged
		}
		if len(entry.faults) == 0 {
			continue
		}
		found.records[id] = entry.faults
		for _, lost := range entry.missing {
			found.missing = append(found.missing, expectation{workspaceID: id, id: lost, fault: entry.faults[lost]})
		}
	}
	slices.SortFunc(found.missing, func(a, b expectation) int {
		return strings.Compare(a.workspaceID+"\x00"+a.id.name, b.workspaceID+"\x00"+b.id.name)
	})
	return found
}

// first returns one of the errors; nil if nothing is wrong.
func (d *damage) first() error {
	for _, errs := range []map[string]error{d.heads, d.workspaces} {
		for _, workspaceID := range slices.Sorted(maps.Keys(errs)) {
			return errs[workspaceID]
		}
	}
	for _, workspaceID := range slices.Sorted(maps.Keys(d.records)) {
		for _, err := range d.records[workspaceID] {
			return err
		}
	}
	return nil
}

// log logs what was found: the first 20 problems, and how many more there are.
func (d *damage) log(log *slog.Logger) {
	const maxLines = 20
	count := 0
	say := func(workspaceID string, err error) {
		if count++; count <= maxLines {
			log.Error("what is stored is not what it should be", "workspace_id", workspaceID, "error", err)
		}
	}
	for _, errs := range []map[string]error{d.heads, d.workspaces} {
		for _, workspaceID := range slices.Sorted(maps.Keys(errs)) {
			say(workspaceID, errs[workspaceID])
		}
	}
	for _, workspaceID := range slices.Sorted(maps.Keys(d.records)) {
		for _, err := range d.records[workspaceID] {
			say(workspaceID, err)
		}
	}
	if count > maxLines {
		log.Error("more of what is stored is not what it should be; keysvc check names it", "count", count-maxLines)
	}
}

// judge returns the item, or Damaged if the item's record or head was found wrong.
func (d *damage) judge(item storage.Item) storage.Item {
	if item.Head != nil {
		if err := d.heads[item.Head.WorkspaceID]; err != nil {
			return storage.Item{Damaged: &storage.Damaged{WorkspaceID: item.Head.WorkspaceID, Head: true, Err: err}}
		}
		return item
	}
	workspaceID, id := recordOf(item)
	if err := d.records[workspaceID][id]; err != nil {
		return damagedItem(workspaceID, id, err)
	}
	return item
}

// visitAbsent visits the damage that Load does not find as a value of a bucket: lost heads
// before the keys, missing records and workspaces as a whole before the values of their bucket.
func (d *damage) visitAbsent(bucket string, visit func(storage.Item) error) error {
	if bucket == bucketKeys {
		for _, workspaceID := range d.lostHeads {
			damaged := &storage.Damaged{WorkspaceID: workspaceID, Head: true, Err: d.heads[workspaceID]}
			if err := visit(storage.Item{Damaged: damaged}); err != nil {
				return err
			}
		}
	}
	for _, lost := range d.missing {
		if bucketOf(lost.id.kind) == bucket {
			if err := visit(damagedItem(lost.workspaceID, lost.id, lost.fault)); err != nil {
				return err
			}
		}
	}
	for _, workspaceID := range slices.Sorted(maps.Keys(d.workspaces)) {
		if id := ownRecord(workspaceID); bucketOf(id.kind) == bucket {
			if err := visit(damagedItem(workspaceID, id, d.workspaces[workspaceID])); err != nil {
				return err
			}
		}
	}
	return nil
}

// damagedItem returns the item for a record that is wrong.
func damagedItem(workspaceID string, id recordID, err error) storage.Item {
	damaged := &storage.Damaged{WorkspaceID: workspaceID, Err: err}
	switch id.kind {
	case kindMember:
		damaged.MemberID = id.name
	case kindKey:
		damaged.KeyID = id.name
	case kindPolicy, kindWorkspace, storagev1.RecordKind_RECORD_KIND_SETTINGS, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return storage.Item{Damaged: damaged}
}
