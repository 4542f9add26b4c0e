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
	var watching sync.WaitGroup
	watching.Go(func() {
		if err := g.watch(ctx, method, question); ctx.Err() == nil {
			cancel(err)
		}
	})
	kept := &watchedStream{admittedStream: admittedStream{ServerStream: stream, ctx: admit(ctx, principal)}}
	defer watching.Wait()
	defer cancel(context.Canceled)
	defer kept.stop()
	err := handler(service, kept)
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

// watchedStream is a stream that can be ended while the handler waits for a message.
//
// The transport's RecvMsg wakes up only when something comes or the call has ended, so it
// is called on a goroutine of its own, one for the stream. When the stream is refused,
// RecvMsg returns without waiting for that; the goroutine goes on until grpc ends the
// call, which it does when the interceptor returns. A message that comes in the meantime
// is written to what RecvMsg was given, so a handler must not use a message after RecvMsg
// has failed. No generated code does.
type watchedStream struct {
	admittedStream

	start    sync.Once
	messages chan any
	results  chan error
}

// RecvMsg implements grpc.ServerStream. It is not called by two goroutines at a time,
// which is grpc's rule.
func (s *watchedStream) RecvMsg(message any) error {
	if refusal := refusalOf(s.ctx); refusal != nil {
		return refusal
	}
	s.start.Do(func() {
		s.messages, s.results = make(chan any), make(chan error, 1)
		go func() {
			for message := range s.messages {
				s.results <- s.ServerStream.RecvMsg(message)
			}
		}()
	})
	select {
	case s.messages <- message:
	case <-s.ctx.Done():
		return s.ended()
	}
	select {
	case err := <-s.results:
		return err
	case <-s.ctx.Done():
		return s.ended()
	}
}

// SendMsg implements grpc.ServerStream.
func (s *watchedStream) SendMsg(message any) error {
	if refusal := refusalOf(s.ctx); refusal != nil {
		return refusal
	}
	return s.ServerStream.SendMsg(message)
}

// ended returns why the stream is over.
func (s *watchedStream) ended() error {
	if refusal := refusalOf(s.ctx); refusal != nil {
		return refusal
	}
	return status.FromContextError(s.ctx.Err()).Err()
}

// stop lets the receiving goroutine end once the transport lets go of it. The handler has
// returned: nobody calls RecvMsg any more.
func (s *watchedStream) stop() {
	s.start.Do(func() {})
	if s.messages != nil {
		close(s.messages)
	}
}
