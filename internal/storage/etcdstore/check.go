package etcdstore

import (
	"context"
	"errors"
	"fmt"
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
	// Position is how far it has come.
	Position storage.Position
	// Problems describes what is wrong, at most about a hundred things; the last line
	// then says how many more there are. The store is sound if there are none.
	Problems []string
}

// Check examines a store, served or not, as of one revision, and changes nothing: every
// record, every index entry, and how they fit together. It holds the ids of all
// keys in memory. Damage is a problem in the report; an error says that the store
// could not be examined: ErrNewer, ErrUnavailable, or the context's.
func Check(ctx context.Context, config Config) (Report, error) {
	store := newStore(ctx, config)
	defer store.Close() //nolint:errcheck // it never fails
	var report Report
	err := store.check(ctx, &report)
	if errors.Is(err, storage.ErrDamaged) {
		report.Problems = append(report.Problems, err.Error())
		err = nil
	}
	if err != nil {
		return Report{}, fmt.Errorf("%s: %w", store.config.Prefix, err)
	}
	return report, nil
}

func (s *Store) check(ctx context.Context, report *Report) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	position, at, err := s.position(ctx)
	if err != nil {
		return err
	}
	report.Epoch, report.Position = s.epoch, position
	checker := &checker{
		loader:   loader{store: s, ctx: ctx, at: at, isNew: position.Revision == 0, headless: make(map[string]bool)},
		keys:     make(map[string]*keyEntries),
		requests: make(map[string]string),
	}
	checker.visit = checker.visited
	err = checker.run(position)
	report.Problems = checker.Problems()
	return err
}

// checker shows a store to a storage.Checker, and compares records and index entries.
type checker struct {
	storage.Checker
	loader
	keys     map[string]*keyEntries
	requests map[string]string // by name: the key whose record has it
	// events are those of one workspace, the newest first.
	events   []storage.AuditEvent
	eventsOf string
}

// keyEntries is what should be there of one key, and what was seen.
type keyEntries struct {
	name, place string
	hasID       bool
	stands      bool
}

func (c *checker) run(position storage.Position) error {
	c.Position(position)
	if err := c.load(); err != nil {
		return err
	}
	for _, folder := range []struct {
		name  string
		visit func(name string, entry *mvccpb.KeyValue) error
	}{{folderIDs, c.id}, {folderOrder, c.order}, {folderRequests, c.request}, {folderAudit, c.audit}, {"", c.any}} {
		if err := c.each(folder.name, folder.visit); err != nil {
			return err
		}
	}
	c.flushEvents()
	c.missing()
	return nil
}

// visited takes what Load would visit.
func (c *checker) visited(item storage.Item) error {
	c.Item(item)
	if key := item.Key; key != nil {
		name := keyName(key.GetWorkspaceId(), key.GetSequence(), key.GetKeyId())
		c.keys[key.GetKeyId()] = &keyEntries{name: name}
		for _, requestID := range key.GetRequestIds() {
			c.requests[requestName(key.GetWorkspaceId(), requestID)] = key.GetKeyId()
		}
	}
	return nil
}

// id takes one entry of the ids.
func (c *checker) id(name string, entry *mvccpb.KeyValue) error {
	keyID := name[len(folderIDs):]
	where, err := decodeID(keyID, entry.Value)
	key := c.keys[keyID]
	switch {
	case err != nil:
		c.Problem("%v", err)
	case key == nil:
		c.Problem("key %s: its id is there, but no record that can be read", keyID)
	case key.name != where.name:
		c.Problem("key %s: its id points to %q, its record is %q", keyID, where.name, key.name)
	default:
		key.hasID, key.place = true, where.place
	}
	return nil
}

// order takes one entry of the order, after the ids.
func (c *checker) order(name string, entry *mvccpb.KeyValue) error {
	where, err := c.store.decodeOrder(entry)
	if err != nil {
		c.Problem("%v", err)
		return nil
	}
	switch key := c.keys[where.keyID]; {
	case key == nil:
		c.Problem("order: key %s stands there, but has no record that can be read", where.keyID)
	case key.name != where.name || key.place != where.place:
		c.Problem("key %s: it does not stand where its id says", where.keyID)
	default:
		key.stands = true
	}
	return nil
}

// request takes one entry of the request ids.
func (c *checker) request(name string, entry *mvccpb.KeyValue) error {
	keyID, err := storage.Unframe("request", name, entry.Value)
	switch {
	case err != nil:
		c.Problem("%v", err)
	case c.requests[name] != string(keyID):
		c.Problem("request id %q: it is kept for key %s, whose record does not have it", name, keyID)
	default:
		delete(c.requests, name)
	}
	return nil
}

// audit takes the audit events of a workspace, which lie newest first.
func (c *checker) audit(name string, entry *mvccpb.KeyValue) error {
	workspaceID, sequence, ok := parseAuditName(name)
	if !ok {
		c.Problem("audit: an event under the name %q", name)
		return nil
	}
	if workspaceID != c.eventsOf {
		c.flushEvents()
		c.eventsOf = workspaceID
	}
	event, err := decodeAudit(workspaceID, name, sequence, entry.Value)
	if err != nil {
		c.Problem("%v", err)
		return nil
	}
	c.events = append(c.events, event)
	return nil
}

func (c *checker) flushEvents() {
	for _, event := range slices.Backward(c.events) {
		c.AuditEvent(event)
	}
	clear(c.events)
	c.events = c.events[:0]
}

// any takes every name.
func (c *checker) any(name string, entry *mvccpb.KeyValue) error {
	if name == nameFeedHead {
		if err := storage.Decode("feed entry", name, entry.Value, &storagev1.FeedRecord{}); err != nil {
			c.Problem("%v", err)
		}
		return nil
	}
	known := append([]string{folderIDs, folderOrder, folderRequests, folderAudit, folderUsage}, loaded...)
	if name != nameHeader && name != nameTime &&
		!slices.ContainsFunc(known, func(folder string) bool { return strings.HasPrefix(name, folder) }) {
		c.Problem("an unknown entry %q", name)
	}
	return nil
}

// missing looks for what should have been there.
func (c *checker) missing() {
	for keyID, key := range c.keys {
		if !key.hasID {
			c.Problem("key %s: its id is not there", keyID)
		}
		if !key.stands {
			c.Problem("key %s: it does not stand in the order of all keys", keyID)
		}
	}
	for name, keyID := range c.requests {
		c.Problem("request id %q of key %s: it is not kept", name, keyID)
	}
}
