package boltstore

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
)

// Accepted says what AcceptAnchor accepted.
type Accepted struct {
	// Epoch is the new one.
	Epoch string
	// Position is how far the store is.
	Position storage.Position
}

// AcceptAnchor makes a store that no process serves the truth, as it is, after it was
// found not to agree with its anchor. It gets a new epoch, so that every cache begins
// anew, and a new anchor. It does nothing if they agree. Errors: ErrLocked, ErrNewer,
// ErrDamaged, and those of the file system.
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
	epoch := make([]byte, epochBytes)
	if _, err := io.ReadFull(config.Random, epoch); err != nil {
		return Accepted{}, fmt.Errorf("drawing an epoch: %w", err)
	}
	file.header.Anchored = true
	// First the store: until the anchor follows, the two still disagree.
	err = guard(func() error {
		return file.database.Update(func(tx *bolt.Tx) error { return file.setEpoch(tx, hex.EncodeToString(epoch)) })
	})
	if err != nil {
		return Accepted{}, err
	}
	file.header.Epoch = hex.EncodeToString(epoch)
	mark, err := file.mark()
	if err != nil {
		return Accepted{}, err
	}
	if err := anchor.Replace(config.Anchor, mark); err != nil {
		return Accepted{}, fmt.Errorf("making the anchor: %w", err)
	}
	return Accepted{Epoch: mark.Epoch, Position: file.position}, nil
}

// reportAnchor says how a file stands to its anchor. A copy has none beside it, which
// is no fault of its own.
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
