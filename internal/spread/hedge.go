package spread

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// maxBudget and costs bound how many calls are sent twice: a hundred at once, and one in ten for long. More would
	// only load servers that are all slow.
	maxBudget = 1000
	cost      = 10
)

// Hedge returns an interceptor that sends a call to another server as well if the first has not answered for as long as
// after says; the first answer counts. It is for calls that change nothing. after returns 0 for the others.
func Hedge(after func(method string) time.Duration) grpc.UnaryClientInterceptor {
	budget := new(atomic.Int64)
	budget.Store(maxBudget)
	return func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		delay := after(method)
		answer, isMessage := reply.(proto.Message)
		if delay <= 0 || !isMessage || slices.ContainsFunc(options, reports) {
			return invoke(ctx, method, request, reply, conn, options...)
		}
		if budget.Load() < maxBudget {
			budget.Add(1)
		}
		h := &hedge{invoke: func(ctx context.Context, reply proto.Message) error {
			return invoke(ctx, method, request, reply, conn, options...)
		}, budget: budget, delay: delay}
		return h.call(ctx, answer)
	}
}

// reports reports whether an option writes to where two attempts would write at the same time.
func reports(option grpc.CallOption) bool {
	switch option.(type) {
	case grpc.HeaderCallOption, grpc.TrailerCallOption, grpc.PeerCallOption, grpc.OnFinishCallOption:
		return true
	}
	return false
}

// hedge is one call that may be sent twice.
type hedge struct {
	invoke func(context.Context, proto.Message) error
	budget *atomic.Int64
	delay  time.Duration

	// mutex guards what follows.
	mutex sync.Mutex
	// ended is set when the first attempt has ended; a second that was not begun is not begun any more.
	ended bool
	// second is closed when the second attempt has ended; nil if none was begun.
	second chan struct{}
	// answer is that of the second attempt, if it has one.
	answer proto.Message
}

func (h *hedge) call(ctx context.Context, reply proto.Message) error {
	first, cancelFirst := context.WithCancel(ctx)
	defer cancelFirst()
	other, cancelOther := context.WithCancel(ctx)
	defer cancelOther()
	first, route := Follow(first)
	route.hedged = true
	timer := time.AfterFunc(h.delay, func() { h.again(other, route, reply, cancelFirst) })
	defer timer.Stop()
	err := h.invoke(first, reply)
	h.mutex.Lock()
	h.ended = true
	second := h.second
	h.mutex.Unlock()
	if second == nil {
		return err
	}
	// A second attempt is under way, or has ended the first. Whatever else the first has brought counts.
	if code := status.Code(err); code != codes.Canceled && code != codes.Unavailable || ctx.Err() != nil {
		cancelOther()
		<-second
		return err
	}
	<-second
	if h.answer == nil {
		return err
	}
	proto.Reset(reply)
	proto.Merge(reply, h.answer)
	return nil
}

// again sends the call to another server.
func (h *hedge) again(ctx context.Context, route *Route, reply proto.Message, cancelFirst context.CancelFunc) {
	h.mutex.Lock()
	if h.ended || !route.hasOthers() {
		h.mutex.Unlock()
		return
	}
	if h.budget.Add(-cost) < 0 {
		h.budget.Add(cost)
		h.mutex.Unlock()
		return
	}
	second := make(chan struct{})
	h.second = second
	h.mutex.Unlock()
	defer close(second)
	answer := reply.ProtoReflect().New().Interface()
	ctx, own := Follow(ctx)
	own.except = route
	began := time.Now()
	if h.invoke(ctx, answer) != nil {
		return // the first may still bring something
	}
	// If all are slow, the second answer says nothing about the first server.
	if time.Since(began) < h.delay {
		route.accuse()
	}
	h.answer = answer
	cancelFirst()
}
