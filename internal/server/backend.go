package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// storeFile is the name of the bbolt store in the data folder.
const storeFile = "keysvc.db"

// backend opens a store as the settings say. Its error makes sense in one line, and names
// the flag that helps.
type backend func(ctx context.Context, settings config.Settings, log *slog.Logger) (storage.Store, error)

// backends has a backend for each name that config allows as Settings.Store. Apart from the
// commands that work on a file without a server, nothing else in keysvc names a concrete store.
var backends = map[string]backend{
	config.DefaultStore: openBolt,
	config.EtcdStore:    openEtcd,
}

// openBolt opens the bbolt file in the data folder. It makes folder and file if the
// settings say so.
func openBolt(ctx context.Context, settings config.Settings, log *slog.Logger) (storage.Store, error) {
	create := boltstore.CreateNever
	switch {
	case settings.Init:
		create = boltstore.CreateNew
	case settings.Dev:
		create = boltstore.CreateIfAbsent
	}
	if create != boltstore.CreateNever {
		if err := makeFolder(settings.Data); err != nil {
			return nil, fmt.Errorf("making the data folder: %w", err)
		}
	}
	file := filepath.Join(settings.Data, storeFile)
	store, err := boltstore.Open(file, boltstore.Config{Log: log, Create: create, Anchor: settings.Anchor, Sink: settings.AuditSink, SinkMaxBytes: int64(settings.AuditSinkMaxBytes)})
	switch {
	case errors.Is(err, storage.ErrAbsent):
		return nil, fmt.Errorf("%w; --data names the folder of a store, and --init makes a new, empty one there", err)
	case errors.Is(err, storage.ErrAnchor):
		return nil, fmt.Errorf("%w; %s", err, anchorHint(err, file, settings))
	case errors.Is(err, storage.ErrPresent):
		return nil, fmt.Errorf("%w; start without --init", err)
	case err != nil:
		return nil, err
	}
	warnOfLooseModes(ctx, log, settings.Data, file)
	return store, nil
}

// anchorHint says what to do about a file that does not agree with its anchor or its audit sink.
func anchorHint(err error, file string, settings config.Settings) string {
	if errors.Is(err, storage.ErrSinkNotGiven) {
		return "name it with --audit-sink, or give --audit-sink off to go on without a sink"
	}
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return "put the file back; move its anchor and its audit sink away only if an empty store is really wanted"
	}
	accept := "keysvc anchor accept " + file
	if settings.Anchor != "" {
		accept += " --anchor " + settings.Anchor
	}
	if settings.AuditSink != "" {
		accept += " --audit-sink " + settings.AuditSink
	}
	return "give or put in place what is missing, or the newest file; only if there is none, " + accept + " serves what there is, without what was revoked since"
}
