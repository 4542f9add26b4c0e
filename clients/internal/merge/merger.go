// Package merge asks keysvc validations together. While calls are under way, further questions
// wait, and the next call carries all of them. A question that nothing is under way for goes at
// once and alone, so a service with little to ask notices nothing.
//
// A question joins a call only until that call is sent: its answer is never from before the moment
// at which the question was asked (promise 2, and rule C6 of docs/coherence.md).
package merge

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const (
	// maxCalls is how many calls are under way before questions wait. With one call the server has
	// nothing to do while its answers travel; with more than two, each call carries less.
	maxCalls = 2
	// maxBatch is how many questions one call carries; keysvc allows as many.
	maxBatch = 256
	// maxBytes is about the size of the largest call. keysvc takes messages of 1 MiB. maxItem is
	// the size of a question that goes alone.
	maxBytes = 128 << 10
	maxItem  = 16 << 10
	// patience is how long a call holds others back. A call that takes longer, perhaps because one
	// of several servers hangs, no longer counts towards maxCalls. So no question waits in the
	// queue for longer than twice patience.
	patience = 5 * time.Millisecond
	// pause is for how long each question goes alone after a server did not take a batch.
	pause = time.Minute
)

// Config is what a Merger works with.
type Config struct {
	// Validations is a client of keysvc. Required.
	Validations keysvcv1.ValidationServiceClient
	// Timeout bounds each question, from the call of Ask. Required.
	Timeout time.Duration
	// Separate makes a call for each question.
	Separate bool
}

// Merger asks questions. Its methods may be called from many goroutines.
type Merger struct {
	config Config
	// questions holds used *question, to use them again.
	questions questions
	// running waits for the goroutines that send batches.
	running sync.WaitGroup
	// timer calls overdue.
	timer *time.Timer

	// mutex guards what follows, and the fields of question and batch that say so.
	mutex sync.Mutex
	queue []*question
	// counted are the calls under way that hold others back, at most maxCalls.
	counted []*call
	// armed is set while timer runs.
	armed  bool
	paused time.Time // until when each question goes alone
	closed bool
	counts Counts
}

// Counts are what a Merger has done, for metrics.
type Counts struct {
	// Batches is how many calls carried more than one question, and Merged how many questions
	// those calls carried.
	Batches, Merged int64
}

// call is a call under way.
type call struct{ began time.Time }

// New returns a Merger. The caller closes it.
func New(config Config) *Merger {
	m := &Merger{config: config}
	m.timer = time.AfterFunc(time.Hour, m.overdue)
	m.timer.Stop()
	return m
}

// Counts returns what the Merger has done.
func (m *Merger) Counts() Counts {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.counts
}

// Close returns when no goroutine of the Merger runs any more. Call it after the connection was
// closed, which ends the calls under way. A question that is asked later goes alone.
func (m *Merger) Close() {
	m.mutex.Lock()
	m.closed = true
	m.timer.Stop()
	left := m.queue
	m.queue = nil
	m.mutex.Unlock()
	for _, each := range left {
		each.finish(nil, errClosed)
	}
	m.running.Wait()
}

var errClosed = status.Error(codes.Unavailable, "keyclient: the client was closed")

// Ask asks a question and returns the answer or the error of a ValidateKey with this request. It
// returns when ctx ends, and after Config.Timeout at the latest. sending, if not nil, is called
// just before the request is sent, perhaps on another goroutine and more than once; it may change
// the request. Apart from that nobody changes the request after it was passed to Ask.
//
// Errors: ctx's, if ctx ended; codes.Unavailable if keysvc did not answer in time or the client was
// closed; otherwise the status of the call.
func (m *Merger) Ask(ctx context.Context, request *keysvcv1.ValidateKeyRequest, sending func()) (*keysvcv1.ValidateKeyResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now := time.Now()
	deadline := now.Add(m.config.Timeout)
	ends, has := ctx.Deadline()
	own := has && ends.Before(deadline)
	if own {
		deadline = ends
	}
	size, mergeable := measure(request)
	m.mutex.Lock()
	switch {
	case !mergeable || m.config.Separate || m.closed || now.Before(m.paused):
		m.mutex.Unlock()
		return m.alone(ctx, deadline, request, sending)
	case len(m.queue) == 0 && len(m.counted) < maxCalls:
		begun := m.begin(now)
		m.mutex.Unlock()
		defer m.end(begun)
		return m.alone(ctx, deadline, request, sending)
	}
	asked := m.questions.get()
	asked.request, asked.sending, asked.deadline, asked.size = request, sending, deadline, size
	m.queue = append(m.queue, asked)
	m.dispatch(now)
	m.arm()
	m.mutex.Unlock()
	return m.await(ctx, asked, own)
}

// measure returns about how many bytes a request has in a batch, and reports whether it may be in
// one. Text that is not UTF-8 would make gRPC refuse the whole batch.
func measure(request *keysvcv1.ValidateKeyRequest) (size int, mergeable bool) {
	const others = 64 // tags, lengths, and numbers
	size = others + len(request.GetTokenDigest())
	mergeable = true
	for _, text := range [...]string{
		request.GetToken(), request.GetKeyId(), request.GetRequiredScope(), request.GetWorkspaceId(), request.GetClientAddress(), request.GetEpoch(),
	} {
		size += len(text)
		mergeable = mergeable && utf8.ValidString(text)
	}
	for _, scopes := range [...][]string{request.GetAllOf(), request.GetAnyOf()} {
		for _, scope := range scopes {
			size += len(scope) + 4 // the tag and the length
			mergeable = mergeable && utf8.ValidString(scope)
		}
	}
	return size, mergeable && size <= maxItem
}

// begin notes a call under way. mutex is held.
func (m *Merger) begin(now time.Time) *call {
	begun := &call{began: now}
	m.counted = append(m.counted, begun)
	return begun
}

// end notes that a call has ended, and lets the questions go that waited for it.
func (m *Merger) end(ended *call) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.uncount(ended)
	if len(m.queue) > 0 {
		m.dispatch(time.Now())
	}
}

func (m *Merger) uncount(ended *call) {
	if index := slices.Index(m.counted, ended); index >= 0 {
		m.counted = slices.Delete(m.counted, index, index+1)
	}
}

// dispatch starts a goroutine that sends the queue, if questions wait and a call may begin. mutex
// is held.
func (m *Merger) dispatch(now time.Time) {
	if len(m.queue) == 0 || len(m.counted) >= maxCalls || m.closed {
		return
	}
	begun := m.begin(now)
	m.running.Go(func() { m.run(begun) })
}

// arm starts the timer that ends the patience with the calls under way. mutex is held.
func (m *Merger) arm() {
	if !m.armed && len(m.queue) > 0 && !m.closed {
		m.armed = true
		m.timer.Reset(patience)
	}
}

// overdue stops counting the calls that take longer than patience.
func (m *Merger) overdue() {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.armed = false
	if len(m.queue) == 0 {
		return
	}
	now := time.Now()
	m.counted = slices.DeleteFunc(m.counted, func(each *call) bool { return now.Sub(each.began) >= patience })
	m.dispatch(now)
	m.arm()
}

// run sends one batch after another, until nothing waits.
func (m *Merger) run(own *call) {
	for {
		sent := m.take(own)
		if sent == nil {
			return
		}
		m.send(sent)
		// Let the callers that were just answered run before the next batch is made: what they
		// ask next goes with it. Without this, batches are small and large in turn.
		runtime.Gosched()
	}
}

// take takes the next batch off the queue: from now on nobody can join it. It returns nil if
// nothing waits, or if as many calls as may be are under way without own, which was overdue.
func (m *Merger) take(own *call) *batch {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	for {
		counted := slices.Contains(m.counted, own)
		if !counted && len(m.counted) >= maxCalls {
			return nil
		}
		if len(m.queue) == 0 {
			m.uncount(own)
			return nil
		}
		own.began = time.Now()
		if !counted {
			m.counted = append(m.counted, own)
		}
		if taken := m.cut(); taken != nil {
			return taken
		}
	}
}

// cut cuts a batch off the beginning of the queue, without the questions whose callers have left;
// nil if that leaves none. mutex is held.
func (m *Merger) cut() *batch {
	taken, bytes, count := &batch{}, 0, 0
	taken.members = make([]*question, 0, min(len(m.queue), maxBatch))
	for _, each := range m.queue {
		if len(taken.members) == maxBatch || bytes+each.size > maxBytes {
			break
		}
		count++
		if each.left {
			continue
		}
		bytes += each.size
		each.batch = taken
		taken.members = append(taken.members, each)
		if each.deadline.After(taken.deadline) {
			taken.deadline = each.deadline
		}
	}
	rest := copy(m.queue, m.queue[count:])
	clear(m.queue[rest:])
	m.queue = m.queue[:rest]
	if len(taken.members) == 0 {
		return nil
	}
	taken.ctx, taken.cancel = context.WithDeadline(context.Background(), taken.deadline)
	if len(taken.members) > 1 {
		m.counts.Batches++
		m.counts.Merged += int64(len(taken.members))
	}
	return taken
}

// alone asks a question in a call of its own.
func (m *Merger) alone(ctx context.Context, deadline time.Time, request *keysvcv1.ValidateKeyRequest, sending func()) (*keysvcv1.ValidateKeyResponse, error) {
	bounded, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if sending != nil {
		sending()
	}
	response, err := m.config.Validations.ValidateKey(bounded, request)
	if err != nil {
		own, has := ctx.Deadline()
		return nil, m.explain(ctx, has && own.Equal(deadline), err)
	}
	return response, nil
}

// explain returns the error for a caller whose context is ctx. own reports whether the context's
// deadline comes before the end of Config.Timeout. A deadline or cancellation that is not the
// caller's becomes codes.Unavailable.
func (m *Merger) explain(ctx context.Context, own bool, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch status.Code(err) {
	case codes.DeadlineExceeded:
		// The server knows the deadline, too, and may say that it has passed before ctx does.
		if own {
			return context.DeadlineExceeded
		}
		return m.late()
	case codes.Canceled:
		return errClosed
	}
	return err
}

// late returns the error for a question that was not answered within Config.Timeout.
func (m *Merger) late() error {
	return status.Errorf(codes.Unavailable, "keyclient: keysvc did not answer within %s", m.config.Timeout)
}
