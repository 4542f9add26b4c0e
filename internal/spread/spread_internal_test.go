package spread

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
)

// fakeConn is a connection to a server.
type fakeConn struct {
	balancer.SubConn
	name string
}

// newPicker returns a picker of servers, in their order, and what is known of them.
func newPicker(names ...string) (*picker, []*server) {
	p := &picker{}
	for _, name := range names {
		p.servers = append(p.servers, newServer(&fakeConn{name: name}))
	}
	return p, p.servers
}

// pick returns the name of the server that a call is sent to.
func pick(t *testing.T, p *picker, ctx context.Context) string { //nolint:revive // the context is what is tested
	t.Helper()
	result, err := p.Pick(balancer.PickInfo{Ctx: ctx})
	if err != nil {
		t.Fatal(err)
	}
	return result.SubConn.(*fakeConn).name
}

func TestServersTakeTurns(t *testing.T) {
	t.Parallel()
	p, _ := newPicker("a", "b", "c")
	counts := make(map[string]int)
	for range 30 {
		counts[pick(t, p, t.Context())]++
	}
	if counts["a"] != 10 || counts["b"] != 10 || counts["c"] != 10 {
		t.Errorf("30 calls went to %v", counts)
	}
}

func TestRepeatedCallGoesElsewhere(t *testing.T) {
	t.Parallel()
	p, _ := newPicker("a", "b", "c")
	ctx, route := Follow(t.Context())
	seen := make(map[string]bool)
	for range 3 {
		seen[pick(t, p, ctx)] = true
	}
	if len(seen) != 3 || !route.hasOthers() {
		t.Errorf("three attempts went to %v", seen)
	}
	// There is no other one left: any will do.
	pick(t, p, ctx)
	// A second attempt beside the first does not go where the first went.
	first, route := Follow(t.Context())
	went := pick(t, p, first)
	for range 6 {
		second, own := Follow(t.Context())
		own.except = route
		if got := pick(t, p, second); got == went {
			t.Errorf("both attempts went to %s", got)
		}
	}
}

func TestSilentServerIsLeftAloneAndTriedNowAndThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, servers := newPicker("a", "b")
		silent := servers[0]
		silent.accuse(silent.answers.Load())
		// tries returns how many of the calls, one each 100 ms, went to the silent server.
		tries := func(length time.Duration, hedged bool) (count int) {
			for range length / (100 * time.Millisecond) {
				ctx, route := Follow(t.Context())
				route.hedged = hedged
				if pick(t, p, ctx) == "a" {
					count++
				}
				time.Sleep(100 * time.Millisecond)
			}
			return count
		}
		if got := tries(900*time.Millisecond, true); got != 0 {
			t.Errorf("%d calls went to it in the first second", got)
		}
		// After 1, 3, 7, 15 and 23 s: the time doubles up to 8 s.
		if got := tries(24*time.Second, true); got != 5 {
			t.Errorf("%d calls tried it in 24 s, want 5", got)
		}
		// Nobody would be asked beside a call that is not hedged, so it never tries.
		if got := tries(20*time.Second, false); got != 0 {
			t.Errorf("%d calls that wait for it alone went to it", got)
		}
		// Something came back.
		result, err := p.Pick(balancer.PickInfo{Ctx: hedgedContext(t)})
		if err != nil || result.Done == nil {
			t.Fatalf("%+v, %v", result, err)
		}
		silent.done(balancer.DoneInfo{})
		if !silent.suspect.Load() {
			t.Error("a call without an answer clears it")
		}
		silent.done(balancer.DoneInfo{BytesReceived: true})
		if got := tries(2*time.Second, false); got != 10 {
			t.Errorf("%d of 20 calls went to it when it had answered, want 10", got)
		}
	})
}

func hedgedContext(t *testing.T) context.Context {
	t.Helper()
	ctx, route := Follow(t.Context())
	route.hedged = true
	return ctx
}

func TestServersAreAskedIfAllAreSilent(t *testing.T) {
	t.Parallel()
	p, servers := newPicker("a", "b")
	for _, each := range servers {
		each.accuse(each.answers.Load())
	}
	ctx, route := Follow(t.Context())
	pick(t, p, ctx)
	if !route.Silent() {
		t.Error("the call does not know that its server is silent")
	}
}

// A server that has answered meanwhile is not accused of silence.
func TestAnswerRefutesAnAccusation(t *testing.T) {
	t.Parallel()
	p, servers := newPicker("a")
	ctx, route := Follow(t.Context())
	pick(t, p, ctx)
	servers[0].answered()
	route.accuse()
	if servers[0].suspect.Load() {
		t.Error("it is suspect")
	}
	ctx, route = Follow(t.Context())
	pick(t, p, ctx)
	route.accuse()
	if !servers[0].suspect.Load() {
		t.Error("it is not suspect")
	}
}

// What is known of a server stays known as long as it is connected.
func TestNewPickerKnowsWhoIsSilent(t *testing.T) {
	t.Parallel()
	makers := &pickers{servers: make(map[balancer.SubConn]*server)}
	a, b := &fakeConn{name: "a"}, &fakeConn{name: "b"}
	build := func(conns ...balancer.SubConn) balancer.Picker {
		info := base.PickerBuildInfo{ReadySCs: make(map[balancer.SubConn]base.SubConnInfo)}
		for _, conn := range conns {
			info.ReadySCs[conn] = base.SubConnInfo{}
		}
		return makers.Build(info)
	}
	build(a)
	makers.servers[a].accuse(0)
	if build(a, b); !makers.servers[a].suspect.Load() || makers.servers[b].suspect.Load() {
		t.Error("another server was connected, and this one is no longer suspect")
	}
	if _, err := build().Pick(balancer.PickInfo{Ctx: t.Context()}); err != balancer.ErrNoSubConnAvailable {
		t.Errorf("without a server: %v", err)
	}
	if build(a); makers.servers[a].suspect.Load() {
		t.Error("it was connected anew, and is suspect")
	}
}
