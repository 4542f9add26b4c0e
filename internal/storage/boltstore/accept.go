package boltstore

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

// Accepted is what AcceptAnchor accepted.
type Accepted struct {
	// Epoch is the store's new epoch.
	Epoch string
	// Position is how far the store has come.
	Position storage.Position
}

// AcceptAnchor accepts a store as it is, after the store was found to disagree with its anchor or
// its audit sink. No process may serve the store. The store gets a new epoch, so that every cache
// starts empty, and a new anchor or an anchor's line in its sink. config.Sink is as for Open; the
// empty one stands for SinkAsBefore. AcceptAnchor refuses a store that agrees with what it has, or
// has neither. Errors: ErrLocked, ErrNewer, ErrDamaged, and those of the file system; a file of an
// older schema is refused, too.
func AcceptAnchor(path string, config Config) (accepted Accepted, err error) {
	if config.Sink == "" {
		config.Sink = SinkAsBefore
	}
	config, err = config.withDefaults().withAnchors(path)
	if err != nil {
		return Accepted{}, err
	}
	file, err := openFile(path, config)
	if errors.Is(err, storage.ErrLocked) {
		err = fmt.Errorf("%w: stop the server first", err)
	}
	if err != nil {
		return Accepted{}, err
	}
	defer func() { err = errors.Join(err, file.close()) }()
	switch config.Sink {
	case SinkAsBefore:
		config.Sink = file.header.GetSink()
	case SinkOff:
		config.Sink = ""
	}
	if err := file.mustDisagree(path, config); err != nil {
		return Accepted{}, err
	}
	epoch, err := newEpoch(config.Random)
	if err != nil {
		return Accepted{}, err
	}
	// 1. Write the new epoch into the store. This comes first because after a crash here the
	// store still disagrees with its anchor, so that AcceptAnchor can be repeated.
	err = guard(func() error {
		return file.database.Update(func(tx *bolt.Tx) error {
			// What the sink has of the events so far is not known, so they are never pruned.
			if err := putRevisionMark(tx, nameUnsunk, file.position.Revision); err != nil {
				return err
			}
			return file.setEpoch(tx, epoch)
		})
	})
	if err != nil {
		return Accepted{}, err
	}
	file.header.Epoch = epoch
	mark, err := file.mark()
	if err != nil {
		return Accepted{}, err
	}
	// 2. Write the new anchor. An anchor's file that is there gets it also beside a sink: the next
	// start compares both.
	if _, err := os.Lstat(config.Anchor); err == nil || config.Sink == "" || config.anchorGiven {
		if err := anchor.Replace(config.Anchor, mark); err != nil {
			return Accepted{}, fmt.Errorf("making the anchor: %w", err)
		}
	}
	if config.Sink != "" {
		if err := file.acceptSink(config, mark); err != nil {
			return Accepted{}, fmt.Errorf("writing the audit sink %s: %w", config.Sink, err)
		}
	}
	// 3. Note in the header what the store has now.
	err = file.putHeader(func(header *storagev1.HeaderRecord) { header.Anchored, header.Sink = true, config.Sink })
	return Accepted{Epoch: mark.Epoch, Position: file.position}, err
}

// mustDisagree returns an error if the file agrees with its anchor and its sink.
func (o *opened) mustDisagree(path string, config Config) error {
	found, err := o.checkAnchor(config.Anchor)
	if errors.Is(err, storage.ErrAnchor) {
		return nil
	}
	sunk, sinkErr := o.checkSink(config.Sink)
	switch {
	case errors.Is(sinkErr, storage.ErrAnchor), o.header.GetSink() != "" && config.Sink == "":
		return nil
	case errors.Join(err, sinkErr) != nil:
		return errors.Join(err, sinkErr)
	case sunk.newest.Epoch != "":
		return fmt.Errorf("%s agrees with its audit sink %s: there is nothing to accept", path, sunk.from)
	case found:
		return fmt.Errorf("%s agrees with its anchor %s: there is nothing to accept", path, config.Anchor)
	}
	return fmt.Errorf("%s has no anchor yet: the next start makes one", path)
}

// acceptSink writes an anchor's line with a new epoch to the sink. The lines before it stay.
func (o *opened) acceptSink(config Config, mark anchor.Mark) error {
	tail, err := sink.ReadTail(config.Sink)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	last := tail.Last
	if last.Epoch == "" {
		last = mark // the first line is the anchor
	}
	file, err := sink.Open(config.Sink, tail, last, sink.Options{Reserve: config.SinkReserve, Disk: config.sinkDisk, Now: config.Now})
	if err != nil {
		return err
	}
	if last != mark {
		if err := file.BeginEpoch(mark); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	return file.Close()
}

// reportAnchor reports how a file compares with its anchor. A missing anchor is not a problem,
// because a copy has no anchor beside it.
func (o *opened) reportAnchor(path string, report *Report) {
	if o.header.GetSink() != "" {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			report.Anchor = "none: the audit sink is the anchor"
			return
		}
	}
	mark, err := readInTime(func() (anchor.Mark, error) { return anchor.Read(path) })
	switch {
	case errors.Is(err, fs.ErrNotExist) && o.header.GetAnchored():
		report.Anchor = fmt.Sprintf("none at %s, as of a copy: a start there is refused", path)
	case errors.Is(err, fs.ErrNotExist):
		report.Anchor = "none yet: the next start makes one"
	case err == nil:
		err = o.compare("the anchor "+path, mark)
	}
	switch {
	case report.Anchor != "":
	case err != nil:
		report.Anchor = "does not agree: a start is refused"
		report.problem("anchor: " + err.Error())
	default:
		report.Anchor = fmt.Sprintf("agrees, at revision %d", mark.Revision)
	}
}

// reportSink reports how a file compares with its sink: with the one at path or, if path is empty,
// with the one that the header names. The latter is not a problem, because the file may be a copy.
func (o *opened) reportSink(path string, report *Report) {
	named := o.header.GetSink()
	if path == "" && named == "" {
		report.Sink = "none"
		return
	}
	found, err := o.checkSink(path)
	switch {
	case err == nil && found.newest.Epoch == "":
		report.Sink = "none at " + path + " yet"
	case err == nil && found.newest.Epoch != o.header.GetEpoch():
		report.Sink = fmt.Sprintf("as it was when the store was restored, at revision %d of %s: the next start goes on with it", found.newest.Revision, found.from)
	case err == nil:
		report.Sink = fmt.Sprintf("agrees, at revision %d of %s", found.newest.Revision, found.from)
	case path == "":
		report.Sink = fmt.Sprintf("%s, which does not agree, as with a copy: a start is refused", named)
	default:
		report.Sink = "does not agree: a start is refused"
		report.problem("audit sink: " + err.Error())
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
