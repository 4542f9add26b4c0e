package boltstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Export reads all that is in the file of a store that no process serves. It changes nothing.
type Export struct{ file *opened }

var _ storage.Exporter = (*Export)(nil)

// OpenExport opens a file and examines it as Verify does. Until the caller closes it, no process can
// serve the file. Errors: those of OpenRecords.
func OpenExport(ctx context.Context, path string) (*Export, error) {
	records, err := OpenRecords(ctx, path)
	if err != nil {
		return nil, err
	}
	return &Export{records.file}, nil
}

// Close closes the file.
func (e *Export) Close() error { return e.file.close() }

// Origin implements storage.Exporter.
func (e *Export) Origin(ctx context.Context) (storage.Origin, error) {
	origin := storage.Origin{Epoch: e.file.header.GetEpoch(), Schema: e.file.header.GetSchema(), Position: e.file.position}
	err := guard(func() error {
		return e.file.database.View(func(tx *bolt.Tx) (err error) {
			if origin.Pruned, err = revisionMark(tx, namePruned); err != nil {
				return err
			}
			for _, bucket := range []string{
				bucketPolicy, bucketWorkspaces, bucketMembers, bucketKeys, bucketUsage, bucketAudit, bucketRefusals, bucketHeads,
			} {
				if content := tx.Bucket([]byte(bucket)); content != nil {
					origin.Parts += int64(content.Stats().KeyN)
				}
			}
			return nil
		})
	})
	return origin, errors.Join(err, ctx.Err())
}

// Export implements storage.Exporter.
func (e *Export) Export(ctx context.Context, visit func(storage.Portable) error) error {
	x := &exporting{ctx: ctx, visit: visit}
	return guard(func() error {
		return e.file.database.View(func(tx *bolt.Tx) error {
			x.tx = tx
			var err error
			if x.pruned, err = revisionMark(tx, namePruned); err != nil {
				return err
			}
			for _, part := range []struct {
				bucket string
				visit  func(name string, value []byte) error
			}{
				{bucketPolicy, x.record(storage.PortablePolicy)},
				{bucketWorkspaces, x.record(storage.PortableWorkspace)},
				{bucketMembers, x.record(storage.PortableMember)},
				{bucketKeys, x.key},
				{bucketAudit, x.event},
				{bucketRefusals, x.refusal},
				{bucketHeads, x.head},
			} {
				if err := x.each(part.bucket, part.visit); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	})
}

// exporting is one Export.
type exporting struct {
	pruned  int64           // Origin.Pruned
	ctx     context.Context //nolint:containedctx // that of one call
	tx      *bolt.Tx
	visit   func(storage.Portable) error
	visited int
}

// each visits the values of a bucket, if the file has the bucket.
func (x *exporting) each(bucket string, visit func(name string, value []byte) error) error {
	content := x.tx.Bucket([]byte(bucket))
	if content == nil {
		return nil
	}
	return content.ForEach(func(name, value []byte) error {
		if x.visited++; x.visited%contextInterval == 0 && x.ctx.Err() != nil {
			return x.ctx.Err()
		}
		return visit(string(name), value)
	})
}

// record returns what visits the records of a kind.
func (x *exporting) record(kind storage.PortableKind) func(name string, value []byte) error {
	bucket := bucketMembers
	if kind == storage.PortablePolicy {
		bucket = bucketPolicy
	} else if kind == storage.PortableWorkspace {
		bucket = bucketWorkspaces
	}
	return func(name string, value []byte) error {
		payload, err := storage.Unframe(kind.String(), frameName(bucket, name), value)
		if err != nil {
			return err
		}
		part := storage.Portable{Kind: kind, Payload: payload}
		switch kind { //nolint:exhaustive // the policy has no name
		case storage.PortableWorkspace:
			part.WorkspaceID = name
		case storage.PortableMember:
			part.WorkspaceID, part.Name, _ = strings.Cut(name, "\x00")
		}
		return x.visit(part)
	}
}

// key visits a key and its last use.
func (x *exporting) key(name string, value []byte) error {
	_, keyID, workspaceID, err := parseKeyName([]byte(name))
	if err != nil {
		return &storage.DamagedError{Kind: "key", Problem: err.Error()}
	}
	payload, err := storage.Unframe("key", frameName(bucketKeys, name), value)
	if err != nil {
		return err
	}
	if err := x.visit(storage.Portable{Kind: storage.PortableKey, WorkspaceID: workspaceID, Name: keyID, Payload: payload}); err != nil {
		return err
	}
	return loadUsage(x.tx, []byte(name), func(item storage.Item) error {
		return x.visit(storage.Portable{Kind: storage.PortableUsage, Name: keyID, Usage: *item.Usage})
	})
}

func (x *exporting) event(name string, value []byte) error {
	event, _, err := decodeAudit(name, value)
	if err != nil {
		return err
	}
	revision, err := parseNumber([]byte(name))
	if err != nil {
		return &storage.DamagedError{Kind: "audit event", Name: name, Problem: err.Error()}
	}
	return x.visit(storage.Portable{
		Old:  revision <= x.pruned,
		Kind: storage.PortableEvent, WorkspaceID: event.Record.GetWorkspaceId(), Sequence: event.Record.GetSequence(),
		Time: timeOfEvent(event.Record), Payload: event.Encoded,
	})
}

// timeOfEvent returns the time of an event, the zero Time if it has none.
func timeOfEvent(event *storagev1.AuditRecord) time.Time {
	if event.GetTime() == nil {
		return time.Time{}
	}
	return event.GetTime().AsTime()
}

func (x *exporting) refusal(name string, value []byte) error {
	payload, err := storage.Unframe("refusal", frameName(bucketRefusals, name), value)
	if err != nil {
		return err
	}
	sequence, err := parseNumber([]byte(name))
	if err != nil {
		return &storage.DamagedError{Kind: "refusal", Problem: err.Error()}
	}
	if err := proto.Unmarshal(payload, &storagev1.RefusalRecord{}); err != nil {
		return &storage.DamagedError{Kind: "refusal", Name: fmt.Sprint(sequence), Problem: "not a record"}
	}
	return x.visit(storage.Portable{Kind: storage.PortableRefusal, Sequence: sequence, Payload: payload})
}

func (x *exporting) head(name string, value []byte) error {
	head, err := decodeHead(name, value, &storagev1.HeadRecord{})
	if err != nil {
		return err
	}
	head.Fence = 0
	return x.visit(storage.Portable{Kind: storage.PortableHead, WorkspaceID: parseHeadName(name), Head: head})
}
