package keyauth

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// watched runs the handler of a stream, and ends the stream when its key may no longer do what
// the stream needs.
func (g *Guard) watched(
	service any, stream grpc.ServerStream, method string, principal *Principal, question Question, handler grpc.StreamHandler,
) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	// This ends the watch, too. Nothing waits for the watch: a Watcher that does not return
	// must not delay the answer.
	defer cancel(context.Canceled)
	go func() {
		if err := g.watch(ctx, method, question); err != nil {
			cancel(err)
		}
	}()
	err := handler(service, &watchedStream{
		admittedStream: admittedStream{ServerStream: stream, ctx: admit(ctx, principal)},
		receiving:      newDirection(stream.RecvMsg),
		sending:        newDirection(stream.SendMsg),
	})
	if refusal := refusalOf(ctx); refusal != nil {
		return refusal
	}
	return err
}

// refusalOf returns the refusal that ended a stream; nil if the stream goes on, or ended in
// another way.
func refusalOf(ctx context.Context) error {
	if refusal, ok := context.Cause(ctx).(*RefusalError); ok { //nolint:errorlint // the cause is that error itself, never wrapped
		return refusal
	}
	return nil
}

// watchedStream is a stream that can be ended while its handler waits in RecvMsg, or in SendMsg
// because the presenter does not read.
//
// The transport's methods return only when a message comes or the call ends. So each direction
// runs them on a goroutine of its own, one for the whole stream. When the stream is refused,
// RecvMsg and SendMsg return at once. The goroutines go on until grpc ends the call, which it
// does when the interceptor returns. Until then the transport may still write to the message of
// a RecvMsg, and read the message of a SendMsg. So a handler must not use a message after
// RecvMsg or SendMsg has failed; generated code never does.
type watchedStream struct {
	admittedStream
	receiving, sending direction
}

// RecvMsg implements grpc.ServerStream.
func (s *watchedStream) RecvMsg(message any) error { return s.receiving.pass(s.ctx, message) }

// SendMsg implements grpc.ServerStream.
func (s *watchedStream) SendMsg(message any) error { return s.sending.pass(s.ctx, message) }

// direction is one direction of a stream. One goroutine uses it at a time, which is grpc's rule.
type direction struct {
	call     func(message any) error
	start    sync.Once
	messages chan any
	results  chan error
}

func newDirection(call func(message any) error) direction {
	return direction{call: call, messages: make(chan any), results: make(chan error, 1)}
}

// pass makes the call, and returns when the call or the context has ended. The context must end
// sooner or later, because the goroutine of the direction runs until then.
func (d *direction) pass(ctx context.Context, message any) error {
	d.start.Do(func() { go d.run(ctx) })
	select {
	case d.messages <- message:
	case <-ctx.Done():
		return ended(ctx)
	}
	select {
	case err := <-d.results:
		if refusal := refusalOf(ctx); refusal != nil {
			return refusal
		}
		return err
	case <-ctx.Done():
		return ended(ctx)
	}
}

func (d *direction) run(ctx context.Context) {
	for {
		select {
		case message := <-d.messages:
			d.results <- d.call(message)
		case <-ctx.Done():
			return
		}
	}
}

// ended returns why a stream has ended.
func ended(ctx context.Context) error {
	if refusal := refusalOf(ctx); refusal != nil {
		return refusal
	}
	return status.FromContextError(ctx.Err()).Err()
}
