package spread

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const hedgeDelay = 100 * time.Millisecond

// behaviour is what a server does with a call: it waits, and returns its name or the error.
type behaviour struct {
	wait time.Duration
	err  error
}

// hedged are servers behind an interceptor.
type hedged struct {
	picker    *picker
	does      map[string]behaviour
	intercept grpc.UnaryClientInterceptor
	sent      atomic.Int64
}

func newHedged(does map[string]behaviour, names ...string) *hedged {
	h := &hedged{does: does}
	h.picker, _ = newPicker(names...)
	h.intercept = Hedge(func(string) time.Duration { return hedgeDelay })
	return h
}

// call makes a call whose first server is the one with the name.
func (h *hedged) call(ctx context.Context, first string, options ...grpc.CallOption) (string, error) {
	for index, each := range h.picker.servers {
		if each.conn.(*fakeConn).name == first {
			h.picker.next.Store(uint64(index) + uint64(len(h.picker.servers)) - 1)
		}
	}
	answer := &wrapperspb.StringValue{}
	err := h.intercept(ctx, "/s/m", &wrapperspb.StringValue{}, answer, nil, h.invoke, options...)
	return answer.GetValue(), err
}

// invoke is grpc.UnaryInvoker.
func (h *hedged) invoke(ctx context.Context, _ string, _, reply any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
	h.sent.Add(1)
	picked, err := h.picker.Pick(balancer.PickInfo{Ctx: ctx})
	if err != nil {
		return err
	}
	name := picked.SubConn.(*fakeConn).name
	does := h.does[name]
	select {
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-time.After(does.wait):
	}
	if picked.Done != nil {
		picked.Done(balancer.DoneInfo{BytesReceived: true})
	}
	if does.err != nil {
		return does.err
	}
	reply.(*wrapperspb.StringValue).Value = name
	return nil
}

// suspects returns the servers that are suspect.
func (h *hedged) suspects() (names []string) {
	for _, each := range h.picker.servers {
		if each.suspect.Load() {
			names = append(names, each.conn.(*fakeConn).name)
		}
	}
	return names
}

var errRefused = status.Error(codes.PermissionDenied, "no")

func TestCallIsHedgedIfItsServerIsSilent(t *testing.T) {
	t.Parallel()
	const silent = time.Hour
	for name, test := range map[string]struct {
		a, b behaviour
		// want is the answer of a call whose first server is a, took how long it takes, and sent how many are made of it.
		want string
		err  error
		took time.Duration
		sent int64
		// accused is set if a is suspect afterwards.
		accused bool
	}{
		"an answer in time":         {a: behaviour{wait: hedgeDelay / 2}, want: "a", took: hedgeDelay / 2, sent: 1},
		"an error in time":          {a: behaviour{err: errRefused}, err: errRefused, sent: 1},
		"a silent server":           {a: behaviour{wait: silent}, b: behaviour{wait: 10 * time.Millisecond}, want: "b", took: hedgeDelay + 10*time.Millisecond, sent: 2, accused: true},
		"all are slow, a is first":  {a: behaviour{wait: 3 * hedgeDelay}, b: behaviour{wait: 4 * hedgeDelay}, want: "a", took: 3 * hedgeDelay, sent: 2},
		"all are slow, b is first":  {a: behaviour{wait: silent}, b: behaviour{wait: 2 * hedgeDelay}, want: "b", took: 3 * hedgeDelay, sent: 2},
		"the second fails":          {a: behaviour{wait: 3 * hedgeDelay}, b: behaviour{err: errRefused}, want: "a", took: 3 * hedgeDelay, sent: 2},
		"the first fails later":     {a: behaviour{wait: 2 * hedgeDelay, err: status.Error(codes.Unavailable, "gone")}, b: behaviour{wait: 3 * hedgeDelay}, want: "b", took: 4 * hedgeDelay, sent: 2},
		"the first refuses later":   {a: behaviour{wait: 2 * hedgeDelay, err: errRefused}, b: behaviour{wait: 3 * hedgeDelay}, err: errRefused, took: 2 * hedgeDelay, sent: 2},
		"both fail, the first last": {a: behaviour{wait: 2 * hedgeDelay, err: errRefused}, b: behaviour{err: errRefused}, err: errRefused, took: 2 * hedgeDelay, sent: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHedged(map[string]behaviour{"a": test.a, "b": test.b}, "a", "b")
				begun := time.Now()
				got, err := h.call(t.Context(), "a")
				if took := time.Since(begun); got != test.want || !errors.Is(err, test.err) || took != test.took || h.sent.Load() != test.sent {
					t.Errorf("got %q, %v after %v in %d calls; want %q, %v after %v in %d", got, err, took, h.sent.Load(), test.want, test.err, test.took, test.sent)
				}
				if suspects := h.suspects(); (len(suspects) == 1 && suspects[0] == "a") != test.accused || len(suspects) > 1 {
					t.Errorf("suspect are %v", suspects)
				}
			})
		})
	}
}

// Calls that change something, that report where they went, or have nowhere else to go, are sent once.
func TestCallsThatAreSentOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := map[string]behaviour{"a": {wait: 2 * hedgeDelay}}
		alone := newHedged(slow, "a")
		if got, err := alone.call(t.Context(), "a"); got != "a" || err != nil || alone.sent.Load() != 1 {
			t.Errorf("one server: %q, %v, %d calls", got, err, alone.sent.Load())
		}
		reporting := newHedged(slow, "a", "b")
		var header metadata.MD
		if got, err := reporting.call(t.Context(), "a", grpc.Header(&header)); got != "a" || err != nil || reporting.sent.Load() != 1 {
			t.Errorf("a header is wanted: %q, %v, %d calls", got, err, reporting.sent.Load())
		}
		changing := newHedged(slow, "a", "b")
		changing.intercept = Hedge(func(string) time.Duration { return 0 })
		if got, err := changing.call(t.Context(), "a"); got != "a" || err != nil || changing.sent.Load() != 1 {
			t.Errorf("a change: %q, %v, %d calls", got, err, changing.sent.Load())
		}
	})
}

// While all are slow, a hundred calls are sent twice, and then one in eleven.
func TestBudgetOfSecondCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := behaviour{wait: 3 * hedgeDelay}
		h := newHedged(map[string]behaviour{"a": slow, "b": slow}, "a", "b")
		const calls = 1200
		for range calls {
			if _, err := h.call(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
		}
		if twice := h.sent.Load() - calls; twice < 200 || twice > 230 {
			t.Errorf("%d of %d calls were sent twice", twice, calls)
		}
	})
}

// A caller who gives up ends both.
func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		silent := behaviour{wait: time.Hour}
		h := newHedged(map[string]behaviour{"a": silent, "b": silent}, "a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), 3*hedgeDelay)
		defer cancel()
		if _, err := h.call(ctx, "a"); status.Code(err) != codes.DeadlineExceeded || h.sent.Load() != 2 {
			t.Errorf("%v, %d calls", err, h.sent.Load())
		}
		if suspects := h.suspects(); len(suspects) > 0 {
			t.Errorf("suspect are %v", suspects)
		}
	})
}
