package boltstore

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// Accepted is what AcceptAnchor accepted.
type Accepted struct {
	// Epoch is the store's new epoch.
	Epoch string
	// Position is how far the store has come.
	Position storage.Position
}

// AcceptAnchor accepts a store as it is, after the store was found to disagree with its anchor.
// No process may serve the store. The store gets a new anchor, and a new epoch, so that every
// cache starts empty. AcceptAnchor refuses a store that agrees with its anchor or has no
// anchor. Errors: ErrLocked, ErrNewer, ErrDamaged, and those of the file system; a file of an
// older schema is refused, too.
func AcceptAnchor(path string, config Config) (accepted Accepted, err error) {
	config = config.withDefaults()
	if config.Anchor == "" {
		config.Anchor = AnchorOf(path)
	}
	file, err := openFile(path, config)
	if errors.Is(err, storage.ErrLocked) {
		err = fmt.Errorf("%w: stop the server first", err)
	}
	if err != nil {
		return Accepted{}, err
	}
	defer func() { err = errors.Join(err, file.close()) }()
	if found, err := file.checkAnchor(config.Anchor); !errors.Is(err, storage.ErrAnchor) {
		if err == nil && found {
			err = fmt.Errorf("%s agrees with its anchor %s: there is nothing to accept", path, config.Anchor)
		} else if err == nil {
			err = fmt.Errorf("%s has no anchor yet: the next start makes one", path)
		}
		return Accepted{}, err
	}
	epoch, err := newEpoch(config.Random)
	if err != nil {
		return Accepted{}, err
	}
	file.header.Anchored = true
	// 1. Write the new epoch into the store. This comes first because after a crash here the
	// store still disagrees with its anchor, so that AcceptAnchor can be repeated.
	err = guard(func() error {
		return file.database.Update(func(tx *bolt.Tx) error { return file.setEpoch(tx, epoch) })
	})
	if err != nil {
		return Accepted{}, err
	}
	file.header.Epoch = epoch
	// 2. Write the new anchor.
	mark, err := file.mark()
	if err != nil {
		return Accepted{}, err
	}
	if err := anchor.Replace(config.Anchor, mark); err != nil {
		return Accepted{}, fmt.Errorf("making the anchor: %w", err)
	}
	return Accepted{Epoch: mark.Epoch, Position: file.position}, nil
}

// reportAnchor reports how a file compares with its anchor. A missing anchor is not a problem,
// because a copy has no anchor beside it.
func (o *opened) reportAnchor(path string, report *Report) {
	mark, err := readAnchor(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && o.header.GetAnchored():
		report.Anchor = fmt.Sprintf("none at %s, as of a copy: a start there is refused", path)
	case errors.Is(err, fs.ErrNotExist):
		report.Anchor = "none yet: the next start makes one"
	case err == nil:
		err = o.compare(path, mark)
	}
	switch {
	case report.Anchor != "":
	case err != nil:
		report.Anchor = "does not agree: a start is refused"
		report.Problems = append(report.Problems, "anchor: "+err.Error())
	default:
		report.Anchor = fmt.Sprintf("agrees, at revision %d", mark.Revision)
	}
}

// setEpoch begins a new history with the content of the file: it writes another epoch into the
// header, and a tag for this epoch into each head. A head keeps its old tag, which is wrong in
// the new epoch, if the head is damaged or if it is unknown which records are wrong: damage
// that was found must not become valid.
func (o *opened) setEpoch(tx *bolt.Tx, epoch string) error {
	hasher := integrity.NewHasher()
	for _, id := range slices.Sorted(maps.Keys(o.index.workspaces)) {
		entry := o.index.workspaces[id]
		if entry.damagedHead != nil || entry.damaged != nil {
			continue
		}
		record := entry.head.Record(entry.headRevision)
		tag := tagOf(hasher, epoch, id, entry.head, entry.sum)
		record.Tag, record.TagKeyVersion = tag[:], integrity.KeyVersion
		if err := put(tx, bucketHeads, headName(id), record); err != nil {
			return err
		}
	}
	header := proto.CloneOf(o.header)
	header.Epoch = epoch
	return put(tx, bucketMeta, nameHeader, header)
}
