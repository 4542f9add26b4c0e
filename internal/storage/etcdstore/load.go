package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// Load implements storage.Store. If etcd compacts the revision that Load reads before Load has
// finished, the error is ErrUnavailable: what was visited cannot be taken back.
func (s *Store) Load(ctx context.Context, visit func(storage.Item) error) (storage.Position, error) {
	return s.load(ctx, func() *loader { return &loader{store: s, visit: visit} })
}

// LoadViews implements storage.ViewLoader.
func (s *Store) LoadViews(ctx context.Context, expect func(storage.Expected), visit func(storage.Item) error) (storage.Position, error) {
	position, err := storage.Position{}, errCompacted
	for attempt := 0; attempt < maxAttempts && errors.Is(err, errCompacted); attempt++ {
		position, err = s.load(ctx, func() *loader { return &loader{store: s, visit: visit, expect: expect} })
	}
	return position, err
}

// load is one attempt of a Load.
func (s *Store) load(ctx context.Context, newLoader func() *loader) (storage.Position, error) {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return storage.Position{}, err
	}
	defer done()
	// This comes before the read, which may miss changes that commit while it runs.
	newest := s.newest.Load()
	position, at, err := s.position(ctx)
	if err != nil {
		return storage.Position{}, err
	}
	if position.Revision < newest {
		return storage.Position{}, fmt.Errorf("%w: revision %d after %d", storage.ErrHistoryChanged, position.Revision, newest)
	}
	raise(&s.newest, position.Revision)
	l := newLoader()
	l.ctx, l.at, l.isNew = ctx, at, position.Revision == 0
	if err := l.load(); err != nil {
		return storage.Position{}, err
	}
	if err := l.verify(); err != nil {
		return storage.Position{}, err
	}
	l.memory.complete = true
	s.memory.Store(l.memory)
	s.loaded.Store(&loaded{revision: position.Revision, at: at})
	return position, nil
}

// position returns how far the store has come, and the etcd revision at which the rest is
// to be read.
func (s *Store) position(ctx context.Context) (_ storage.Position, at int64, err error) {
	response, err := s.read(ctx, s.get(nameHeader), s.get(nameTime), s.get(nameFeedHead))
	if err != nil {
		return storage.Position{}, 0, err
	}
	if err := s.checkHeader(response); err != nil {
		return storage.Position{}, 0, err
	}
	latest, err := decodeTime(nameTime, first(response, 1).GetValue())
	if err != nil {
		return storage.Position{}, 0, err
	}
	newest := barrierOf(first(response, 2))
	return storage.Position{Revision: newest.Revision, Hash: newest.Hash, Time: latest}, response.Header.GetRevision(), nil
}

// loader is one Load.
type loader struct {
	store *Store
	ctx   context.Context //nolint:containedctx // that of one call
	at    int64
	visit func(storage.Item) error
	// expect is told what will come. If it is not nil, keys are visited as views.
	expect func(storage.Expected)
	// isNew reports whether the store has no change yet. Then no record may be stored.
	isNew bool
	// headless are the workspaces whose record has been read, and whose head has not.
	headless map[string]bool
	// memory is what was read, and shown are the records and heads that were visited as damaged.
	memory *memory
	shown  map[string]bool

	loadedKeys
}

// recordFolders are the folders and names, apart from keys, that hold what is loaded, in order.
var recordFolders = []string{namePolicy, nameSettings, folderWorkspaces, folderMembers, folderHeads}

func (l *loader) load() error {
	counts, err := l.store.count(l.ctx, l.at, folderKeys, folderMembers)
	if err != nil {
		return err
	}
	l.memory, l.headless, l.shown = newMemory(counts[0], counts[1]), make(map[string]bool), make(map[string]bool)
	if l.expect != nil {
		l.expect(storage.Expected{Keys: counts[0], Members: counts[1], IDs: l.memory.ids})
	}
	for _, folder := range recordFolders {
		if err := l.store.piped(l.ctx, folder, endOf(folder), l.at, decodeRecords, l.records); err != nil {
			return err
		}
	}
	// Every change puts a head, so the head of a headless workspace was lost. The workspace
	// must not count as new: its chain of events would begin again.
	for _, workspaceID := range slices.Sorted(maps.Keys(l.headless)) {
		err := &storage.DamagedError{Kind: "head", Name: workspaceID, Problem: "missing"}
		l.memory.workspace(workspaceID).damagedHead = err
		if err := l.visitDamaged(headName(workspaceID), &storage.Damaged{WorkspaceID: workspaceID, Head: true, Err: err}); err != nil {
			return err
		}
	}
	if err := l.keys(); err != nil {
		return err
	}
	return l.each(folderUsage, l.usage)
}

// endOf returns the end of the range of names in a folder. The empty folder has all names.
func endOf(folder string) string {
	if folder == "" {
		return ""
	}
	return clientv3.GetPrefixRangeEnd(folder)
}

// count returns how many pairs each folder has at a revision.
func (s *Store) count(ctx context.Context, at int64, folders ...string) ([]int, error) {
	var parts []clientv3.Op
	for _, folder := range folders {
		parts = append(parts, s.get(folder, clientv3.WithRange(clientv3.GetPrefixRangeEnd(s.config.Prefix+folder)),
			clientv3.WithCountOnly(), clientv3.WithRev(at)))
	}
	response, err := s.read(ctx, parts...)
	if err != nil {
		return nil, err
	}
	counts := make([]int, len(folders))
	for index := range folders {
		counts[index] = int(found(response, index).GetCount())
	}
	return counts, nil
}

// each visits the values in a folder.
func (l *loader) each(folder string, visit func(pair) error) error {
	return l.store.piped(l.ctx, folder, endOf(folder), l.at, func(*chunk) {}, func(some *chunk) error {
		defer some.release()
		for _, found := range some.pairs {
			if err := visit(found); err != nil {
				return err
			}
		}
		return nil
	})
}

// decoded is what a chunk holds, as one goroutine of many has decoded it.
type decoded struct {
	// items are those of the pairs, by index.
	items []storage.Item
	// elements are those of records that are not keys, by index.
	elements []integrity.Element

	decodedKeys
}

// decodeRecords decodes a chunk of records that are not keys.
func decodeRecords(some *chunk) {
	some.items, some.elements = some.items[:0], some.elements[:0]
	for _, found := range some.pairs {
		name := string(found.name)
		item, element := decodeItem(name, found.value), integrity.Element{}
		if workspaceID, id, is := recordOf(name); is && item.Damaged == nil {
			element = elementOf(workspaceID, id, integrity.HashPayload(storage.Payload(found.value)))
		}
		some.items, some.elements = append(some.items, item), append(some.elements, element)
	}
}

// records visits the records of a chunk.
func (l *loader) records(some *chunk) error {
	defer some.release()
	for index, found := range some.pairs {
		name := string(found.name)
		if l.isNew {
			return errNotNew
		}
		if name == namePolicy || name == nameSettings {
			l.headless[""] = true
		} else if strings.HasPrefix(name, folderWorkspaces) {
			l.headless[name[len(folderWorkspaces):]] = true
		}
		item := some.items[index]
		if workspaceID, isHead := strings.CutPrefix(name, folderHeads); isHead {
			delete(l.headless, workspaceID)
			l.head(workspaceID, found, item)
		} else if workspaceID, id, is := recordOf(name); is && item.Damaged == nil {
			entry := l.memory.workspace(workspaceID)
			entry.sum = entry.sum.Add(some.elements[index])
			l.memory.put(workspaceID, id, some.elements[index].Short())
		}
		if item.Damaged != nil {
			l.shown[name] = true
		}
		if err := l.visit(item); err != nil {
			return err
		}
	}
	return nil
}

// head notes a workspace's head.
func (l *loader) head(workspaceID string, found pair, item storage.Item) {
	entry := l.memory.workspace(workspaceID)
	entry.revision = found.modified
	if item.Damaged != nil {
		entry.damagedHead = item.Damaged.Err
		return
	}
	entry.head, entry.tag = item.Head.Head, tagIn(workspaceID, found.value)
}

// visitDamaged visits a damaged record or head, unless it was visited as one before.
func (l *loader) visitDamaged(name string, damaged *storage.Damaged) error {
	if l.shown[name] {
		return nil
	}
	l.shown[name] = true
	return l.visit(storage.Item{Damaged: damaged})
}

var errNotNew = &storage.DamagedError{Kind: "feed entry", Name: nameFeedHead, Problem: "missing, though there are records"}

// usage visits when a key was last used. A damaged time is left out: no decision depends on it.
func (l *loader) usage(found pair) error {
	name := string(found.name)
	use, err := decodeUsage(name, name[len(folderUsage):], found.value)
	if err != nil || use.Time.IsZero() {
		return nil //nolint:nilerr // see above
	}
	return l.visit(storage.Item{Usage: use})
}

// decodeItem decodes a stored record into an item, or into Damaged if it cannot.
func decodeItem(name string, value []byte) storage.Item {
	switch {
	case name == namePolicy:
		record := &storagev1.PolicyRecord{}
		if err := storage.Decode("policy", name, value, record); err != nil {
			return storage.Item{Damaged: &storage.Damaged{Err: err}}
		}
		return storage.Item{Policy: record}
	case name == nameSettings:
		record := &storagev1.SettingsRecord{}
		if err := storage.Decode("settings", name, value, record); err != nil {
			return storage.Item{Damaged: &storage.Damaged{Settings: true, Err: err}}
		}
		return storage.Item{Settings: record}
	case strings.HasPrefix(name, folderWorkspaces):
		workspaceID := name[len(folderWorkspaces):]
		record := &storagev1.WorkspaceRecord{}
		err := storage.Decode("workspace", name, value, record)
		if err != nil {
			err = &storage.DamagedError{Kind: "workspace", Name: workspaceID, Problem: problemOf(err)}
		} else if record.GetWorkspaceId() != workspaceID {
			err = misplaced("workspace", workspaceID)
		}
		if err != nil {
			return storage.Item{Damaged: &storage.Damaged{WorkspaceID: workspaceID, Err: err}}
		}
		return storage.Item{Workspace: record}
	case strings.HasPrefix(name, folderMembers):
		workspaceID, memberID, _ := parseMemberName(name)
		record := &storagev1.MemberRecord{}
		if err := decodeMember(name, value, record); err != nil {
			return storage.Item{Damaged: &storage.Damaged{WorkspaceID: workspaceID, MemberID: memberID, Err: err}}
		}
		return storage.Item{Member: record}
	case strings.HasPrefix(name, folderHeads):
		workspaceID := name[len(folderHeads):]
		head, err := decodeHead(workspaceID, value)
		if err != nil {
			return storage.Item{Damaged: &storage.Damaged{WorkspaceID: workspaceID, Head: true, Err: err}}
		}
		return storage.Item{Head: &storage.WorkspaceHead{WorkspaceID: workspaceID, Head: head}}
	default:
		workspaceID, _, keyID, _ := parseKeyName(name)
		record := &storagev1.KeyRecord{}
		if err := decodeKey(name, value, record); err != nil {
			return storage.Item{Damaged: &storage.Damaged{WorkspaceID: workspaceID, KeyID: keyID, Err: err}}
		}
		return storage.Item{Key: record}
	}
}
