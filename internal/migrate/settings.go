package migrate

import (
	"crypto/sha256"
	"iter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// withoutSettings leaves out the settings, for a target that keeps none. Some event of the policy's chain
// put them, so one more event deletes them: otherwise they would count as lost. The event is the newest of
// the store and depends on the source alone, so that each run adds the same one.
func withoutSettings(parts iter.Seq2[storage.Portable, error], at time.Time) iter.Seq2[storage.Portable, error] {
	return func(yield func(storage.Portable, error) bool) {
		var before []byte // the hash of the settings
		var head storage.Head
		added := false
		for part, err := range parts {
			switch {
			case err != nil:
			case part.Kind == storage.PortableSettings:
				hash := sha256.Sum256(part.Payload)
				before = hash[:]
				continue
			case before == nil:
			case part.Kind == storage.PortableEvent && part.WorkspaceID == "":
				head = storage.Head{Sequence: part.Sequence - 1}.After(part.Payload)
			case part.Kind > storage.PortableEvent && !added:
				added = true
				event, encoded, err := settingsDeleted(head, before, at)
				if !yield(event, err) || err != nil {
					return
				}
				head = head.After(encoded)
			}
			if err == nil && added && part.Kind == storage.PortableHead && part.WorkspaceID == "" {
				part.Head = head
			}
			if !yield(part, err) || err != nil {
				return
			}
		}
	}
}

// settingsDeleted returns the event that deletes the settings, at the policy's head.
func settingsDeleted(head storage.Head, before []byte, at time.Time) (storage.Portable, []byte, error) {
	event := &storagev1.AuditRecord{
		Time: timestamppb.New(at), Action: storagev1.AuditAction_AUDIT_ACTION_SETTINGS_CHANGED, Caller: "keysvc",
		Details: map[string]string{"migrated": "to a store that keeps no settings"},
		Changes: []*storagev1.RecordChange{{Kind: storagev1.RecordKind_RECORD_KIND_SETTINGS, Before: before}},
	}
	head.Link(event)
	encoded, err := storage.Encode(event)
	return storage.Portable{Kind: storage.PortableEvent, Sequence: event.GetSequence(), Time: at, Payload: encoded}, encoded, err
}
