package nearcache

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const (
	// maxBatch is how many questions one call carries. maxBatches is how many calls are in
	// progress at a time.
	maxBatch   = 256
	maxBatches = 4
	// maxQueue is how many questions wait for a call.
	maxQueue = 16384
	// maxAttempts is how often a question is asked if its answers are outdated when they come.
	maxAttempts = 3
)

// misses asks the server what memory cannot answer. Equal questions are asked once, and several
// questions share one call. A question can be joined until it is sent (C6).
type misses struct {
	ctx    context.Context //nolint:containedctx // the cache's own life
	config Config
	core   *Core
	// running waits for the calls in progress.
	running sync.WaitGroup

	mutex   sync.Mutex
	waiting map[digest]*flight
	queue   []*flight
	batches int
}

// flight is one question for the server. Every caller of ask that joined it waits for done.
type flight struct {
	digest   digest
	question keyauth.Question
	attempts int
	// anyRevision is set to ask without min_revision, because the server has another epoch than the
	// session.
	anyRevision bool

	// done is closed when answer and err are set.
	done   chan struct{}
	answer keyauth.Answer
	err    error
}

func newMisses(ctx context.Context, config Config, core *Core) *misses {
	return &misses{ctx: ctx, config: config, core: core, waiting: make(map[digest]*flight)}
}

// wait returns when no call is in progress. Call it after the context has ended.
func (m *misses) wait() { m.running.Wait() }

// ask asks the server. The wait in the queue and for the call together takes at most
// Config.Timeout.
func (m *misses) ask(ctx context.Context, question *keyauth.Question) (keyauth.Answer, error) {
	if answer, answered, err := m.config.WithoutCall(question); answered {
		return answer, err
	}
	joined, err := m.join(question)
	if err != nil {
		return keyauth.Answer{}, err
	}
	timer := time.NewTimer(m.config.Timeout)
	defer timer.Stop()
	select {
	case <-joined.done:
		return joined.answer, joined.err
	case <-ctx.Done():
		return keyauth.Answer{}, ctx.Err()
	case <-timer.C:
		return keyauth.Answer{}, m.late()
	case <-m.ctx.Done():
		return keyauth.Answer{}, errClosed
	}
}

// late returns the error for a question that was not answered within Config.Timeout.
func (m *misses) late() error {
	return status.Errorf(codes.Unavailable, "keyclient: keysvc did not answer within %s", m.config.Timeout)
}

var (
	errClosed = status.Error(codes.Unavailable, "keyclient: the client was closed")
	errBusy   = status.Error(codes.Unavailable, "keyclient: too many questions wait for keysvc")
	errStale  = status.Error(codes.Unavailable, "keyclient: the answers of keysvc were outdated when they came")
)

// join returns the flight of a question, and begins one if the question does not wait in the
// queue yet.
func (m *misses) join(question *keyauth.Question) (*flight, error) {
	known := m.core.digestQuestion(question)
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.ctx.Err() != nil {
		return nil, errClosed
	}
	m.core.counters.Misses.Add(1)
	m.config.Hooks.missed()
	if joined := m.waiting[known]; joined != nil {
		return joined, nil
	}
	if len(m.queue) >= maxQueue {
		return nil, errBusy
	}
	begun := &flight{digest: known, question: *question, done: make(chan struct{})}
	m.waiting[known] = begun
	m.queue = append(m.queue, begun)
	m.dispatch()
	return begun, nil
}

// dispatch starts a call if there are questions and fewer than maxBatches calls. mutex is held.
func (m *misses) dispatch() {
	if len(m.queue) == 0 || m.batches >= maxBatches || m.ctx.Err() != nil {
		return
	}
	m.batches++
	m.running.Go(m.call)
}

// take takes the next questions off the queue. From now on no caller can join them, because the
// answer may be as of a moment before that caller asked (C6).
func (m *misses) take() []*flight {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	count := min(len(m.queue), maxBatch)
	taken := m.queue[:count:count]
	m.queue = m.queue[count:]
	if len(m.queue) == 0 {
		m.queue = nil
	}
	for _, each := range taken {
		delete(m.waiting, each.digest)
	}
	if count == 0 {
		m.batches--
	}
	return taken
}

// call asks one batch after another until the queue is empty.
func (m *misses) call() {
	for {
		batch := m.take()
		if len(batch) == 0 {
			return
		}
		m.send(batch)
	}
}

// send asks the server the questions of one batch.
func (m *misses) send(batch []*flight) {
	// The state of the Core is read before the questions are sent: an event that comes after
	// this line is noticed by EndFill (C4).
	fill := m.core.BeginFill(m.config.Now())
	request := &keysvcv1.BatchValidateKeysRequest{Requests: make([]*keysvcv1.ValidateKeyRequest, len(batch))}
	for index, each := range batch {
		item := m.config.Request(each.question)
		item.IncludeGrant = true
		if fill.Epoch() != "" && fill.MinRevision > 0 && !each.anyRevision {
			item.Epoch, item.MinRevision = fill.Epoch(), fill.MinRevision
		}
		request.Requests[index] = item
	}
	ctx, cancel := context.WithTimeout(m.ctx, m.config.Timeout)
	response, err := m.config.Validations.BatchValidateKeys(ctx, request)
	cancel()
	if err == nil && len(response.GetResponses()) != len(batch) {
		err = status.Error(codes.Internal, "keyclient: keysvc did not answer each question of the batch")
	}
	if status.Code(err) == codes.DeadlineExceeded || status.Code(err) == codes.Canceled {
		err = m.late()
	}
	now := m.config.Now()
	var again []*flight
	for index, each := range batch {
		if err != nil {
			each.finish(keyauth.Answer{}, err)
			continue
		}
		if !m.resolve(each, fill, response.GetResponses()[index], now) {
			again = append(again, each)
		}
	}
	if len(again) > 0 {
		m.mutex.Lock()
		m.queue = append(again, m.queue...)
		m.mutex.Unlock()
	}
}

// resolve ends a flight with one response. It reports false if the question must be asked again.
func (m *misses) resolve(each *flight, fill Fill, item *keysvcv1.ValidateKeyResponse, now time.Time) bool {
	each.attempts++
	if problem := item.GetError(); problem != nil {
		// The server has another history. The session will notice that; this question need not
		// wait for it.
		if problem.GetReason() == keysvcv1.ErrorReason_ERROR_REASON_EPOCH_MISMATCH && !each.anyRevision {
			each.anyRevision = true
			return false
		}
		// The answers of the batch were too large together. Each batch gets at least one
		// answer, so this attempt does not count.
		if problem.GetReason() == keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS {
			each.attempts--
			return false
		}
		code := codes.Code(problem.GetCode()) //nolint:gosec // G115: checked in the next line
		if problem.GetCode() <= 0 || problem.GetCode() > 16 {
			code = codes.Internal
		}
		each.finish(keyauth.Answer{}, status.Error(code, problem.GetMessage()))
		return true
	}
	answer, err := m.config.Read(item)
	if err != nil {
		each.finish(keyauth.Answer{}, err)
		return true
	}
	if each.anyRevision {
		fill = Fill{sent: fill.sent}
	}
	verdict := m.core.EndFill(fill, &each.question, item, answer, now)
	m.config.Hooks.filled(verdict == Keep && answer.Decision == keysvcv1.Decision_DECISION_ALLOWED)
	if verdict != AskAgain {
		each.finish(answer, nil)
		return true
	}
	if each.attempts >= maxAttempts {
		each.finish(keyauth.Answer{}, errStale)
		return true
	}
	return false
}

func (f *flight) finish(answer keyauth.Answer, err error) {
	f.answer, f.err = answer, err
	close(f.done)
}
