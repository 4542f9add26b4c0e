package connection

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
)

func TestSourcesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		crowd := source{address: netip.MustParseAddr("192.0.2.1")}
		few := source{address: netip.MustParseAddr("192.0.2.2")}
		turns := newTurns()
		turns.free = 1
		turns.begin(crowd) // the turn that the others wait for
		var order []string
		wait := func(name string, from source) {
			go func() {
				turns.begin(from)
				order = append(order, name)
				turns.end()
			}()
			synctest.Wait()
		}
		wait("crowd 1", crowd)
		wait("crowd 2", crowd)
		wait("crowd 3", crowd)
		wait("few 1", few)
		turns.end()
		synctest.Wait()
		if want := []string{"crowd 1", "few 1", "crowd 2", "crowd 3"}; !slices.Equal(order, want) {
			t.Errorf("got %q, want %q", order, want)
		}
		if turns.free != 1 || len(turns.waiting) != 0 || len(turns.next) != 0 {
			t.Errorf("left: %d free, %d and %d waiting", turns.free, len(turns.waiting), len(turns.next))
		}
	})
}
