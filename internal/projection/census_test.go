package projection

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// compareCensus counts the keys of the maps one by one.
func (d *difference) compareCensus() {
	for d.recountNext() {
	}
	now := diffTime.Add(time.Duration(d.random.IntN(2000)-1000) * time.Hour)
	want := Census{}
	for id, of := range d.maps.workspaces {
		if id != "" {
			want.Workspaces++
		}
		want.Members += int64(len(of.members))
	}
	for _, entry := range d.maps.keys {
		count := func() *int64 {
			of, key := entry.workspace, &entry.key
			hours := int(floor(key.ExpireTime, int64(time.Hour)) - floor(now.UnixNano(), int64(time.Hour)))
			switch {
			case entry.damaged != nil:
				return &want.Damaged
			case key.Revoked, of.current != nil && (of.current.Removed || of.current.Incarnation != key.WorkspaceIncarnation):
				return &want.Revoked
			}
			member := of.members[key.Member]
			if of.current != nil && (member == nil || member.damaged == nil && (member.Removed || member.Incarnation != key.MemberIncarnation)) {
				return &want.Revoked
			}
			if hours < 0 {
				return &want.Expired
			}
			if key.Held && of.current != nil && member.damaged == nil {
				return &want.Held
			}
			if of.current == nil || member.damaged != nil || !member.Active {
				return &want.Suspended
			}
			if hours <= 7*24 {
				want.Within7Days++
			}
			if hours <= 30*24 {
				want.Within30Days++
			}
			return &want.Active
		}()
		*count++
	}
	if got := d.Census(now); got != want {
		d.t.Errorf("at %s: got %+v, want %+v", now, got, want)
	}
}

// TestCensusFollowsTimeAndMembers moves one key through the states.
func TestCensusFollowsTimeAndMembers(t *testing.T) {
	d := newDifference(t, 1)
	expire := diffTime.Truncate(time.Hour).Add(8 * 24 * time.Hour)
	member := func(state storagev1.MemberRecordState) storage.Item {
		return storage.Item{Member: &storagev1.MemberRecord{WorkspaceId: "w", MemberId: "m", Incarnation: "i", WorkspaceIncarnation: "wi", State: state}}
	}
	show := func(items ...storage.Item) {
		d.revision++
		d.show(t.Context(), &storage.Committed{
			Revision: d.revision, Feed: &storagev1.FeedRecord{}, Head: storage.WorkspaceHead{WorkspaceID: "w"}, Put: items,
		})
	}
	expect := func(what string, now time.Time, want Census) {
		t.Helper()
		got := d.Census(now)
		got.Members, got.Workspaces = 0, 0
		if got != want {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	key := &storagev1.KeyRecord{
		KeyId: "Key0000000000001", WorkspaceId: "w", MemberId: "m", MemberIncarnation: "i", WorkspaceIncarnation: "wi",
		Secrets: []*storagev1.SecretRecord{{Scheme: 3, Hash: make([]byte, 32), ExpireTime: timestamppb.New(expire)}},
	}
	show(storage.Item{Workspace: &storagev1.WorkspaceRecord{WorkspaceId: "w", Incarnation: "wi"}}, member(storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE), storage.Item{Key: key})
	expect("new", diffTime, Census{Active: 1, Within30Days: 1})
	expect("a day later", diffTime.Add(25*time.Hour), Census{Active: 1, Within7Days: 1, Within30Days: 1})
	expect("in its last hour", expire.Add(-time.Nanosecond), Census{Active: 1, Within7Days: 1, Within30Days: 1})
	expect("an hour after its end", expire.Add(time.Hour), Census{Expired: 1})

	show(member(storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED))
	expect("before it is counted anew", diffTime, Census{Active: 1, Within30Days: 1})
	for d.recountNext() {
	}
	expect("removed", diffTime, Census{Revoked: 1})

	d.revision++
	d.show(t.Context(), &storage.Committed{
		Revision: d.revision, Feed: &storagev1.FeedRecord{}, Head: storage.WorkspaceHead{WorkspaceID: "w"}, DeletedKeys: []*storagev1.KeyRecord{key},
	})
	expect("purged", diffTime, Census{})
	if days := len(d.state.census.days); days != 0 {
		t.Errorf("%d days are kept without keys", days)
	}
}
