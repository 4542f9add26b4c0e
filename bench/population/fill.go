package population

import (
	"context"
	"crypto/sha256"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/token"
)

// writers is how many workspaces are filled at a time. A store commits the changes of many
// workspaces in one transaction, and changes of one workspace one after the other.
const writers = 512

// Fill makes a store with the first keys of the population in a new file. Progress, unless nil, is
// called now and then with the number of keys that are stored.
//
// It makes the changes that the verbs of keysvc would make, without the checks: an event for each
// member and key. It is for stores that are measured, so a failure leaves a part of the store.
func Fill(path string, keys int, progress func(stored int)) error {
	store, err := boltstore.Open(path, boltstore.Config{Create: boltstore.CreateIfAbsent})
	if err != nil {
		return err
	}
	if err := FillStore(store, keys, 1, progress); err != nil {
		_ = store.Close() // the first error says more
		return err
	}
	return store.Close()
}

// FillStore is Fill for an empty store that is open. together is how many keys one change creates, 1 to
// 30: more of them fill a store faster, with fewer events than the verbs would make.
func FillStore(store storage.Store, keys, together int, progress func(stored int)) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	next := make(chan int)
	var stored atomic.Int64
	var working sync.WaitGroup
	for range writers {
		working.Go(func() {
			for first := range next {
				count := min(KeysPerWorkspace, keys-first)
				if err := fillWorkspace(ctx, store, first, count, together); err != nil {
					cancel(err)
					return
				}
				if now := stored.Add(int64(count)); progress != nil && now/100_000 != (now-int64(count))/100_000 {
					progress(int(now))
				}
			}
		})
	}
feeding:
	for first := 0; first < keys; first += KeysPerWorkspace {
		select {
		case next <- first:
		case <-ctx.Done():
			break feeding
		}
	}
	close(next)
	working.Wait()
	return context.Cause(ctx)
}

// workspace fills one workspace, one event after the other.
type workspace struct {
	store storage.Store
	id    string
	head  storage.Head
	now   time.Time
}

func fillWorkspace(ctx context.Context, store storage.Store, first, count, together int) error {
	w := &workspace{store: store, id: workspaceID(first / KeysPerWorkspace), now: time.Now().UTC()}
	var waiting []Key
	for number := first; number < first+count; number++ {
		key, err := At(number)
		if err != nil {
			return err
		}
		if number%KeysPerMember == 0 {
			if err := w.putMember(ctx, key.MemberID); err != nil {
				return err
			}
		}
		if waiting = append(waiting, key); len(waiting) < together && number+1 < first+count {
			continue
		}
		if err := w.createKeys(ctx, waiting); err != nil {
			return err
		}
		waiting = waiting[:0]
	}
	return nil
}

// putMember adds a member, and the workspace with its first member.
func (w *workspace) putMember(ctx context.Context, memberID string) error {
	change := &storage.Change{
		Kind: storagev1.FeedKind_FEED_KIND_MEMBER, Subject: memberID,
		PutMembers: []*storagev1.MemberRecord{{
			WorkspaceId: w.id, MemberId: memberID, Incarnation: incarnationOf(memberID), WorkspaceIncarnation: incarnationOf(w.id),
			Role: Role, State: storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE,
			CreateTime: timestamppb.New(w.now), UpdateTime: timestamppb.New(w.now), StateTime: timestamppb.New(w.now),
		}},
	}
	if w.head.Sequence == 0 {
		change.PutWorkspace = &storagev1.WorkspaceRecord{WorkspaceId: w.id, Incarnation: incarnationOf(w.id), CreateTime: timestamppb.New(w.now)}
	}
	return w.commit(ctx, storagev1.AuditAction_AUDIT_ACTION_MEMBER_PUT, memberID, "", change)
}

// createKeys adds keys in one change.
func (w *workspace) createKeys(ctx context.Context, keys []Key) error {
	change := &storage.Change{Kind: storagev1.FeedKind_FEED_KIND_KEY}
	for _, key := range keys {
		record, err := w.record(key)
		if err != nil {
			return err
		}
		change.AbsentKeyIDs = append(change.AbsentKeyIDs, record.GetKeyId())
		change.PutKeys = append(change.PutKeys, record)
	}
	if len(keys) > 1 {
		return w.commit(ctx, storagev1.AuditAction_AUDIT_ACTION_KEYS_IMPORTED, "", "", change)
	}
	change.Subject = keys[0].Token.ID()
	return w.commit(ctx, storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED, keys[0].MemberID, change.Subject, change)
}

// record returns the record of a key. One in rotation has both of its secrets.
func (w *workspace) record(key Key) (*storagev1.KeyRecord, error) {
	record := &storagev1.KeyRecord{
		KeyId: key.Token.ID(), WorkspaceId: w.id, MemberId: key.MemberID,
		WorkspaceIncarnation: incarnationOf(w.id), MemberIncarnation: incarnationOf(key.MemberID),
		Sequence: w.head.Sequence + 1, Name: fmt.Sprintf("Key %d of the bench", key.Number),
		Scopes: []string{"folders:read", Scope, "signatures:write"}, AllowedCidrs: key.Networks,
		CreateTime: timestamppb.New(w.now), CreatedBy: audit.ChangedBy(actor),
	}
	for _, each := range []token.Token{key.Token, key.Overlapping} {
		if each.IsZero() {
			continue
		}
		hash, err := each.Hash(token.SchemeVerifier)
		if err != nil {
			return nil, err
		}
		secret := &storagev1.SecretRecord{
			Scheme: uint32(hash.Scheme), Hash: hash.Sum[:], CreateTime: timestamppb.New(w.now), ExpireTime: timestamppb.New(w.now.AddDate(1, 0, 0)),
		}
		if len(record.GetSecrets()) == 1 { // longer than a server allows, so that a store can be kept
			secret.OverlapEndTime = timestamppb.New(w.now.AddDate(1, 0, 0))
		}
		record.Secrets = append(record.Secrets, secret)
	}
	return record, nil
}

func (w *workspace) commit(ctx context.Context, action storagev1.AuditAction, memberID, keyID string, change *storage.Change) error {
	event := audit.NewEvent(actor, action, w.now, w.id)
	event.MemberId, event.KeyId = memberID, keyID
	change.Event = event
	change.Link(w.id, w.head)
	if _, err := w.store.Commit(ctx, change); err != nil {
		return err
	}
	encoded, err := storage.Encode(event) // with the records that the commit listed
	if err != nil {
		return err
	}
	w.head = w.head.After(encoded)
	return nil
}

// actor makes the changes.
var actor = audit.Actor{Caller: "bench", Credential: "bench", Workspaces: access.All()}

// incarnationOf returns the incarnation of a workspace or member, which has the form of those that
// keysvc draws.
func incarnationOf(id string) string {
	incarnation, _ := token.NewID(mathrand.NewChaCha8(sha256.Sum256([]byte(seed + id)))) // this source never fails
	return incarnation
}
