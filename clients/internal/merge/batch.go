package merge

import (
	"context"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// question is one question that waits for a batch, or is in one. Its caller uses it again after it
// has received from done; a question whose caller has left is never used again, because the batch
// may still write to it.
type question struct {
	request  *keysvcv1.ValidateKeyRequest
	sending  func()
	deadline time.Time
	size     int

	// batch is the question's batch from when it was taken off the queue, and left is set when the
	// caller has left. Both are guarded by Merger.mutex.
	batch *batch
	left  bool

	// done receives a value when response, err and again are set.
	done     chan struct{}
	response *keysvcv1.ValidateKeyResponse
	err      error
	// again is set if the caller is to ask in a call of its own.
	again bool

	// timer ends the wait after Config.Timeout.
	timer *time.Timer
}

// questions are used questions, to use them again. They belong to one Merger, because the timers and
// channels of a bubble of synctest must not leave it.
type questions struct{ pool sync.Pool }

func (q *questions) get() *question {
	if used, ok := q.pool.Get().(*question); ok {
		return used
	}
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return &question{done: make(chan struct{}, 1), timer: timer}
}

func (q *questions) put(used *question) { q.pool.Put(used) }

func (q *question) finish(response *keysvcv1.ValidateKeyResponse, err error) {
	q.response, q.err = response, err
	q.done <- struct{}{} // there is room, because it is done once
}

// batch is the questions of one call.
type batch struct {
	members []*question
	// deadline is the latest of the members'. The context ends then, or when all callers have left.
	deadline time.Time
	ctx      context.Context //nolint:containedctx // the call's own
	cancel   context.CancelFunc
	// leavers is how many callers have left. Guarded by Merger.mutex.
	leavers int
}

// await waits for the answer to a question. own reports whether the deadline is that of ctx.
func (m *Merger) await(ctx context.Context, asked *question, own bool) (*keysvcv1.ValidateKeyResponse, error) {
	if !own {
		asked.timer.Reset(m.config.Timeout)
	}
	select {
	case <-asked.done:
	case <-ctx.Done():
		m.leave(asked)
		return nil, ctx.Err()
	case <-asked.timer.C:
		m.leave(asked)
		return nil, m.late()
	}
	asked.timer.Stop()
	response, err := asked.response, asked.err
	request, sending, deadline, again := asked.request, asked.sending, asked.deadline, asked.again
	*asked = question{done: asked.done, timer: asked.timer}
	m.questions.put(asked)
	switch {
	case again:
		return m.alone(ctx, deadline, request, sending)
	case err != nil:
		return nil, m.explain(ctx, own, err)
	}
	return response, nil
}

// leave notes that a caller no longer waits. A batch whose callers have all left is cancelled.
func (m *Merger) leave(gone *question) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	gone.left = true
	if of := gone.batch; of != nil {
		if of.leavers++; of.leavers == len(of.members) {
			of.cancel()
		}
	}
}

// send asks keysvc the questions of a batch, and wakes their callers.
func (m *Merger) send(sent *batch) {
	defer sent.cancel()
	responses, err := m.call(sent)
	if err == nil && len(responses) != len(sent.members) {
		err = status.Error(codes.Internal, "keyclient: keysvc did not answer each question of the batch")
	}
	if err != nil {
		m.failed(sent, err)
		return
	}
	for index, each := range sent.members {
		// 1. An error of one item: its own call gives it exactly as it would be without merging,
		//    with all details, and repeated if it is UNAVAILABLE. Errors are rare, and nobody who
		//    presents a token can cause one.
		each.again = responses[index].GetError() != nil
		// 2. Everything else is the answer. keysvc answers in the order of the questions.
		each.finish(responses[index], nil)
	}
}

// call makes the call of a batch. A panic, for example of an interceptor, becomes an error, and
// then strikes each caller in its own call.
func (m *Merger) call(sent *batch) (responses []*keysvcv1.ValidateKeyResponse, err error) {
	defer func() {
		if recover() != nil {
			responses, err = nil, status.Error(codes.Internal, "keyclient: the call of a batch panicked")
		}
	}()
	requests := make([]*keysvcv1.ValidateKeyRequest, len(sent.members))
	for index, each := range sent.members {
		if each.sending != nil {
			each.sending()
		}
		requests[index] = each.request
	}
	if len(requests) == 1 {
		response, err := m.config.Validations.ValidateKey(sent.ctx, requests[0])
		return []*keysvcv1.ValidateKeyResponse{response}, err
	}
	response, err := m.config.Validations.BatchValidateKeys(sent.ctx, &keysvcv1.BatchValidateKeysRequest{Requests: requests})
	return response.GetResponses(), err
}

// failed ends the questions of a batch that has failed.
func (m *Merger) failed(sent *batch, err error) {
	code := status.Code(err)
	alone := len(sent.members) == 1
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted, codes.Unauthenticated, codes.PermissionDenied:
		// The network, the load or this service's identity: each question alone would have failed
		// in the same way, and asking it again would add to the load.
		alone = true
	case codes.Unimplemented, codes.InvalidArgument:
		// The server does not know batches, or takes smaller ones.
		if !alone {
			m.mutex.Lock()
			m.paused = time.Now().Add(pause)
			m.mutex.Unlock()
		}
	}
	if !alone {
		// One question may have made the server refuse all of them.
		for _, each := range sent.members {
			each.again = true
			each.finish(nil, nil)
		}
		return
	}
	for _, each := range sent.members {
		err = HideToken(err, each.request.GetToken())
	}
	for _, each := range sent.members {
		each.finish(nil, err)
	}
}

// HideToken returns an error of keysvc, or another one if that error contains a token.
func HideToken(err error, text string) error {
	if err == nil || text == "" {
		return err
	}
	if answered, ok := status.FromError(err); ok && strings.Contains(err.Error(), text) {
		return status.Error(answered.Code(), "keyclient: keysvc's error is not shown, because it contains the token")
	}
	return err
}
