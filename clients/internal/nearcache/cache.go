package nearcache

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/backoff"
)

const (
	// Before the next session is tried, the cache waits for less than firstWait at first, and
	// for less than longestWait later.
	firstWait   = 50 * time.Millisecond
	longestWait = 5 * time.Second
	// idleAfter is how long after its last use a cache stops renewing its lease.
	idleAfter = 30 * time.Second
	// closeTimeout bounds how long a closed session waits for the server to end the stream.
	closeTimeout = time.Second
)

// Config is what a Cache works with.
type Config struct {
	// Sync is a client of keysvc. Ask asks the same keysvc a question, as merge.Merger.Ask does.
	// Both are required.
	Sync keysvcv1.SyncServiceClient
	Ask  func(ctx context.Context, request *keysvcv1.ValidateKeyRequest, sending func()) (*keysvcv1.ValidateKeyResponse, error)
	// Follow returns a context for the stream of a session, and a function that reports whether the server
	// of that stream is silent although others answer. Default: no server is.
	Follow func(ctx context.Context) (followed context.Context, silent func() bool)
	// WithoutCall answers a question that needs no call. Request makes the message for a
	// question. Read reads a response and returns an error if the response makes no sense. All
	// are required.
	WithoutCall func(question *keyauth.Question) (answer keyauth.Answer, answered bool, err error)
	Request     func(question keyauth.Question) *keysvcv1.ValidateKeyRequest
	Read        func(question *keyauth.Question, response *keysvcv1.ValidateKeyResponse) (keyauth.Answer, error)
	// MaxEntries and MaxBytes bound the cache. Default: 100,000 entries, and 64 MiB.
	MaxEntries, MaxBytes int
	// Timeout bounds one validation that the server is asked for. Default: 4 s.
	Timeout time.Duration
	// Now is the clock. Its times should have a monotonic part (C3). Default: time.Now.
	Now func() time.Time
	// Log receives how sessions end. Default: nothing is logged.
	Log *slog.Logger
	// Hooks are called when something happens.
	Hooks Hooks
}

// Cache is a keyauth.Watcher that answers from memory if it may, and asks the server otherwise.
type Cache struct {
	config Config
	core   *Core
	misses *misses

	ctx  context.Context //nolint:containedctx // the cache's own life
	stop context.CancelFunc
	// running waits for the goroutine that holds the sessions.
	running sync.WaitGroup
	// wanted wakes an idle session.
	wanted chan struct{}

	mutex sync.Mutex
	// asked is when the cache was last known to be in use: when a question missed the memory, or
	// when active last saw new hits or a watch.
	asked     time.Time
	connected bool
	sessions  int64
}

var _ keyauth.Watcher = (*Cache)(nil)

// New returns a Cache. Its first session begins with the first question. The caller closes the
// Cache.
func New(config Config) *Cache {
	if config.MaxEntries <= 0 {
		config.MaxEntries = 100_000
	}
	if config.MaxBytes <= 0 {
		config.MaxBytes = 64 << 20
	}
	if config.Timeout <= 0 {
		config.Timeout = 4 * time.Second
	}
	if config.Follow == nil {
		config.Follow = func(ctx context.Context) (context.Context, func() bool) { return ctx, func() bool { return false } }
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	cache := &Cache{config: config, core: NewCore(config.MaxEntries, config.MaxBytes), wanted: make(chan struct{}, 1)}
	cache.ctx, cache.stop = context.WithCancel(context.Background())
	cache.misses = newMisses(cache.ctx, config, cache.core)
	cache.running.Go(cache.run)
	return cache
}

// Close ends the cache, and returns when none of its goroutines runs any more. Questions in
// progress end with an error.
func (c *Cache) Close() {
	// 1. End the lease for good, because the server must not hear that it ended while Validate
	//    still answers from memory (C11).
	c.core.GiveUp()
	// 2. Tell the server: the session's sender sees the end of the context, and closes its half
	//    of the stream.
	c.stop()
	// 3. Wait for the session and for the calls in progress.
	c.running.Wait()
	c.misses.wait()
}

// Validate implements keyauth.Validator.
func (c *Cache) Validate(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	if found, ok := c.core.Find(&question); ok {
		if now := c.config.Now(); found.Confirm(now) {
			c.core.Used(found, now)
			c.core.entries.hit()
			return found.Answer(), nil
		}
	}
	return c.ask(ctx, question)
}

// ask answers a question that memory did not answer. The question is passed by value: its
// address escapes here, and the question of a hit would otherwise be allocated on the heap.
func (c *Cache) ask(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	if err := ctx.Err(); err != nil {
		return keyauth.Answer{}, err
	}
	now := c.config.Now()
	c.want(now)
	if answer, ok := c.core.Refusal(&question, now); ok {
		return answer, nil
	}
	return c.misses.ask(ctx, &question)
}

// want notes that the cache is in use, and wakes an idle session.
func (c *Cache) want(now time.Time) {
	c.mutex.Lock()
	c.asked = now
	c.mutex.Unlock()
	signal(c.wanted)
}

// signal wakes the receiver of a channel with room for one, now or when it next receives.
func signal(to chan<- struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// Watch implements keyauth.Watcher (rule 10 of its contract). It decides again on each event
// that concerns the key, and at least twice in S, so that it notices an expiry and the end of
// the lease.
func (c *Cache) Watch(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	answer, err := c.Validate(ctx, question)
	if err != nil || answer.Principal == nil {
		return answer, err
	}
	changed, end := c.core.watch(*answer.Principal)
	defer end()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return keyauth.Answer{}, ctx.Err()
		}
		answer, err := c.again(ctx, &question)
		if err != nil || answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
			return answer, err
		}
		timer.Reset(c.core.period() / 2)
	}
}

// again is Validate, except that an answer from memory does not count as a use of the key.
func (c *Cache) again(ctx context.Context, question *keyauth.Question) (keyauth.Answer, error) {
	if found, ok := c.core.Find(question); ok && found.Confirm(c.config.Now()) {
		return found.Answer(), nil
	}
	return c.ask(ctx, *question)
}

// Snapshot returns the state of the cache.
func (c *Cache) Snapshot() Snapshot {
	snapshot := c.core.Snapshot(c.config.Now())
	c.mutex.Lock()
	defer c.mutex.Unlock()
	snapshot.Connected, snapshot.Sessions = c.connected, c.sessions
	return snapshot
}

// period returns S.
func (c *Core) period() time.Duration {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.staleness <= 0 {
		return defaultStaleness
	}
	return c.staleness
}

// run holds one session after another until Close, while the cache is in use.
func (c *Cache) run() {
	retries := backoff.New(firstWait, longestWait)
	for c.untilUsed() {
		began := c.config.Now()
		welcome, farewell, err := c.session()
		if c.ctx.Err() != nil {
			err = nil
		}
		if welcome {
			c.config.Hooks.sessionEnded(err)
		}
		if c.ctx.Err() != nil {
			return
		}
		c.config.Log.Debug("the session of the near-cache has ended", "welcome", welcome, "farewell", farewell, "error", err)
		if lasted := c.config.Now().Sub(began) >= c.core.period(); welcome && lasted {
			retries.Reset()
			if farewell {
				continue // another server takes over at once
			}
		}
		retries.Wait(c.ctx)
	}
}

// untilUsed waits until the cache was in use within idleAfter. It reports whether the cache is still
// open. So a service that asks nothing opens no session, and a server that ends an idle session
// is left in peace.
func (c *Cache) untilUsed() (open bool) {
	for c.ctx.Err() == nil {
		select {
		case <-c.wanted: // perhaps an older wake-up, so asked decides
		default:
		}
		if _, active := c.active(c.core.entries.hitCount()); active {
			return true
		}
		select {
		case <-c.wanted:
		case <-c.ctx.Done():
		}
	}
	return false
}

// session holds one session. It reports whether the server sent Welcome, and whether it sent
// Goodbye.
func (c *Cache) session() (welcome, farewell bool, err error) {
	// 1. Open the stream. When Close ends c.ctx, the stream has closeTimeout more to end in order:
	//    the sender reports the last uses and closes the client's half.
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.ctx))
	defer cancel()
	abort := context.AfterFunc(c.ctx, func() {
		timer := time.AfterFunc(closeTimeout, cancel)
		context.AfterFunc(ctx, func() { timer.Stop() })
	})
	defer abort()
	followed, silent := c.config.Follow(ctx)
	stream, err := c.config.Sync.Sync(followed)
	if err != nil {
		return false, false, err
	}
	// 2. Send Hello, before the sender starts, because Hello is the first message of a session.
	if err := stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: c.core.Hello()}}); err != nil && !errors.Is(err, io.EOF) {
		return false, false, err
	}
	// 3. Start the sender. It waits for begun, because no Ping may be sent before Welcome has
	//    ended the lease of the session before (C9).
	marks := make(chan struct{}, 1)
	begun := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		if c.send(ctx, stream, begun, marks, silent) {
			cancel() // Recv returns the error
		}
	})
	defer sending.Wait()
	defer cancel()
	// 4. Take Welcome.
	response, err := stream.Recv()
	if err != nil {
		return false, false, err
	}
	message := response.GetWelcome()
	if message == nil || message.GetStaleness().AsDuration() <= 0 {
		return false, false, errors.New("the session did not begin with a welcome")
	}
	if c.core.Welcome(message) {
		c.config.Hooks.reset()
	}
	c.config.Hooks.sessionBegan()
	c.connect(true)
	defer c.connect(false)
	close(begun)
	// 5. Take the other messages one after another: their order is what a Pong vouches for (S2).
	for {
		response, err := stream.Recv()
		if err != nil {
			return true, farewell, err
		}
		if response.GetGoodbye() != nil {
			farewell = true
			continue
		}
		if err := c.receive(response, marks); err != nil {
			return true, farewell, err
		}
	}
}

// connect notes that a session has begun, or that it has ended.
func (c *Cache) connect(begun bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.connected = begun
	if begun {
		c.sessions++
	}
}

// receive takes one message of the server, other than Welcome and Goodbye. marks wakes the
// sender to answer a mark.
func (c *Cache) receive(response *keysvcv1.SyncResponse, marks chan<- struct{}) error {
	switch message := response.GetKind().(type) {
	case *keysvcv1.SyncResponse_Events:
		// The events are applied before their mark is answered, because Applied promises that they
		// were.
		c.core.Events(message.Events)
		c.lag(message.Events.GetEvents())
		if message.Events.GetMark() != 0 {
			signal(marks)
		}
	case *keysvcv1.SyncResponse_Mark:
		signal(marks)
	case *keysvcv1.SyncResponse_Pong:
		c.core.Pong(message.Pong)
	case *keysvcv1.SyncResponse_Reset_:
		c.core.Reset(message.Reset_)
		c.config.Hooks.reset()
	default:
		// A message of a newer server, or a second Welcome: changes may be missing.
		c.core.Reset(&keysvcv1.SyncReset{})
		c.config.Hooks.reset()
		return errors.New("the server sent a message that this version does not know")
	}
	return nil
}

// lag calls the hook Invalidated with the age of each change.
func (c *Cache) lag(events []*keysvcv1.SyncEvent) {
	if c.config.Hooks.Invalidated == nil {
		return
	}
	now := c.config.Now().Round(0)
	for _, each := range events {
		if each.GetTime() != nil {
			c.config.Hooks.invalidated(now.Sub(each.GetTime().AsTime()))
		}
	}
}

// send sends the client's messages after Hello, until the stream ends or the cache is closed. No
// other goroutine sends on the stream meanwhile. send reports whether it gave the server up: the server
// says nothing although others answer, so another one is to take the session over.
func (c *Cache) send(ctx context.Context, stream keysvcv1.SyncService_SyncClient, begun, marks <-chan struct{}, silent func() bool) (givenUp bool) {
	for waits := true; waits; {
		timer := time.NewTimer(c.core.period())
		select {
		case <-begun:
			waits = false
		case <-timer.C:
			if silent() {
				return true
			}
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-c.ctx.Done():
			timer.Stop()
			stream.CloseSend() //nolint:errcheck // it never fails
			return false
		}
		timer.Stop()
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var hits int64
	for {
		var message *keysvcv1.SyncRequest
		select {
		case <-marks:
			message = &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Applied{Applied: c.core.Applied()}}
		case <-timer.C:
			timer.Reset(c.untilPing())
			if silent() && !c.core.freshness.Current().Holds(c.config.Now()) {
				return true
			}
			if c.core.awaitsPong(c.config.Now()) {
				continue
			}
			var active bool
			if hits, active = c.active(hits); !active && !c.sleep(ctx, timer, marks, stream) {
				return false
			}
			message = &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: c.core.Ping(c.config.Now())}}
		case <-ctx.Done():
			return false
		case <-c.ctx.Done():
			c.farewell(stream)
			return false
		}
		if stream.Send(message) != nil {
			return false // Recv returns the error
		}
	}
}

// untilPing returns the time until the next ping: S/3, or up to a tenth less.
func (c *Cache) untilPing() time.Duration {
	third := c.core.period() / 3
	return third - rand.N(third/10+1) //nolint:gosec // G404: jitter is no secret
}

// farewell reports the last uses, then closes the client's half of the stream. A closed half
// tells the server that the lease was given up (S3); Close has given it up before. Nothing else
// may close the half: the server would stop waiting for a client that still answers from memory.
func (c *Cache) farewell(stream keysvcv1.SyncService_SyncClient) {
	if last := c.core.Ping(c.config.Now()); len(last.GetUses()) > 0 {
		stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: last}}) //nolint:errcheck // the stream ends in any case
	}
	stream.CloseSend() //nolint:errcheck // it never fails
}

// active returns the number of hits so far, and reports whether the cache was in use within
// idleAfter. before is the number that the last call returned.
func (c *Cache) active(before int64) (hits int64, active bool) {
	snapshot := c.core.Snapshot(c.config.Now())
	now := c.config.Now()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if snapshot.Hits != before || snapshot.Watches > 0 {
		c.asked = now
	}
	return snapshot.Hits, !c.asked.IsZero() && now.Sub(c.asked) <= idleAfter
}

// sleep waits until a question misses the memory, and answers marks meanwhile. It reports whether
// the session goes on.
func (c *Cache) sleep(ctx context.Context, timer *time.Timer, marks <-chan struct{}, stream keysvcv1.SyncService_SyncClient) bool {
	timer.Stop()
	select {
	case <-c.wanted: // an older wake-up
	default:
	}
	for {
		select {
		case <-c.wanted:
			timer.Reset(c.untilPing())
			return true
		case <-marks:
			if stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Applied{Applied: c.core.Applied()}}) != nil {
				return false
			}
		case <-ctx.Done():
			return false
		case <-c.ctx.Done():
			c.farewell(stream)
			return false
		}
	}
}
