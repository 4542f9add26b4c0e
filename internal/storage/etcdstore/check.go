package etcdstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Report is what Check found in a store.
type Report struct {
	// Epoch is the store's.
	Epoch string
	// Position is how far the store has come.
	Position storage.Position
	// Events is how many audit events there are, and Pruned the revision up to which old ones may have been deleted.
	Events, Pruned int64
	// Problems describes what is wrong, about a hundred problems at most; then the last line
	// says how many more there are. The store is sound if Problems is empty.
	Problems []string
}

// Check examines a store, served or not, as of one revision, and changes nothing: every
// record, every index entry, and how they fit together. It keeps the ids of all keys in
// memory. Damage is reported as problems. An error means that the store could not be
// examined: ErrAbsent, ErrNewer, ErrOlder, ErrUnavailable, or the context's.
func Check(ctx context.Context, config Config) (Report, error) {
	store := newStore(ctx, config)
	defer store.Close() //nolint:errcheck // it never fails
	var report Report
	err := store.check(ctx, &report, &checker{})
	if errors.Is(err, storage.ErrDamaged) {
		report.Problems = append(report.Problems, err.Error())
		err = nil
	}
	if err != nil {
		return Report{}, fmt.Errorf("%s: %w", store.config.Prefix, err)
	}
	return report, nil
}

func (s *Store) check(ctx context.Context, report *Report, checker *checker) error {
	switch err := s.open(ctx); {
	case err == errNoHeader: //nolint:errorlint // it is that value
		return s.missing(ctx)
	case err != nil:
		return err
	}
	return s.checkOpened(ctx, report, checker)
}

// checkOpened checks a store whose header was read.
func (s *Store) checkOpened(ctx context.Context, report *Report, checker *checker) error {
	position, at, err := s.position(ctx)
	if err != nil {
		return err
	}
	report.Epoch, report.Position = s.epoch, position
	checker.loader = loader{store: s, ctx: ctx, at: at}
	checker.entries, checker.requestIDs = make(map[string]*keyEntries), make(map[string]string)
	checker.visit = checker.visited
	if checker.Pruned, _, err = s.prunedMark(ctx); err != nil {
		return err
	}
	if err = checker.run(position); err != nil {
		checker.Incomplete()
	}
	report.Problems, report.Events, report.Pruned = checker.Problems(), checker.count, checker.Pruned
	return err
}

// checker passes the content of a store to a storage.Checker, and compares records with
// index entries.
type checker struct {
	storage.Checker
	loader
	entries    map[string]*keyEntries
	requestIDs map[string]string // key ids, by the name of the index entry of the request id
	// events are the events of workspace eventsOf, newest first.
	events   []storage.AuditEvent
	eventsOf string
	count    int64
	// trail, if not nil, is called with each event, those of a workspace newest first. An event that cannot be read has no record.
	trail func(workspaceID string, sequence, revision int64, event storage.AuditEvent)
}

// keyEntries is what the index entries of a key should contain, and which of them were found.
type keyEntries struct {
	name, rank       string
	hasID, isOrdered bool
}

func (c *checker) run(position storage.Position) error {
	c.Position(position)
	if err := c.load(); err != nil {
		return err
	}
	c.tags()
	for _, folder := range []struct {
		name  string
		visit func(pair) error
	}{{folderIDs, c.id}, {folderOrder, c.order}, {folderRequests, c.requestID}, {folderAudit, c.audit}, {"", c.any}} {
		if err := c.each(folder.name, folder.visit); err != nil {
			return err
		}
	}
	c.flushEvents()
	c.missing()
	return nil
}

// tags compares the records of each workspace with the tag of its head.
func (c *checker) tags() {
	for _, workspaceID := range slices.Sorted(maps.Keys(c.memory.workspaces)) {
		entry := c.memory.workspaces[workspaceID]
		if entry.damagedHead == nil && !bytes.Equal(entry.tag, c.store.tagOf(workspaceID, entry.head, entry.sum)) {
			c.Problem("workspace %q: its records do not match the tag of its head", workspaceID)
		}
	}
}

// visited passes on what Load would visit.
func (c *checker) visited(item storage.Item) error {
	c.Item(item)
	if key := item.Key; key != nil {
		name := keyName(key.GetWorkspaceId(), key.GetSequence(), key.GetKeyId())
		c.entries[key.GetKeyId()] = &keyEntries{name: name}
		for _, requestID := range key.GetRequestIds() {
			c.requestIDs[requestName(key.GetWorkspaceId(), requestID)] = key.GetKeyId()
		}
	}
	return nil
}

// id checks one index entry of a key id.
func (c *checker) id(found pair) error {
	name := string(found.name)
	keyID := name[len(folderIDs):]
	where, err := decodeID(keyID, found.value)
	key := c.entries[keyID]
	switch {
	case err != nil:
		c.Problem("%v", err)
	case key == nil:
		c.Problem("key %s: its id has an index entry, but there is no record that can be read", keyID)
	case key.name != where.name:
		c.Problem("key %s: the index entry of its id points to %q, its record is %q", keyID, where.name, key.name)
	default:
		key.hasID, key.rank = true, where.rank
	}
	return nil
}

// order checks one index entry of the order of all keys. The entries of key ids, which have the
// ranks, are checked before.
func (c *checker) order(found pair) error {
	where, err := c.store.decodeOrder(&mvccpb.KeyValue{
		Key: append([]byte(c.store.config.Prefix), found.name...), Value: found.value, CreateRevision: found.created,
	})
	if err != nil {
		c.Problem("%v", err)
		return nil
	}
	switch key := c.entries[where.keyID]; {
	case key == nil:
		c.Problem("order: key %s has an index entry, but no record that can be read", where.keyID)
	case key.name != where.name || key.rank != where.rank:
		c.Problem("key %s: its index entries of the order and of the id differ", where.keyID)
	default:
		key.isOrdered = true
	}
	return nil
}

// requestID checks one index entry of a request id.
func (c *checker) requestID(found pair) error {
	name := string(found.name)
	keyID, err := storage.Unframe("request", name, found.value)
	switch {
	case err != nil:
		c.Problem("%v", err)
	case c.requestIDs[name] != string(keyID):
		c.Problem("request id %q: its index entry points to key %s, whose record does not have it", name, keyID)
	default:
		delete(c.requestIDs, name)
	}
	return nil
}

// audit collects the audit events of a workspace, which are stored newest first.
func (c *checker) audit(found pair) error {
	name := string(found.name)
	workspaceID, sequence, ok := parseAuditName(name)
	if !ok {
		c.Problem("audit: an event under the name %q", name)
		return nil
	}
	if workspaceID != c.eventsOf {
		c.flushEvents()
		c.eventsOf = workspaceID
	}
	event, err := decodeAudit(workspaceID, name, sequence, found.value)
	c.count++
	if c.trail != nil {
		c.trail(workspaceID, sequence, found.modified, event)
	}
	if err != nil {
		c.Problem("%v", err)
		return nil
	}
	event.Revision = found.modified
	c.events = append(c.events, event)
	return nil
}

// flushEvents passes on the collected events, oldest first.
func (c *checker) flushEvents() {
	for _, event := range slices.Backward(c.events) {
		c.AuditEvent(event)
	}
	clear(c.events)
	c.events = c.events[:0]
}

// any checks that every name is known.
func (c *checker) any(found pair) error {
	name := string(found.name)
	if name == nameFeedHead {
		if err := storage.Decode("feed entry", name, found.value, &storagev1.FeedRecord{}); err != nil {
			c.Problem("%v", err)
		}
		return nil
	}
	known := append([]string{folderIDs, folderOrder, folderRequests, folderAudit, folderUsage, folderElection, folderKeys}, recordFolders...)
	if name != nameHeader && name != nameTime && name != nameMigration && name != namePruned && name != nameSink &&
		!slices.ContainsFunc(known, func(folder string) bool { return strings.HasPrefix(name, folder) }) {
		c.Problem("an unknown name %q", name)
	}
	return nil
}

// missing reports the index entries that were not found.
func (c *checker) missing() {
	for keyID, key := range c.entries {
		if !key.hasID {
			c.Problem("key %s: its id has no index entry", keyID)
		}
		if !key.isOrdered {
			c.Problem("key %s: the order of all keys has no index entry for it", keyID)
		}
	}
	for name, keyID := range c.requestIDs {
		c.Problem("request id %q of key %s: it has no index entry", name, keyID)
	}
}
