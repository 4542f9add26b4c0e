package nearcache

import (
	"context"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const (
	// maxFlights is how many questions may be on their way.
	maxFlights = 16384
	// maxAttempts is how often a question is asked if its answers are outdated when they come.
	maxAttempts = 3
)

// misses asks the server what memory cannot answer. Equal questions are asked once: a question can
// be joined until it is sent (C6). Config.Ask merges questions into calls.
type misses struct {
	ctx    context.Context //nolint:containedctx // the cache's own life
	config Config
	core   *Core
	// running waits for the flights.
	running sync.WaitGroup

	mutex sync.Mutex
	// waiting are the flights that can be joined, and flights is the number of all.
	waiting map[digest]*flight
	flights int
}

// flight is one question for the server, with a goroutine of its own: no caller's leaving ends it,
// because others may have joined, and because the answer is kept. Every caller of ask that joined
// it waits for done.
type flight struct {
	digest   digest
	question keyauth.Question
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

// wait returns when no flight is on its way. Call it after the context has ended.
func (m *misses) wait() { m.running.Wait() }

// ask asks the server. It takes at most Config.Timeout.
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

// join returns the flight of a question, and begins one if none can be joined.
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
	if m.flights >= maxFlights {
		return nil, errBusy
	}
	begun := &flight{digest: known, question: *question, done: make(chan struct{})}
	m.waiting[known] = begun
	m.flights++
	m.running.Go(func() {
		answer, err := m.fly(begun)
		m.land(begun)
		begun.finish(answer, err)
	})
	return begun, nil
}

// land notes the end of a flight.
func (m *misses) land(ended *flight) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.flights--
	if m.waiting[ended.digest] == ended {
		delete(m.waiting, ended.digest)
	}
}

// send returns the state of the Core for a question that is sent now. From now on no caller can
// join the flight, because the answer may be as of a moment before that caller asked (C6). An event
// that comes after this is noticed by EndFill (C4).
func (m *misses) send(sent *flight, request *keysvcv1.ValidateKeyRequest) Fill {
	m.mutex.Lock()
	if m.waiting[sent.digest] == sent {
		delete(m.waiting, sent.digest)
	}
	m.mutex.Unlock()
	fill := m.core.BeginFill(m.config.Now())
	if fill.Epoch() != "" && fill.MinRevision > 0 && !sent.anyRevision {
		request.Epoch, request.MinRevision = fill.Epoch(), fill.MinRevision
	}
	return fill
}

// fly asks the server until the answer can be used.
func (m *misses) fly(f *flight) (keyauth.Answer, error) {
	for attempts := 1; ; {
		request := m.config.Request(f.question)
		request.IncludeGrant = true
		var fill Fill // of the newest sending: the request may be sent in a batch, and then again alone
		response, err := m.config.Ask(m.ctx, request, func() { fill = m.send(f, request) })
		switch {
		case m.ctx.Err() != nil:
			return keyauth.Answer{}, errClosed
		case err != nil && !f.anyRevision && reasonOf(err) == keysvcv1.ErrorReason_ERROR_REASON_EPOCH_MISMATCH:
			// The server has another history. The session will notice that; this question need not
			// wait for it.
			f.anyRevision = true
			continue
		case err != nil:
			return keyauth.Answer{}, err
		}
		answer, err := m.config.Read(&f.question, response)
		if err != nil {
			return keyauth.Answer{}, err
		}
		if f.anyRevision {
			fill = Fill{sent: fill.sent}
		}
		verdict := m.core.EndFill(fill, &f.question, response, answer, m.config.Now())
		m.config.Hooks.filled(verdict == Keep && answer.Decision == keysvcv1.Decision_DECISION_ALLOWED)
		if verdict != AskAgain {
			return answer, nil
		}
		if attempts++; attempts > maxAttempts {
			return keyauth.Answer{}, errStale
		}
	}
}

// reasonOf returns the reason that keysvc gives for an error.
func reasonOf(err error) keysvcv1.ErrorReason {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return keysvcv1.ErrorReason(keysvcv1.ErrorReason_value["ERROR_REASON_"+info.GetReason()])
		}
	}
	return keysvcv1.ErrorReason_ERROR_REASON_UNSPECIFIED
}

func (f *flight) finish(answer keyauth.Answer, err error) {
	f.answer, f.err = answer, err
	close(f.done)
}
