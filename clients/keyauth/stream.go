package keyauth

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// watched runs the handler of a stream for as long as the stream may go on.
func (g *Guard) watched(
	service any, stream grpc.ServerStream, method string, principal *Principal, question Question, handler grpc.StreamHandler,
) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	// Ends the watch, too. Nobody waits for that: a Watcher that does not let go must not
	// hold up the answer.
	defer cancel(context.Canceled)
	go func() {
		if err := g.watch(ctx, method, question); err != nil {
			cancel(err)
		}
	}()
	err := handler(service, &watchedStream{
		admittedStream: admittedStream{ServerStream: stream, ctx: admit(ctx, principal)},
		receiving:      newLane(stream.RecvMsg),
		sending:        newLane(stream.SendMsg),
	})
	if refusal := refusalOf(ctx); refusal != nil {
		return refusal
	}
	return err
}

// refusalOf returns why a stream ended before its time; nil if it did not.
func refusalOf(ctx context.Context) error {
	if refusal, ok := context.Cause(ctx).(*RefusalError); ok { //nolint:errorlint // it is the cause itself
		return refusal
	}
	return nil
}

// watchedStream is a stream that can be ended while its handler waits in RecvMsg, or in
// SendMsg because the presenter does not read.
//
// The transport's methods wake up only when something comes or the call has ended, so each
// runs on a goroutine of its own, one per direction for the whole stream. When the stream
// is refused, RecvMsg and SendMsg return at once; the goroutines go on until grpc ends the
// call, which it does when the interceptor returns. Until then a message that comes is
// still written to what RecvMsg was given, and one that is being sent still read, so a
// handler must not use a message after RecvMsg or SendMsg has failed. No generated code
// does.
type watchedStream struct {
	admittedStream
	receiving, sending lane
}

// RecvMsg implements grpc.ServerStream.
func (s *watchedStream) RecvMsg(message any) error { return s.receiving.pass(s.ctx, message) }

// SendMsg implements grpc.ServerStream.
func (s *watchedStream) SendMsg(message any) error { return s.sending.pass(s.ctx, message) }

// lane is one direction of a stream. It is used by one goroutine at a time, which is
// grpc's rule.
type lane struct {
	call     func(message any) error
	start    sync.Once
	messages chan any
	results  chan error
}

func newLane(call func(message any) error) lane {
	return lane{call: call, messages: make(chan any), results: make(chan error, 1)}
}

// pass makes the call and waits for it, or for the context to end. That one must end, as
// the lane's goroutine runs until then.
func (l *lane) pass(ctx context.Context, message any) error {
	l.start.Do(func() { go l.run(ctx) })
	select {
	case l.messages <- message:
	case <-ctx.Done():
		return ended(ctx)
	}
	select {
	case err := <-l.results:
		if refusal := refusalOf(ctx); refusal != nil {
			return refusal
		}
		return err
	case <-ctx.Done():
		return ended(ctx)
	}
}

func (l *lane) run(ctx context.Context) {
	for {
		select {
		case message := <-l.messages:
			l.results <- l.call(message)
		case <-ctx.Done():
			return
		}
	}
}

// ended returns why a stream is over.
func ended(ctx context.Context) error {
	if refusal := refusalOf(ctx); refusal != nil {
		return refusal
	}
	return status.FromContextError(ctx.Err()).Err()
}
