package budget

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/scribe-mail/keysvc/internal/callers"
)

// Shared is a message whose encoding is known already, because many streams send it.
type Shared interface {
	proto.Message
	// Wire returns the encoding. Nobody changes it. Its capacity is at least MinSharedCapacity.
	Wire() []byte
}

// MinSharedCapacity is the least capacity of what Shared.Wire returns, in bytes: with less grpc does
// not say when it has written the message.
const MinSharedCapacity = small + 1

// opening is a stream of which the interceptor of the gate has seen the beginning.
type opening struct {
	grpc.ServerStream
	ctx     context.Context //nolint:containedctx // that of the stream, with the opening
	waiting halfOpenCall
	// first is the prefix of the first request, and err the reason why it did not come.
	first [prefixLength]byte
	err   error
}

type openingKey struct{}

// Context implements grpc.ServerStream.
func (o *opening) Context() context.Context { return o.ctx }

// errStopping is the status of streams that have sent nothing yet when the stop begins.
var errStopping = status.New(codes.Unavailable, "the server is stopping")

// await is an interceptor of streams, and comes before all others: until something of the first
// request has come, a stream costs as little as any half-open call, and takes no place of a
// stream that is used.
func (g *Gate) await(service any, inner grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx := inner.Context()
	transport, err := g.transportOf(ctx)
	if err != nil {
		return err
	}
	connection, _ := peer.FromContext(ctx)
	work := callers.Of(info.FullMethod).Work
	place, err := g.config.Places.Take(connection, work)
	if err != nil {
		return err
	}
	give := sync.OnceFunc(func() { g.config.Places.Give(place) })
	defer give()
	o := &opening{ServerStream: inner}
	g.halfOpen.begin(&o.waiting, connection, transport)
	defer g.halfOpen.end(&o.waiting)
	goOn := context.AfterFunc(g.config.Stopping, func() { _ = transport.WriteStatus(errStopping) })
	o.err = transport.ReadMessageHeader(o.first[:])
	if !goOn() || o.err != nil && !errors.Is(o.err, io.EOF) {
		return transportError(o.err)
	}
	if work == callers.Session {
		give()
	}
	o.ctx = context.WithValue(ctx, openingKey{}, o)
	return handler(service, o)
}

// stream is a call with several messages one way or both. Its next message is not sent before the
// last one is written: a stream whose client does not read holds one message, and no queue.
type stream struct {
	grpc.ServerStream
	incoming
	waiting *halfOpenCall
	// manyRequests is set if more than one request may come.
	manyRequests bool
	// held is what the newest request holds that has come. over is set when the handler has
	// returned: a goroutine of the handler may still receive.
	held atomic.Int64
	over atomic.Bool
	// last is the message that was sent last; nil before the first message.
	last *sent
	out  mem.BufferSlice
}

// stream handles a stream.
func (g *Gate) stream(service any, inner grpc.ServerStream, work callers.Work, manyRequests bool, handler grpc.StreamHandler) error {
	ctx := inner.Context()
	transport, err := g.transportOf(ctx)
	if err != nil {
		return err
	}
	opening, is := ctx.Value(openingKey{}).(*opening)
	if !is {
		return g.config.Status(ctx, errOpening)
	}
	s := &stream{
		ServerStream: inner, manyRequests: manyRequests, waiting: &opening.waiting,
		incoming: incoming{gate: g, transport: transport, holder: holderOf(ctx, work), opening: opening},
	}
	s.identify(ctx) // now, because one goroutine may send while another receives
	stop := context.AfterFunc(ctx, func() { s.cutOff(context.Cause(ctx)) })
	err = handler(service, s)
	stop()
	s.over.Store(true)
	s.drop()
	// The call lasts until its last message is written.
	if s.last != nil {
		s.last.wait(ctx, g.config.Stopping)
	}
	return err
}

// cutOff ends the stream with the status that its context was ended with, such as that of a caller
// that was removed. A handler that waits for a request, as that of reflection does, would not notice
// the end of its context.
func (s *stream) cutOff(cause error) {
	if result, is := status.FromError(cause); is {
		_ = s.transport.WriteStatus(result) // a call that is over is not told
	}
}

// drop gives back what the newest request holds.
func (s *stream) drop() { s.gate.config.Budget.give(s.holder, s.held.Swap(0)) }

// RecvMsg implements grpc.ServerStream. The bytes of a request are held until the next one is
// received.
func (s *stream) RecvMsg(request any) error {
	message, is := request.(proto.Message)
	if !is {
		return s.gate.config.Status(s.Context(), errMessage)
	}
	s.drop()
	err := s.receive(s.Context(), message)
	switch {
	case errors.Is(err, io.EOF) && s.manyRequests:
		return io.EOF
	case errors.Is(err, io.EOF):
		err = status.Error(codes.Internal, "the call takes one request, and none came")
	case err == nil && !s.manyRequests:
		err = s.ended()
	}
	s.gate.halfOpen.end(s.waiting)
	s.held.Store(s.taken)
	s.taken = 0
	if err != nil || s.over.Load() {
		s.drop()
	}
	if err != nil {
		_ = s.transport.WriteStatus(status.Convert(err)) // the handler may be busy sending
	}
	return err
}

// SendMsg implements grpc.ServerStream.
func (s *stream) SendMsg(response any) error {
	message, is := response.(proto.Message)
	if !is {
		return s.gate.config.Status(s.Context(), errMessage)
	}
	// 1. Wait until the message before is written.
	if s.last != nil && !s.last.isGone() {
		select {
		case <-s.last.gone:
		case <-s.Context().Done():
			return status.FromContextError(s.Context().Err()).Err()
		}
	}
	// 2. Take what the message holds. Small messages are not counted, nor are those that many
	// streams share.
	shared, isShared := response.(Shared)
	var data *[]byte
	if isShared {
		wire := shared.Wire()
		data = &wire
		s.last = newSent(s.gate.config.Budget, s.holder, 0)
		s.last.shared = true
	} else {
		size := proto.Size(message)
		var err error
		if data, err = encodeInto(buffers.Get(max(size, MinSharedCapacity)), message); err != nil {
			return err
		}
		bytes := int64(0)
		if size > small {
			bytes = int64(cap(*data))
			if !s.gate.config.Budget.await(s.Context(), s.holder, bytes, roomTimeout) {
				buffers.Put(data)
				return s.gate.noRoom(s.Context())
			}
		}
		s.last = newSent(s.gate.config.Budget, s.holder, bytes)
	}
	// 3. Send it.
	s.out = s.last.buffer(data)
	return s.ServerStream.SendMsg(s)
}

// encoding implements encoded.
func (s *stream) encoding() mem.BufferSlice { return s.out }
