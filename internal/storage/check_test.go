package storage_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// content is what is passed to a Checker.
type content struct {
	position storage.Position
	feed     []*storagev1.FeedRecord
	items    []storage.Item
	events   []storage.AuditEvent
	purged   *storagev1.KeyRecord
}

// relist changes the records that an event lists. Its hash stays, so the chain stays sound.
func (c *content) relist(index int, listed []*storagev1.RecordChange) {
	c.events[index].Record = proto.CloneOf(c.events[index].Record)
	c.events[index].Record.Changes = listed
}

func (c *content) check(feed storage.FeedCheck) []string {
	checker := &storage.Checker{Feed: feed}
	checker.Position(c.position)
	for _, entry := range c.feed {
		checker.Entry(entry)
	}
	for _, item := range c.items {
		checker.Item(item)
	}
	for _, event := range c.events {
		checker.AuditEvent(event)
	}
	return checker.Problems()
}

// sound returns a workspace with a member and a key, whose revisions are 10, 20 …,
// and another key that was purged.
func sound(t *testing.T) *content {
	t.Helper()
	c := &content{}
	workspace := storagetest.NewWorkspace("w")
	records := make(storagetest.Records)
	do := func(change *storage.Change) {
		t.Helper()
		change.Event.Changes = records.Apply(change)
		encoded, err := storage.Encode(change.Event)
		if err != nil {
			t.Fatal(err)
		}
		c.position.Revision += 10
		c.events = append(c.events, storage.AuditEvent{Record: change.Event, Encoded: encoded})
		c.feed = append(c.feed, change.Feed(c.position.Revision, storage.HashAudit(encoded)))
		workspace.Follow(change)
	}
	put := workspace.PutMember("member", "admin")
	do(put)
	create := workspace.CreateKey(storagetest.KeyID(1))
	do(create)
	purged := workspace.CreateKey(storagetest.KeyID(2))
	do(purged)
	do(workspace.DeleteKey(purged.PutKeys[0]))
	c.purged = purged.PutKeys[0]
	c.items = []storage.Item{
		{Workspace: put.PutWorkspace},
		{Member: put.PutMembers[0]},
		{Head: &storage.WorkspaceHead{WorkspaceID: "w", Head: workspace.Head}},
		{Key: create.PutKeys[0]},
	}
	return c
}

func TestCheckerAcceptsASoundStore(t *testing.T) {
	if problems := (&content{}).check(storage.FeedDense); problems != nil {
		t.Errorf("an empty store: %q", problems)
	}
	if problems := sound(t).check(storage.FeedSparse); problems != nil {
		t.Errorf("a sparse feed: %q", problems)
	}
	trimmed := sound(t)
	trimmed.feed = trimmed.feed[2:]
	if problems := trimmed.check(storage.FeedSparse); problems != nil {
		t.Errorf("a trimmed feed: %q", problems)
	}
	unseen := sound(t)
	unseen.feed = nil
	if problems := unseen.check(storage.FeedUnseen); problems != nil {
		t.Errorf("a feed that is not seen: %q", problems)
	}
}

// TestCheckerReportsEachPlantedProblem covers what the file of one backend cannot contain.
// The backends plant the other problems in their own files.
func TestCheckerReportsEachPlantedProblem(t *testing.T) {
	damaged := errors.New("it is damaged")
	for name, test := range map[string]struct {
		feed storage.FeedCheck
		edit func(c *content)
		want string
	}{
		"gap in a dense feed": {storage.FeedDense, func(*content) {}, "feed: revisions between 10 and 20 are missing"},
		"feed out of order":   {storage.FeedSparse, func(c *content) { c.feed[1], c.feed[2] = c.feed[2], c.feed[1] }, "feed: revision 20 follows on 30"},
		"hole in a sparse feed": {storage.FeedSparse, func(c *content) {
			c.feed = slices.Delete(c.feed, 2, 3)
		}, "audit event 3: not in the feed, though one before it is"},
		"an entry twice": {storage.FeedSparse, func(c *content) {
			c.feed[2].AuditHash = c.feed[1].GetAuditHash()
		}, "name the same audit event"},
		"an event twice":    {storage.FeedUnseen, func(c *content) { c.events = append(c.events, c.events[3]) }, "audit event 4 follows on 4"},
		"a head twice":      {storage.FeedUnseen, func(c *content) { c.items = append(c.items, c.items[2]) }, "there are two heads"},
		"a workspace twice": {storage.FeedUnseen, func(c *content) { c.items = append(c.items, c.items[0]) }, "there are two records"},
		"a member twice":    {storage.FeedUnseen, func(c *content) { c.items = append(c.items, c.items[1]) }, `member "member" of workspace "w": there are two records`},
		"a key twice":       {storage.FeedUnseen, func(c *content) { c.items = append(c.items, c.items[3]) }, "there are two records"},
		"a policy twice": {storage.FeedUnseen, func(c *content) {
			policy := storage.Item{Policy: &storagev1.PolicyRecord{}}
			c.items = append(c.items, policy, policy)
		}, "policy: there are two"},
		"a policy without head": {storage.FeedUnseen, func(c *content) {
			c.items = append(c.items, storage.Item{Policy: &storagev1.PolicyRecord{}})
		}, "policy: it has no head"},
		"an empty item": {storage.FeedUnseen, func(c *content) { c.items = append(c.items, storage.Item{}) }, "an item without content"},
		"a damaged key": {storage.FeedUnseen, func(c *content) {
			c.items[3] = storage.Item{Damaged: &storage.Damaged{WorkspaceID: "w", KeyID: storagetest.KeyID(1), Err: damaged}}
		}, "it is damaged"},
		"a damaged head": {storage.FeedUnseen, func(c *content) {
			c.items[2] = storage.Item{Damaged: &storage.Damaged{WorkspaceID: "w", Head: true, Err: damaged}}
		}, "it is damaged"},
		"a purge that names others": {storage.FeedUnseen, func(c *content) {
			c.events[3].Record.Details["key_ids"] = "other," + storagetest.KeyID(1)
		}, "created by event 3, is not there and was not purged"},
		"a key that no event lists": {storage.FeedUnseen, func(c *content) {
			c.relist(1, nil)
		}, "key " + storagetest.KeyID(1) + ": no audit event lists it"},
		"a member as it was": {storage.FeedUnseen, func(c *content) {
			c.items[1].Member.Role = "owner"
		}, `member "member" of workspace "w": it is not the record that audit event 1 put last`},
		"a workspace that is missing": {storage.FeedUnseen, func(c *content) {
			c.items = c.items[1:]
		}, `workspace "w": it is missing; audit event 1 put it`},
		"a purged key": {storage.FeedUnseen, func(c *content) {
			c.items = append(c.items, storage.Item{Key: c.purged})
		}, "key " + storagetest.KeyID(2) + ": it is there, though audit event 4 deleted it"},
		"a record that names another change": {storage.FeedUnseen, func(c *content) {
			c.items[3].Key.ChangeSequence = 3
			c.relist(1, storagetest.Records{}.Apply(&storage.Change{PutKeys: []*storagev1.KeyRecord{c.items[3].Key}}))
		}, "key " + storagetest.KeyID(1) + ": it names audit event 3 as its change, but event 2 put it"},
		"another record before": {storage.FeedUnseen, func(c *content) {
			c.events[3].Record.Changes[0].Before[0] ^= 1
		}, "key " + storagetest.KeyID(2) + ": audit event 4 found another record than event 3 had put"},
		"a record from nowhere": {storage.FeedUnseen, func(c *content) {
			c.events[1].Record.Changes[0].Before = make([]byte, 32)
		}, "key " + storagetest.KeyID(1) + ": audit event 2 found a record that no event had put"},
		"a short hash in an event": {storage.FeedUnseen, func(c *content) {
			c.events[1].Record.Changes[0].After = make([]byte, 31)
		}, "key " + storagetest.KeyID(1) + ": audit event 2 lists it without hashes"},
		"an event that lists nothing": {storage.FeedUnseen, func(c *content) {
			c.relist(3, nil)
		}, `workspace "w": audit event 4 lists no records`},
		"revision 0": {storage.FeedUnseen, func(c *content) { c.position = storage.Position{} }, "position: revision 0"},
	} {
		c := sound(t)
		test.edit(c)
		problems := c.check(test.feed)
		if !slices.ContainsFunc(problems, func(problem string) bool { return strings.Contains(problem, test.want) }) {
			t.Errorf("%s: %q, want one with %q", name, problems, test.want)
		}
		// One thing that cannot be read is one problem, not many.
		if strings.HasPrefix(name, "a damaged") && len(problems) != 1 {
			t.Errorf("%s: %q, want one", name, problems)
		}
	}
}

// TestCheckerAcceptsGapsOnlyInWhatWasPruned leaves out the third of four events.
func TestCheckerAcceptsGapsOnlyInWhatWasPruned(t *testing.T) {
	for pruned, want := range map[int64]string{
		0:  "audit event 4 follows on 2",
		30: "audit event 4 follows on 2", // the newest event up to there is always kept
		40: "",
	} {
		c := sound(t)
		checker := &storage.Checker{Feed: storage.FeedSparse, Pruned: pruned}
		checker.Position(c.position)
		for _, entry := range c.feed {
			checker.Entry(entry)
		}
		for _, item := range c.items {
			checker.Item(item)
		}
		for index, event := range c.events {
			if event.Revision = int64(index+1) * 10; index != 2 {
				checker.AuditEvent(event)
			}
		}
		problems := checker.Problems()
		if (want == "") != (len(problems) == 0) || !strings.Contains(strings.Join(problems, "\n"), want) {
			t.Errorf("pruned up to %d: %q, want %q", pruned, problems, want)
		}
	}
}
