package etcdstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Load implements storage.Store. If etcd compacts the revision that Load reads before Load has
// finished, the error is ErrUnavailable.
func (s *Store) Load(ctx context.Context, visit func(storage.Item) error) (storage.Position, error) {
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
	l := &loader{store: s, ctx: ctx, at: at, visit: visit, isNew: position.Revision == 0, headless: make(map[string]bool)}
	if err := l.load(); err != nil {
		return storage.Position{}, err
	}
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
	// isNew reports whether the store has no change yet. Then no record may be stored.
	isNew bool
	// headless are the workspaces whose record has been read, and whose head has not.
	headless map[string]bool
	// keys are the keys of workspaceID that have been read and not visited, newest first.
	keys        []storage.Item
	workspaceID string
}

// loaded lists what is loaded, in order: folders, or single names.
var loaded = []string{namePolicy, nameSettings, folderWorkspaces, folderMembers, folderHeads, folderKeys}

func (l *loader) load() error {
	for _, folder := range loaded {
		if err := l.each(folder, l.item); err != nil {
			return err
		}
		if folder != folderHeads {
			continue
		}
		// Every change puts a head, so the head of a headless workspace was lost. The workspace
		// must not count as new: its chain of events would begin again.
		for _, workspaceID := range slices.Sorted(maps.Keys(l.headless)) {
			err := &storage.DamagedError{Kind: "head", Name: workspaceID, Problem: "missing"}
			if err := l.visit(storage.Item{Damaged: &storage.Damaged{WorkspaceID: workspaceID, Head: true, Err: err}}); err != nil {
				return err
			}
		}
	}
	if err := l.flush(); err != nil {
		return err
	}
	return l.each(folderUsage, l.usage)
}

// each visits the values in a folder, page by page.
func (l *loader) each(folder string, visit func(name string, pair *mvccpb.KeyValue) error) error {
	for from := folder; ; {
		response, err := l.store.read(l.ctx, l.store.list(from, folder, batch, l.at))
		if err != nil {
			return err
		}
		for _, pair := range pairs(response, 0) {
			name := l.store.name(pair)
			if err := visit(name, pair); err != nil {
				return err
			}
			from = after(name)
		}
		if !found(response, 0).GetMore() {
			return nil
		}
	}
}

// item visits one record. The keys of a workspace are stored newest first. item collects
// them, and visits them oldest first once the workspace has no more.
func (l *loader) item(name string, pair *mvccpb.KeyValue) error {
	switch {
	case l.isNew:
		return &storage.DamagedError{Kind: "feed entry", Name: nameFeedHead, Problem: "missing, though there are records"}
	case name == namePolicy, name == nameSettings:
		l.headless[""] = true
	case strings.HasPrefix(name, folderWorkspaces):
		l.headless[name[len(folderWorkspaces):]] = true
	case strings.HasPrefix(name, folderHeads):
		delete(l.headless, name[len(folderHeads):])
	case strings.HasPrefix(name, folderKeys):
		workspaceID, _, _, ok := parseKeyName(name)
		if !ok {
			return &storage.DamagedError{Kind: "key", Name: name, Problem: "not the name of a key"}
		}
		if workspaceID != l.workspaceID {
			if err := l.flush(); err != nil {
				return err
			}
			l.workspaceID = workspaceID
		}
		l.keys = append(l.keys, decodeItem(name, pair.Value))
		return nil
	}
	return l.visit(decodeItem(name, pair.Value))
}

// flush visits the collected keys.
func (l *loader) flush() error {
	for _, item := range slices.Backward(l.keys) {
		if err := l.visit(item); err != nil {
			return err
		}
	}
	clear(l.keys)
	l.keys = l.keys[:0]
	return nil
}

// usage visits when a key was last used. A damaged time is left out: no decision depends on it.
func (l *loader) usage(name string, pair *mvccpb.KeyValue) error {
	use, err := decodeUsage(name, name[len(folderUsage):], pair.Value)
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
