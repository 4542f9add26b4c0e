package boltstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
	"github.com/scribe-mail/keysvc/internal/token"
)

// steps holds the step that leads from each schema to the next.
var steps = map[int32]step{storage.SchemaFirst: toIntegrity}

// step copies a store into a new file in the form of the next schema.
type step func(from *bolt.Tx, to *copying, now time.Time) error

// copying is a new file that is being written, in transactions of a bounded size. The file has
// a temporary name until it is complete.
type copying struct {
	database *bolt.DB
	tx       *bolt.Tx
	puts     int
}

// maxPuts is how many values one transaction writes.
const maxPuts = 50_000

// put writes one value. In each bucket, names are written in ascending order.
func (c *copying) put(bucket string, name, value []byte) error {
	if c.puts == maxPuts {
		if err := c.commit(); err != nil {
			return err
		}
	}
	if c.tx == nil {
		var err error
		if c.tx, err = c.database.Begin(true); err != nil {
			return err
		}
	}
	c.puts++
	target, err := c.tx.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return err
	}
	target.FillPercent = 0.9
	return target.Put(name, value)
}

// putRecord writes one record.
func (c *copying) putRecord(bucket, name string, record proto.Message) error {
	payload, err := storage.Encode(record)
	if err != nil {
		return err
	}
	return c.put(bucket, []byte(name), frame(bucket, name, payload))
}

func (c *copying) commit() error {
	tx := c.tx
	c.tx, c.puts = nil, 0
	return tx.Commit()
}

// upgrade brings a file of an older schema to the current one. It writes a new file next to
// the old one, checks the new file completely, and puts it in the old one's place. The old
// file stays as path.schemaN. If the upgrade is interrupted, path is the old file or the
// new one, complete, and the next attempt starts over. A file with problems is not
// upgraded.
func upgrade(path string, config Config) error {
	old, err := openDatabase(path, config, false) // locked, so that nobody serves it during the upgrade
	if err != nil {
		return err
	}
	defer old.close() //nolint:errcheck // nothing was written to it
	if err := guard(func() error { return old.database.View(old.readHeader) }); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	schema := old.header.GetSchema()
	if schema >= storage.Schema {
		return nil // another process has upgraded it in the meantime
	}
	next := steps[schema]
	if next == nil {
		return fmt.Errorf("%w: %s has schema %d, which no version had", storage.ErrDamaged, path, schema)
	}
	u := &upgrading{path: path, config: config, old: old, fresh: path + ".upgrade", kept: path + ".schema" + strconv.Itoa(int(schema))}
	config.Log.Info("upgrading the store", "path", path, "from_schema", schema, "to_schema", storage.Schema)
	for _, part := range []struct {
		name string
		do   func() error
	}{
		// 1. What is wrong in the old file would become right by being listed in an event.
		{"examining the old file", u.examine},
		// 2. Path still names the old file until step 5.
		{"writing the new file", func() error { return u.write(next) }},
		// 3. Before the old file loses its name, because nothing compares the two afterwards.
		{"examining the new file", u.verify},
		// 4. Before step 5, because the rename removes the old file's first name.
		{"keeping the old file as " + u.kept, u.keep},
		// 5. A rename is atomic: a crash leaves the old file or the new one.
		{"putting the new file in its place", u.replace},
	} {
		if err := part.do(); err != nil {
			return fmt.Errorf("upgrading %s from schema %d: %s: %w", path, schema, part.name, err)
		}
		if config.upgraded != nil {
			config.upgraded(part.name)
		}
	}
	config.Log.Info("store upgraded", "path", path, "schema", storage.Schema, "old_file", u.kept)
	return nil
}

// upgrading is one upgrade.
type upgrading struct {
	path   string
	config Config
	old    *opened
	before Report
	fresh  string // path of the new file until it replaces the old one
	kept   string // path of the old file afterwards
}

// examine checks the old file.
func (u *upgrading) examine() error {
	held, err := u.old.file.Stat()
	if err != nil {
		return err
	}
	if named, err := os.Stat(u.path); err != nil || !os.SameFile(held, named) {
		return fmt.Errorf("%w: it is another file than the one that was opened", storage.ErrUnavailable)
	}
	err = guard(func() error { return checkOpened(context.Background(), u.old, &u.before) })
	if err == nil && len(u.before.Problems) > 0 {
		err = damagedBy(u.before.Problems)
	}
	return err
}

func damagedBy(problems []string) error {
	return fmt.Errorf("%w: %d problems, the first: %s", storage.ErrDamaged, len(problems), problems[0])
}

// write writes the new file. It is synced once, when it is complete.
func (u *upgrading) write(next step) (err error) {
	if err := os.Remove(u.fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	info, err := u.old.file.Stat()
	if err != nil {
		return err
	}
	database, err := bolt.Open(u.fresh, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoSync: true})
	if err != nil {
		return err
	}
	to := &copying{database: database}
	defer func() {
		if to.tx != nil {
			_ = to.tx.Rollback()
		}
		if err = errors.Join(err, database.Close()); err != nil {
			_ = os.Remove(u.fresh) // perhaps the disk is full
		}
	}()
	err = guard(func() error {
		return u.old.database.View(func(from *bolt.Tx) error {
			if err := next(from, to, u.config.Now()); err != nil {
				return err
			}
			return to.commit()
		})
	})
	if err != nil {
		return err
	}
	if err := os.Chmod(u.fresh, info.Mode().Perm()); err != nil {
		return err
	}
	return database.Sync()
}

// verify checks the new file, and that nothing was lost.
func (u *upgrading) verify() error {
	report, err := Check(context.Background(), u.fresh)
	if err != nil {
		return err
	}
	if len(report.Problems) > 0 {
		return damagedBy(report.Problems)
	}
	if report.Workspaces != u.before.Workspaces || report.Members != u.before.Members || report.Keys != u.before.Keys ||
		report.AuditEvents < u.before.AuditEvents || report.Epoch != u.before.Epoch || report.Schema != storage.Schema {
		return fmt.Errorf("%w: it holds %+v, the old one %+v", storage.ErrDamaged, report, u.before)
	}
	return nil
}

// keep gives the old file its second name.
func (u *upgrading) keep() error {
	err := os.Link(u.path, u.kept)
	if errors.Is(err, fs.ErrExist) {
		held, statErr := u.old.file.Stat()
		named, namedErr := os.Stat(u.kept)
		if statErr == nil && namedErr == nil && os.SameFile(held, named) {
			err = nil // an interrupted attempt made the link
		}
	}
	if err != nil {
		return err
	}
	return syncFolder(filepath.Dir(u.path))
}

// replace renames the new file over the old one.
func (u *upgrading) replace() error {
	if err := os.Rename(u.fresh, u.path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(u.path))
}

// toIntegrity copies a store of SchemaFirst into one of SchemaIntegrity. It appends events to
// each workspace's chain that list all records of the workspace, within the bounds of a change,
// and the records name these events. The position and the events get the time of the newest
// change, not the clock's: a wrong clock would put the store into the future.
func toIntegrity(from *bolt.Tx, to *copying, now time.Time) error {
	old := &opened{}
	if err := old.readHeader(from); err != nil {
		return err
	}
	for _, bucket := range []string{bucketAudit, bucketFeed, bucketUsage} {
		if err := copyBucket(from, to, bucket); err != nil {
			return err
		}
	}
	rewritten := &rewriting{
		to: to, epoch: old.header.GetEpoch(), revision: old.position.Revision,
		time: timestamppb.New(old.position.Time), startedAt: now, workspaces: make(map[string]*rewrittenWorkspace),
	}
	if err := rewritten.readHeads(from); err != nil {
		return err
	}
	for _, bucket := range []string{bucketPolicy, bucketWorkspaces, bucketMembers, bucketKeys} {
		err := from.Bucket([]byte(bucket)).ForEach(func(name, value []byte) error {
			return rewritten.record(bucket, string(name), value)
		})
		if err != nil {
			return err
		}
	}
	if err := rewritten.finish(); err != nil {
		return err
	}
	old.header.Schema = storage.SchemaIntegrity
	position := &storagev1.PositionRecord{Revision: rewritten.revision}
	if !old.position.Time.IsZero() {
		position.Time = rewritten.time
	}
	err := errors.Join(
		to.putRecord(bucketMeta, nameHeader, old.header),
		to.putRecord(bucketMeta, namePosition, position))
	for _, bucket := range buckets {
		if _, made := to.tx.CreateBucketIfNotExists([]byte(bucket)); made != nil {
			err = errors.Join(err, made)
		}
	}
	return err
}

func copyBucket(from *bolt.Tx, to *copying, bucket string) error {
	return from.Bucket([]byte(bucket)).ForEach(func(name, value []byte) error { return to.put(bucket, name, value) })
}

// rewriting rewrites all records of a store and lists them in events.
type rewriting struct {
	to         *copying
	epoch      string
	revision   int64
	time       *timestamppb.Timestamp
	startedAt  time.Time
	workspaces map[string]*rewrittenWorkspace
}

// rewrittenWorkspace is a workspace whose records are being rewritten.
type rewrittenWorkspace struct {
	indexedWorkspace

	// event is the event that lists the records at present, nil before the first record and
	// after closeEvent. size is how many bytes these records had.
	event *storagev1.AuditRecord
	size  int
}

func (r *rewriting) readHeads(from *bolt.Tx) error {
	return from.Bucket([]byte(bucketHeads)).ForEach(func(name, value []byte) error {
		record := &storagev1.HeadRecord{}
		head, err := decodeHead(string(name), value, record)
		if err != nil {
			return err
		}
		id := parseHeadName(string(name))
		r.workspaces[id] = &rewrittenWorkspace{indexedWorkspace: indexedWorkspace{id: id, head: head, headRevision: record.GetRevision()}}
		return nil
	})
}

// record rewrites one record.
func (r *rewriting) record(bucket, name string, value []byte) error {
	item := decode(bucket, name, value)
	if item.Damaged != nil {
		return item.Damaged.Err
	}
	var workspaceID string
	var id recordID
	var record proto.Message
	var change *int64
	switch {
	case item.Policy != nil:
		id, record, change = recordID{kind: kindPolicy}, item.Policy, &item.Policy.ChangeSequence
	case item.Workspace != nil:
		workspaceID, id = name, recordID{kind: kindWorkspace}
		record, change = item.Workspace, &item.Workspace.ChangeSequence
	case item.Member != nil:
		workspaceID, id = item.Member.GetWorkspaceId(), recordID{kindMember, item.Member.GetMemberId()}
		record, change = item.Member, &item.Member.ChangeSequence
	default:
		workspaceID, id = item.Key.GetWorkspaceId(), recordID{kindKey, item.Key.GetKeyId()}
		record, change = item.Key, &item.Key.ChangeSequence
		if err := toVerifiers(item.Key); err != nil {
			return err
		}
	}
	entry := r.workspaces[workspaceID]
	if entry == nil {
		return &storage.DamagedError{Kind: "head", Name: workspaceID, Problem: "missing"}
	}
	size := len(value)
	if entry.event != nil && (len(entry.event.GetChanges()) == storage.MaxOperations || entry.size+size > storage.MaxChangeBytes/2) {
		if err := r.closeEvent(entry); err != nil {
			return err
		}
	}
	if entry.event == nil {
		r.openEvent(entry)
	}
	*change = entry.event.GetSequence()
	payload, err := storage.Encode(record)
	if err != nil {
		return err
	}
	_, before := elementOf(workspaceID, id, storage.Payload(value))
	element, after := elementOf(workspaceID, id, payload)
	entry.sum = entry.sum.Add(element)
	entry.size += size
	entry.event.Changes = append(entry.event.Changes, &storagev1.RecordChange{
		Kind: id.kind, Name: id.name, Before: before[:], After: after[:],
	})
	return r.to.put(bucket, []byte(name), frame(bucket, name, payload))
}

// toVerifiers replaces the digests of a key's secrets by verifiers.
func toVerifiers(key *storagev1.KeyRecord) error {
	for _, secret := range key.GetSecrets() {
		if token.Scheme(secret.GetScheme()) != token.SchemeDigest || len(secret.GetHash()) != sha256.Size { //nolint:gosec // compared with 1
			return &storage.DamagedError{Kind: "key", Name: key.GetKeyId(), Problem: "a secret that is no digest"}
		}
		verifier := token.VerifierOf([sha256.Size]byte(secret.GetHash()))
		secret.Scheme, secret.Hash = uint32(token.SchemeVerifier), verifier[:]
	}
	return nil
}

// openEvent begins an event to list records in.
func (r *rewriting) openEvent(entry *rewrittenWorkspace) {
	entry.event = &storagev1.AuditRecord{
		WorkspaceId: entry.id,
		Time:        r.time,
		Action:      storagev1.AuditAction_AUDIT_ACTION_UPGRADED,
		Caller:      "keysvc",
		Details: map[string]string{
			"schema":      strconv.Itoa(storage.SchemaIntegrity),
			"upgraded_at": r.startedAt.UTC().Format(time.RFC3339),
		},
	}
	entry.head.Link(entry.event)
	entry.size = 0
}

// closeEvent appends the open event to the chain.
func (r *rewriting) closeEvent(entry *rewrittenWorkspace) error {
	encoded, err := storage.Encode(entry.event)
	if err != nil {
		return err
	}
	r.revision++
	name := number(r.revision)
	entry.head = entry.head.After(encoded)
	change := &storage.Change{WorkspaceID: entry.id, Kind: storagev1.FeedKind_FEED_KIND_PURGE}
	previous := entry.headRevision
	entry.headRevision, entry.event = r.revision, nil
	audit := frame(bucketAudit, name, append([]byte(number(previous)), encoded...))
	return errors.Join(
		r.to.put(bucketAudit, []byte(name), audit),
		r.to.putRecord(bucketFeed, name, change.Feed(r.revision, entry.head.Hash)))
}

// finish closes all events and writes the heads.
func (r *rewriting) finish() error {
	hasher := integrity.NewHasher()
	for _, id := range slices.Sorted(maps.Keys(r.workspaces)) {
		entry := r.workspaces[id]
		if entry.event != nil {
			if err := r.closeEvent(entry); err != nil {
				return err
			}
		}
		record := entry.head.Record(entry.headRevision)
		tag := tagOf(hasher, r.epoch, id, entry.head, entry.sum)
		record.Tag, record.TagKeyVersion = tag[:], integrity.KeyVersion
		if err := r.to.putRecord(bucketHeads, headName(id), record); err != nil {
			return err
		}
	}
	return nil
}
