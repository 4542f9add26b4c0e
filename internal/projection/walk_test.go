package projection

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/storage"
)

const (
	// steady is how many keys and members of the big workspace, and how many other workspaces,
	// stay untouched during a walk.
	steady = 8 * stride
	// restless is how many keys and members are removed and added during a walk.
	restless = 2 * stride
)

var walkTime = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// crowd is a projection that changes whenever a walk gives way.
type crowd struct {
	*Projection

	random  *rand.Rand
	gaps    int
	held    int
	added   int64
	present []string
}

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := &crowd{Projection: New(nil, nil), random: rand.New(rand.NewPCG(seed, 0))}
	c.put(t, storage.Item{Policy: &storagev1.PolicyRecord{Document: policy.Default().Document()}})
	c.put(t, storage.Item{Workspace: &storagev1.WorkspaceRecord{WorkspaceId: "big", Incarnation: "1", CreateTime: timestamppb.New(walkTime)}})
	c.put(t, walkMember("ann", storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE))
	for index := range steady {
		// Every third key is dead, for a sweep to find. No removed member has a key.
		revoked := index%3 == 0
		c.put(t, walkKey(fmt.Sprintf("steady%010d", index), int64(10*index), revoked))
		c.put(t, walkMember(fmt.Sprintf("gone%d", index), storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED))
		c.put(t, storage.Item{Head: &storage.WorkspaceHead{WorkspaceID: fmt.Sprintf("other%d", index)}})
	}
	for range restless {
		c.add(t)
	}
	c.gaveWay = func() {
		c.gaps++
		if !c.mutex.TryLock() {
			c.held++
			return
		}
		defer c.mutex.Unlock()
		for range 10 {
			c.remove(t)
			c.add(t)
		}
		// One of the untouched keys is replaced by an equal one.
		index := c.random.IntN(steady)
		c.put(t, walkKey(fmt.Sprintf("steady%010d", index), int64(10*index), index%3 == 0))
	}
	return c
}

func (c *crowd) put(t *testing.T, item storage.Item) {
	t.Helper()
	if err := c.state.add(item); err != nil {
		t.Fatal(err)
	}
}

// add adds a key and a member that no walk counts: the key expired a short time ago, and the
// member is active.
func (c *crowd) add(t *testing.T) {
	t.Helper()
	c.added++
	id := fmt.Sprintf("restless%08d", c.added)
	item := walkKey(id, c.random.Int64N(10*steady), false)
	item.Key.Secrets[0].ExpireTime = timestamppb.New(walkTime)
	c.put(t, item)
	c.put(t, walkMember(id, storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE))
	c.present = append(c.present, id)
}

// remove removes what add added.
func (c *crowd) remove(t *testing.T) {
	t.Helper()
	index := c.random.IntN(len(c.present))
	id := c.present[index]
	c.present = slices.Delete(c.present, index, index+1)
	c.state.removeKey(id)
	c.state.removeMember(c.state.workspace("big"), id)
}

func walkKey(id string, sequence int64, revoked bool) storage.Item {
	key := &storagev1.KeyRecord{
		KeyId: id, WorkspaceId: "big", MemberId: "ann", WorkspaceIncarnation: "1", MemberIncarnation: "1", Sequence: sequence,
		Scopes: []string{"emails:read", "signatures:read"}, CreateTime: timestamppb.New(walkTime.AddDate(-1, 0, 0)),
		Secrets: []*storagev1.SecretRecord{{Scheme: 1, Hash: make([]byte, 32), ExpireTime: timestamppb.New(walkTime.AddDate(1, 0, 0))}},
	}
	if revoked {
		key.RevokeTime = timestamppb.New(walkTime.AddDate(0, -6, 0))
	}
	return storage.Item{Key: key}
}

func walkMember(id string, state storagev1.MemberRecordState) storage.Item {
	return storage.Item{Member: &storagev1.MemberRecord{
		WorkspaceId: "big", MemberId: id, Incarnation: "1", WorkspaceIncarnation: "1", Role: "admin", State: state,
		UpdateTime: timestamppb.New(walkTime.AddDate(0, -6, 0)),
	}}
}

// TestWalksGiveWayAfterEachStride also checks that a record that nothing touches is counted once,
// whatever other records come and go.
func TestWalksGiveWayAfterEachStride(t *testing.T) {
	live := steady - (steady+2)/3
	before := walkTime.AddDate(0, -1, 0)
	for name, test := range map[string]struct {
		visits int
		walk   func(t *testing.T, c *crowd)
	}{
		"Effect": {steady, func(t *testing.T, c *crowd) {
			narrowed, widened := c.Effect(t.Context(), map[string]decide.Scopes{"admin": decide.NewScopes("emails:read")}, walkTime)
			if narrowed != int64(live) || widened != 0 {
				t.Errorf("%d keys narrowed and %d widened, want %d and 0", narrowed, widened, live)
			}
		}},
		"LiveKeys": {steady, func(t *testing.T, c *crowd) {
			if got := c.LiveKeys("big", walkTime, 1<<30); got != live {
				t.Errorf("%d live keys, want %d", got, live)
			}
		}},
		"HasRoom": {steady, func(t *testing.T, c *crowd) {
			if !c.HasRoom("big", walkTime, live+1) || c.HasRoom("big", walkTime, live) {
				t.Errorf("room for more or fewer than %d live keys", live)
			}
		}},
		"Workspaces": {steady, func(t *testing.T, c *crowd) {
			ids := c.Workspaces()
			slices.Sort(ids)
			if len(slices.Compact(ids)) != steady+1 {
				t.Errorf("%d workspaces, want %d", len(ids), steady+1)
			}
		}},
		"Ending": {steady, func(t *testing.T, c *crowd) {
			query := EndingQuery{Now: walkTime.AddDate(1, 0, -1), Leads: measuredLeads, NotEndedBy: walkTime.AddDate(0, 6, 0), Limit: 10}
			first, count := c.Ending(t.Context(), query)
			if count != live || len(first) != 10 || !slices.IsSortedFunc(first, func(a, b EndingKey) int { return a.Compare(b.EndingPlace) }) {
				t.Errorf("%d keys end, want %d; first come %v", count, live, first)
			}
		}},
		"CountEnding": {steady, func(t *testing.T, c *crowd) {
			counts := c.CountEnding(t.Context(), walkTime.AddDate(1, 0, -5), measuredLeads, walkTime)
			if counts[0] != (EndingCounts{}) || counts[1] != (EndingCounts{Unused: int64(live)}) || counts[2] != counts[1] {
				t.Errorf("got %+v, want %d unused ones", counts, live)
			}
		}},
		"Dead keys": {steady, func(t *testing.T, c *crowd) {
			dead := c.Dead("big", before, 1<<30)
			if len(dead.KeyIDs) != steady-live || len(dead.MemberIDs) != 0 || !slices.IsSorted(dead.KeyIDs) {
				t.Errorf("%d dead keys and %d members, want %d and 0", len(dead.KeyIDs), len(dead.MemberIDs), steady-live)
			}
		}},
		"no dead keys, dead members": {3 * steady, func(t *testing.T, c *crowd) {
			for index := range steady {
				c.put(t, walkKey(fmt.Sprintf("steady%010d", index), int64(10*index), false))
			}
			gaveWay := c.gaveWay
			c.gaveWay = func() { // the change makes some of the untouched keys what they were
				gaveWay()
				for index := range steady {
					c.put(t, walkKey(fmt.Sprintf("steady%010d", index), int64(10*index), false))
				}
			}
			dead := c.Dead("big", before, 1<<30)
			if len(dead.KeyIDs) != 0 || len(dead.MemberIDs) != steady {
				t.Errorf("%d dead keys and %d members, want 0 and %d", len(dead.KeyIDs), len(dead.MemberIDs), steady)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCrowd(t)
			test.walk(t, c)
			if c.gaps < test.visits/stride-1 {
				t.Errorf("gave way %d times in %d records", c.gaps, test.visits)
			}
			if c.held > 0 {
				t.Errorf("the lock was held in %d of %d gaps", c.held, c.gaps)
			}
		})
	}
}
