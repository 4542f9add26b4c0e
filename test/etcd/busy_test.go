package etcd_test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/race"
)

var (
	busyCalls    = flag.Int("busy.calls", race.Rounds(300, 150), "calls of the test with many callers of one workspace")
	busyManagers = flag.Int("busy.managers", 3, "managers of that test")
	busyCallers  = flag.Int("busy.callers", 24, "callers of that test")
)

// TestNoCallFailsWhenManyChangeOneWorkspace: several processes change one workspace at the same time, with
// many callers and keyclient's usual deadline. Every change is a conflict for those that are under way in
// the other processes, and still no call fails.
func TestNoCallFailsWhenManyChangeOneWorkspace(t *testing.T) {
	const deadline = 10 * time.Second // keyclient's
	prefix := newPrefix()
	worlds := make([]*keystest.World, *busyManagers)
	for number := range worlds {
		worlds[number] = keystest.NewWorld(t, backend{prefix}, nil)
	}
	worlds[0].Put("acme", "ann", "owner", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	key := worlds[0].Create("acme", "ann", "signatures:read")
	var (
		mutex   sync.Mutex
		failed  = make(map[string]int)
		took    []time.Duration
		callers sync.WaitGroup
	)
	begun := time.Now()
	for caller := range *busyCallers {
		w := worlds[caller%len(worlds)]
		callers.Go(func() {
			for number := range *busyCalls / *busyCallers {
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				err := change(ctx, w, key.GetKey().GetKeyId(), caller, number)
				cancel()
				mutex.Lock()
				took = append(took, time.Since(start))
				if err != nil {
					failed[err.Error()]++
				}
				mutex.Unlock()
			}
		})
	}
	callers.Wait()
	slices.Sort(took)
	t.Logf("%d managers, %d callers: %.0f changes a second; p50 %s, p99 %s, longest %s", len(worlds), *busyCallers,
		float64(len(took))/time.Since(begun).Seconds(), took[len(took)/2].Round(time.Millisecond),
		took[len(took)*99/100].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	for _, message := range slices.SortedFunc(maps.Keys(failed), func(a, b string) int { return cmp.Compare(failed[b], failed[a]) }) {
		t.Errorf("%d calls failed: %s", failed[message], message)
	}
}

// change makes one of several changes of the workspace.
func change(ctx context.Context, w *keystest.World, keyID string, caller, number int) (err error) {
	switch number % 5 {
	case 0:
		_, err = w.PutMember(ctx, keystest.Actor, putMember("acme", fmt.Sprint("member", caller, "-", number)))
	case 1:
		_, err = w.CreateKey(ctx, keystest.Actor, &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: "ann", Name: fmt.Sprint("key", caller, "-", number), Scopes: []string{"signatures:read"},
		})
	case 2:
		request := putMember("acme", fmt.Sprint("member", caller, "-", number-2))
		request.Role = "owner"
		_, err = w.PutMember(ctx, keystest.Actor, request)
	case 3:
		_, err = w.PutMember(ctx, keystest.Actor, putMember("acme", fmt.Sprint("member", caller, "-", number-3)))
	case 4: // one key for all, without an etag
		_, err = w.UpdateKey(ctx, keystest.Actor, &keysvcv1.UpdateKeyRequest{
			Key: &keysvcv1.Key{WorkspaceId: "acme", KeyId: keyID, Name: fmt.Sprint("key of ", caller, "-", number)}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
		})
	}
	return err
}
