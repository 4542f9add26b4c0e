package budget

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/giveway"
)

const (
	// roomTimeout bounds how long a read waits for room for its answer.
	roomTimeout = time.Second
	// itemBytes is what a list takes for each item of the page that it is asked for while the page
	// is put together, and pageBytes the most that it takes for a page.
	itemBytes = 8 << 10
	pageBytes = 4 << 20
	// largePage is from how many bytes on a page is made in turn.
	largePage = 256 << 10
	// changeBytes is what a change takes for its answer before anything is changed.
	changeBytes = 8 << 10
)

// paged is a request for a page of a list.
type paged interface{ GetPageSize() int32 }

// walk is a request for a list that visits all keys in memory, however small its page is.
type walk interface{ GetDueAfter() *timestamppb.Timestamp }

// The sizes of a page that requests of lists stand for.
const (
	defaultPageSize = 50
	maxPageSize     = 1000
)

// call is a unary call. It is reused.
type call struct {
	incoming
	waiting halfOpenCall
	// complete is set once the request is complete, or will not be.
	complete bool
	ctx      context.Context //nolint:containedctx // that of the call
	next     grpc.UnaryHandler
	out      mem.BufferSlice
	// work is set while the call does what gives way to validations.
	work *giveway.Work
	// inTurn is set while the call makes a large page.
	inTurn bool
	// The methods as functions: making one for each call would cost an allocation.
	receiving func(request any) error
	passing   grpc.UnaryServerInterceptor
	handling  grpc.UnaryHandler
}

var calls = sync.Pool{New: func() any {
	c := &call{}
	c.receiving, c.passing, c.handling = c.receiveOnly, c.pass, c.handle
	return c
}}

// unaryMethod is the function that protoc-gen-go-grpc makes for a unary method.
type unaryMethod = func(service any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error)

// unary handles a unary call.
func (g *Gate) unary(service any, stream grpc.ServerStream, work callers.Work, method unaryMethod) error {
	growStack()
	ctx := stream.Context()
	transport, err := g.transportOf(ctx)
	if err != nil {
		return err
	}
	holder := holderOf(ctx, work)
	place, err := g.config.Places.Take(holder.Connection, work)
	if err != nil {
		return err
	}
	defer g.config.Places.Give(place)
	c := calls.Get().(*call) //nolint:errcheck,forcetypeassert // nothing else is put there
	c.gate, c.transport, c.holder, c.ctx = g, transport, holder, ctx
	g.halfOpen.begin(&c.waiting, c.holder.Connection, transport)
	answer, err := method(service, ctx, c.receiving, c.passing)
	if !c.complete {
		g.halfOpen.end(&c.waiting)
	}
	if err == nil {
		err = c.answer(stream, answer)
	}
	c.endTurn()
	c.incoming.give(c.taken)
	*c = call{receiving: c.receiving, passing: c.passing, handling: c.handling}
	calls.Put(c)
	return err
}

// receiveOnly reads the only request of the call.
func (c *call) receiveOnly(request any) error {
	message, is := request.(proto.Message)
	if !is {
		return c.gate.config.Status(c.ctx, errMessage)
	}
	err := c.receive(c.ctx, message)
	if errors.Is(err, io.EOF) {
		err = status.Error(codes.Internal, "the call takes one request, and none came")
	}
	if err == nil {
		err = c.ended()
	}
	c.gate.halfOpen.end(&c.waiting)
	c.complete = true
	return err
}

// pass calls the gate's interceptor.
func (c *call) pass(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	c.next = next
	return c.gate.config.Unary(ctx, request, info, c.handling)
}

// handle calls the method once the interceptor has let the call pass. What an answer will hold is
// taken first if the answer is large, or if it is too late to refuse the call afterwards.
func (c *call) handle(ctx context.Context, request any) (any, error) {
	if c.holder.Work == callers.Validation {
		return c.next(ctx, request)
	}
	// What was taken for the request stays with the caller that the connection is known as. A call
	// may bring a token that says more.
	if c.taken == 0 {
		c.identified = false
	}
	c.identify(ctx)
	switch c.holder.Work {
	case callers.Change:
		if !c.take(ctx, changeBytes) {
			return nil, c.gate.noRoom(ctx)
		}
		// The effects of a policy are counted over all keys.
		if checked, is := request.(interface{ GetValidateOnly() bool }); is && checked.GetValidateOnly() {
			ctx = c.givingWay(ctx)
		}
	case callers.Read:
		if list, is := request.(paged); is {
			size := int64(list.GetPageSize())
			if size <= 0 {
				size = defaultPageSize
			}
			bytes := min(min(size, maxPageSize)*itemBytes, pageBytes)
			if !c.gate.config.Budget.await(ctx, c.holder, bytes, roomTimeout) {
				return nil, c.gate.noRoom(ctx)
			}
			c.taken += bytes
			if _, walks := request.(walk); walks || bytes >= largePage {
				c.beginTurn(ctx)
				ctx = c.givingWay(ctx)
			}
		}
	case callers.NoWork, callers.Probe, callers.Validation, callers.Wait, callers.Session, callers.Watch, callers.Inspection, callers.Backup:
	}
	return c.next(ctx, request)
}

// beginTurn waits until it is the call's turn to make a large page, for roomTimeout at most: the pages
// before it may wait for a store.
//
// A page of 1,000 keys takes a processor for milliseconds. If the server made as many at a time as are
// asked for, a validation would wait until each of them has had its share of the processors.
func (c *call) beginTurn(ctx context.Context) {
	timer := time.NewTimer(roomTimeout)
	defer timer.Stop()
	select {
	case c.gate.turns <- struct{}{}:
		c.inTurn = true
	case <-timer.C:
	case <-ctx.Done():
	}
}

// givingWay returns a context for what gives way to validations.
func (c *call) givingWay(ctx context.Context) context.Context {
	if c.gate.config.Urgent == nil {
		return ctx
	}
	ctx = giveway.NewContext(ctx, c.gate.config.Urgent)
	c.work = giveway.From(ctx)
	return ctx
}

// endTurn lets another call make a large page.
func (c *call) endTurn() {
	if c.inTurn {
		c.inTurn = false
		<-c.gate.turns
	}
}

// encoding implements encoded.
func (c *call) encoding() mem.BufferSlice { return c.out }

// answer sends the answer. It returns when a large answer is written, or the call has ended.
func (c *call) answer(stream grpc.ServerStream, answer any) error {
	message, is := answer.(proto.Message)
	if !is {
		return c.gate.config.Status(stream.Context(), errMessage)
	}
	c.work.GiveWay()
	size := proto.Size(message)
	if size <= small {
		data, err := proto.MarshalOptions{UseCachedSize: true}.Marshal(message)
		if err != nil {
			return status.Errorf(codes.Internal, "the answer cannot be encoded: %v", err)
		}
		c.out = mem.BufferSlice{mem.SliceBuffer(data)}
		return stream.SendMsg(c)
	}
	// 1. Encode it, and hold its buffer and nothing else.
	c.work.GiveWay()
	data, err := encodeInto(buffers.Get(size), message)
	c.endTurn()
	if err != nil {
		return err
	}
	if err := c.hold(int64(cap(*data))); err != nil {
		buffers.Put(data)
		return err
	}
	sent := newSent(c.gate.config.Budget, c.holder, c.taken)
	c.taken = 0
	defer sent.release()
	// 2. Send it.
	c.out = sent.buffer(data)
	if err := stream.SendMsg(c); err != nil {
		return err
	}
	// 3. The call lasts until the answer is written.
	sent.wait(c.ctx, c.gate.config.Stopping)
	return nil
}

// hold makes what the call has taken equal to a number of bytes.
func (c *call) hold(bytes int64) error {
	c.identify(c.ctx)
	switch more := bytes - c.taken; {
	case more <= 0:
		c.give(-more)
		return nil
	case c.holder.Work == callers.Change:
		c.gate.config.Budget.force(c.holder, more) // the change is made
	case c.holder.Work == callers.Read:
		if !c.gate.config.Budget.await(c.ctx, c.holder, more, roomTimeout) {
			return c.gate.noRoom(c.ctx)
		}
	case !c.gate.config.Budget.take(c.holder, more):
		return c.gate.noRoom(c.ctx)
	}
	c.taken = bytes
	return nil
}

// encodeInto encodes a message whose size was just computed.
func encodeInto(data *[]byte, message proto.Message) (*[]byte, error) {
	filled, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend((*data)[:0], message)
	if err != nil {
		buffers.Put(data)
		return nil, status.Errorf(codes.Internal, "the answer cannot be encoded: %v", err)
	}
	*data = filled
	return data, nil
}
