package boltstore

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// Report is what Check found in a file.
type Report struct {
	// Schema and Epoch are those of the store.
	Schema int32
	Epoch  string
	// Position is how far the store has come.
	Position storage.Position
	// The numbers of records, readable or not.
	Workspaces, Members, Keys, AuditEvents, FeedEntries, Refusals int
	// Pruned is the revision up to which old audit events may have been deleted.
	Pruned int64
	// Anchor says how the file compares with its anchor.
	Anchor string
	// Sink says how the file compares with its audit sink.
	Sink string
	// Problems describes what is wrong, about a hundred problems at most; then the last line
	// says how many more there are. The store is sound if Problems is empty.
	Problems []string
	// Located are the problems again, with the places where they are known. More is how many more
	// there are.
	Located []storage.Problem
	More    int
}

// problem adds a problem that the Checker has not found.
func (r *Report) problem(text string) {
	r.Problems = append(r.Problems, text)
	r.Located = append(r.Located, storage.Problem{Text: text})
}

// Check examines the file of a store that no process serves, and changes nothing: the
// pages, by a check of its own and by bbolt's, every record, and how the records fit
// together. Damage of any extent is reported as problems. An error means that the file
// could not be examined: ErrLocked, ErrNewer, the context's, or that of the file system.
func Check(ctx context.Context, path string) (Report, error) {
	return CheckAnchored(ctx, path, "", "")
}

// CheckAnchored is Check for a store whose anchor is at anchorPath and whose audit sink is at
// sinkPath. An empty anchorPath is AnchorOf the file. If sinkPath is empty, a difference from the
// sink that the store had is reported and not a problem: the file may be a copy.
func CheckAnchored(ctx context.Context, path, anchorPath, sinkPath string) (Report, error) {
	if anchorPath == "" {
		anchorPath = AnchorOf(path)
	}
	var report Report
	err := check(ctx, path, anchorPath, sinkPath, &report)
	switch {
	case errors.Is(err, storage.ErrLocked):
		return Report{}, fmt.Errorf("%w: stop the server, or check a copy of the file", err)
	case errors.Is(err, storage.ErrDamaged):
		report.problem(err.Error())
	case err != nil:
		return Report{}, err
	}
	return report, nil
}

func check(ctx context.Context, path, anchorPath, sinkPath string, report *Report) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	// After openPages, bbolt can walk the pages without a fault or a loop. That matters in the
	// goroutine of bbolt's own check, where guard cannot recover.
	file, err := openPages(ctx, path, Config{}.withDefaults())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.close()) }()
	return guard(func() error {
		if err := checkOpened(ctx, file, report); err != nil {
			return err
		}
		file.reportAnchor(anchorPath, report)
		file.reportSink(sinkPath, report)
		return nil
	})
}

// checkOpened checks a file whose pages are good.
func checkOpened(ctx context.Context, file *opened, report *Report) error {
	return file.database.View(func(tx *bolt.Tx) error {
		if err := file.readHeader(tx); err != nil {
			return err
		}
		report.Schema, report.Epoch, report.Position = file.header.GetSchema(), file.header.GetEpoch(), file.position
		checker := &fileChecker{Checker: storage.Checker{Feed: storage.FeedDense, Schema: file.header.GetSchema()}, ctx: ctx, tx: tx, report: report}
		for _, name := range []string{namePruned, nameUnsunk} {
			if _, err := revisionMark(tx, name); err != nil {
				checker.Problem("%v", err)
			}
		}
		checker.Pruned, _ = revisionMark(tx, namePruned) // reported above
		report.Pruned = checker.Pruned
		// The channel must be drained: its sender uses the transaction.
		for problem := range tx.Check() {
			checker.Problem("bbolt: %v", problem)
		}
		err := checker.run(file)
		report.Problems = checker.Problems()
		report.Located, report.More = checker.Located()
		return err
	})
}

// fileChecker passes the content of a file to the Checker, and looks for problems that only
// this backend can have: names that do not belong, wrong tags of heads, wrong links of events.
type fileChecker struct {
	storage.Checker
	ctx     context.Context //nolint:containedctx // that of one check
	tx      *bolt.Tx
	report  *Report
	visited int
	sums    map[string]integrity.Sum
}

// run checks everything in the buckets. Its only error is the context's.
func (c *fileChecker) run(file *opened) error {
	c.Position(file.position)
	c.names()
	if err := errors.Join(c.feed(), c.refusals()); err != nil {
		return err
	}
	heads, err := c.items()
	if err != nil {
		return err
	}
	if file.header.GetSchema() >= storage.SchemaIntegrity {
		c.tags(file.header.GetEpoch(), heads)
	}
	revisions := make(map[string]int64, len(heads))
	for workspaceID, head := range heads {
		revisions[workspaceID] = head.GetRevision()
	}
	return c.audit(file.position.Revision, revisions)
}

// tags compares every head's tag with the sum of the workspace's records. The comparison
// with the audit events shows which record is wrong.
func (c *fileChecker) tags(epoch string, heads map[string]*storagev1.HeadRecord) {
	hasher := integrity.NewHasher()
	for _, workspaceID := range slices.Sorted(maps.Keys(heads)) {
		record := heads[workspaceID]
		head, _ := storage.HeadOf(workspaceID, record) // decoded before
		if tag := tagOf(hasher, epoch, workspaceID, head, c.sums[workspaceID]); !bytes.Equal(tag[:], record.GetTag()) {
			c.Problem("workspace %q: its records do not match the tag of its head", workspaceID)
		}
	}
}

// stored passes on a readable record.
func (c *fileChecker) stored(item storage.Item, value []byte) {
	workspaceID, id := recordOf(item)
	if id.kind != storagev1.RecordKind_RECORD_KIND_UNSPECIFIED {
		element, _ := elementOf(workspaceID, id, storage.Payload(value))
		c.sums[workspaceID] = c.sums[workspaceID].Add(element)
	}
	c.Stored(item, storage.Payload(value))
}

// names looks for buckets and names that do not belong in the file.
func (c *fileChecker) names() {
	known := map[string][]string{bucketMeta: {nameHeader, namePosition, namePruned, nameUnsunk}, bucketPolicy: {nameActive}}
	err := c.tx.ForEach(func(bucket []byte, content *bolt.Bucket) error {
		switch {
		case content == nil:
			c.Problem("a value outside of the buckets: %s", hex.EncodeToString(bucket))
			return nil
		case !slices.Contains(buckets, string(bucket)) && string(bucket) != bucketRefusals:
			c.Problem("an unknown bucket %q", bucket)
		}
		allowed, limited := known[string(bucket)]
		if !limited {
			return nil
		}
		return content.ForEach(func(name, _ []byte) error {
			if !slices.Contains(allowed, string(name)) {
				c.Problem("bucket %s: an unknown name %q", bucket, name)
			}
			return nil
		})
	})
	if err != nil {
		c.Problem("the buckets: %v", err)
	}
}

// each visits the values of a bucket.
func (c *fileChecker) each(bucket string, visit func(name string, value []byte)) error {
	return c.tx.Bucket([]byte(bucket)).ForEach(func(name, value []byte) error {
		if c.visited++; c.visited%contextInterval == 0 && c.ctx.Err() != nil {
			return c.ctx.Err()
		}
		visit(string(name), value)
		return nil
	})
}

func (c *fileChecker) feed() error {
	return c.each(bucketFeed, func(name string, value []byte) {
		c.report.FeedEntries++
		record := &storagev1.FeedRecord{}
		if err := storage.Decode("feed entry", frameName(bucketFeed, name), value, record); err != nil {
			c.Problem("%v", &storage.DamagedError{Kind: "feed entry", Name: hex.EncodeToString([]byte(name)), Problem: problemOf(err)})
			return
		}
		if number(record.GetRevision()) != name {
			c.Problem("feed: the entry of revision %d lies under %s", record.GetRevision(), hex.EncodeToString([]byte(name)))
		}
		c.Entry(record)
	})
}

// items passes on what Load would visit and returns the workspaces' heads.
func (c *fileChecker) items() (map[string]*storagev1.HeadRecord, error) {
	heads := make(map[string]*storagev1.HeadRecord)
	c.sums = make(map[string]integrity.Sum)
	slots := make(map[string]int64) // sequence of the workspace's previous key
	counts := map[string]*int{bucketWorkspaces: &c.report.Workspaces, bucketMembers: &c.report.Members, bucketKeys: &c.report.Keys}
	for _, bucket := range loaded {
		err := c.each(bucket, func(name string, value []byte) {
			if count := counts[bucket]; count != nil {
				*count++
			}
			switch bucket {
			case bucketMembers:
				if strings.Count(name, "\x00") != 1 || name[0] == 0 {
					c.Problem("members: a record under the name %q", name)
				}
			case bucketHeads:
				record := &storagev1.HeadRecord{}
				if _, err := decodeHead(name, value, record); err == nil {
					heads[parseHeadName(name)] = record
				}
			case bucketKeys:
				if _, _, _, err := parseKeyName([]byte(name)); err != nil {
					c.Problem("keys: %v", err)
					return
				}
			}
			item := decode(bucket, name, value)
			if item.Damaged != nil {
				c.Item(item)
			} else {
				c.stored(item, value)
			}
			if key := item.Key; key != nil {
				if before := slots[key.GetWorkspaceId()]; key.GetSequence() < before {
					c.Problem("key %s: of sequence %d, but it lies after one of sequence %d", key.GetKeyId(), key.GetSequence(), before)
				}
				slots[key.GetWorkspaceId()] = key.GetSequence()
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return heads, nil
}

// audit passes on the audit events and checks their links: each points to the workspace's
// previous one, the head points to the last, and each revision has one, except those that were
// pruned.
func (c *fileChecker) audit(newest int64, heads map[string]int64) error {
	last := make(map[string]int64)
	before := int64(0)
	err := c.each(bucketAudit, func(name string, value []byte) {
		c.report.AuditEvents++
		revision, err := parseNumber([]byte(name))
		if err != nil || len(name) != numberLength {
			c.Problem("audit: a record under the name %s", hex.EncodeToString([]byte(name)))
			return
		}
		if revision != before+1 && revision-1 > c.Pruned {
			c.ProblemAt(storage.Place{Revision: revision}, "audit: revision %d follows on %d", revision, before)
		}
		before = revision
		event, previous, err := decodeAudit(name, value)
		if err != nil {
			c.Problem("%v", err)
			return
		}
		workspaceID := event.Record.GetWorkspaceId()
		if previous != last[workspaceID] {
			c.Problem("audit: revision %d points back to %d, the one before it is %d", revision, previous, last[workspaceID])
		}
		last[workspaceID] = revision
		event.Revision = revision
		c.AuditEvent(event)
	})
	if err != nil {
		return err
	}
	if before != newest {
		c.Problem("audit: it ends at revision %d, the store at %d", before, newest)
	}
	for workspaceID, revision := range heads {
		if last[workspaceID] != revision {
			c.Problem("workspace %q: its head points to revision %d, its last audit event is %d", workspaceID, revision, last[workspaceID])
		}
	}
	return nil
}
