// Package server wires a keysvc process together: it knows the concrete store, puts
// the services over it, and starts and stops everything in order.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/backup"
	"github.com/scribe-mail/keysvc/internal/budget"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/clock"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/connection"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/feed"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/metrics"
	"github.com/scribe-mail/keysvc/internal/notices"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/refusals"
	"github.com/scribe-mail/keysvc/internal/reload"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/sinkwriter"
	"github.com/scribe-mail/keysvc/internal/tracing"
	"github.com/scribe-mail/keysvc/internal/usage"
	"github.com/scribe-mail/keysvc/internal/validation"
	"github.com/scribe-mail/keysvc/internal/version"
)

const (
	// flushTimeout bounds the last write of last-used times. It is less than stopGrace, so
	// that there is time to close the store.
	flushTimeout = 3 * time.Second
	// workspaceShare is the part of the slots for changes that those of one workspace may
	// take: a quarter.
	workspaceShare = 4
)

// systemActor is recorded in audit events for what the process does by itself.
var systemActor = audit.Actor{Caller: "system", Workspaces: access.All()}

// Store is the part of a store that a Server needs.
type Store interface {
	storage.Source
	storage.Committer
	storage.KeyReader
	storage.MemberReader
	storage.AuditReader
	storage.FeedReader
	storage.UsageWriter
}

// Config configures a Server.
type Config struct {
	// Store holds everything. Required; the Server does not close it.
	Store Store
	// Settings are the limits, and what is served. Required.
	Settings config.Settings
	// Policy fills a store that has none. Required.
	Policy *policy.Policy
	// Now is the wall clock; the Server's own clock follows it and never goes back. Default:
	// time.Now. Leases of near-caches do not use it; they count the time that passes.
	Now func() time.Time
	// Passed returns how much time has passed since some moment, whatever the wall clock is set
	// to. It shows jumps of the wall clock. Default: clock.Booted if Now is nil; without it no
	// jump is noticed.
	Passed func() time.Duration
	// Random yields ids and secrets. Default: the system's CSPRNG.
	Random io.Reader
	// RingSize is how many changes are kept for near-caches that read slowly or come back.
	// Default: feed.DefaultRingSize.
	RingSize int
	// Ticks say when to look at files that may have changed. Default: a tick every 500 ms.
	Ticks <-chan time.Time
	// Wait waits until notices are looked for again, or sent again, or until the wall clock is past the
	// newest change at a start, and reports whether the context did
	// not end meanwhile. Default: notices.Wait.
	Wait func(ctx context.Context, duration time.Duration) bool
	// Log receives what operators should know. Default: nothing.
	Log *slog.Logger
	// Hooks are called for what happens, in addition to the log. Default: no hooks.
	Hooks events.Hooks
	// Judge decides who a peer is. Default: the callers file of the settings.
	Judge callers.Judge
	// InMemory allows listeners in memory, such as grpc's bufconn, in Serve. Their connections
	// count as those from this machine. It is for tests.
	InMemory bool
}

// Server is a keysvc process without its store. Its components fill it in when they start.
type Server struct {
	config Config
	log    *slog.Logger
	hooks  events.Hooks
	// metrics count what happens; nil if no listener serves them.
	metrics *metrics.Metrics
	slots   *slotTable
	// judge says who calls by the callers file, and files are what is read again while the process runs.
	judge *callers.TableJudge
	files *reload.Poller
	// look gets a value when the files are to be looked at now, and reprove when proofs have changed
	// that are not files.
	look, reprove chan struct{}
	proofs        *proofs
	// tracing makes the spans of calls; nil if the settings name no collector.
	tracing *tracing.Tracing
	// budget bounds the bytes that calls hold.
	budget *budget.Budget
	// listeners are those that the component of the calls serves.
	listeners []servedListener
	// parts are the components that New started; nil in a process, which starts them.
	parts *components

	projection *projection.Projection
	// outages tells when the store is down, and loads counts how often it was loaded.
	outages *outages
	loads   atomic.Int64
	// started is when this process took over the store, began the same by the wall clock, and position
	// the store's position then. committed is the time of the newest change since, in Unix nanoseconds.
	started    time.Time
	began      time.Time
	committed  atomic.Int64
	position   storage.Position
	clock      *clock.Clock
	reportJump sync.Once
	// refusesChanges is set while the settings say read-only, and readOnly once the changes from before have
	// ended as well.
	refusesChanges, readOnly atomic.Bool
	// changing is keys, for setReadOnly, which may come before keys is set.
	changing atomic.Pointer[keys.Manager]
	// others compares the clock with those of the other servers of the store; nil if there can be none.
	// reportedAhead is when a change with a time far ahead was reported last.
	others        *clock.Others
	reportedAhead time.Time
	// sweeps is false if nothing may be purged until a later start.
	sweeps bool
	// sink writes the audit sink of a store that does not write it; nil without one.
	sink atomic.Pointer[sinkwriter.Writer]
	// pruned is when sweep looked for old audit events last.
	pruned   time.Time
	hub      *feed.Hub
	keys     *keys.Manager
	recorder *usage.Recorder
	// backups copies the store.
	backups *backup.Backups
	// sender sends the notices that keys end; nil if the settings name no receiver. ending are the keys that
	// end soon, as they were counted last.
	sender *notices.Sender
	ending atomic.Pointer[[]projection.EndingCounts]
	// forms are what callers present, owned by the component of that name.
	forms forms
	// refusals is nil before the store is open, and if the store keeps none.
	refusals atomic.Pointer[refusals.Collector]
	// lastFlush is set at the stop, before the last flush of last-used times.
	lastFlush bool
	// connections are those of all listeners.
	connections *connection.Set
	calls       *calls
	// distrusted is closed when the store cannot be trusted any more.
	distrusted chan struct{}
}

// newServer returns a server of which nothing runs yet.
func newServer(config Config) *Server {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.Wait == nil {
		config.Wait = notices.Wait
	}
	server := &Server{
		config: config, log: config.Log,
		slots: newSlotTable(config.Settings), budget: budget.New(int64(config.Settings.MaxBufferedBytes)),
		distrusted: make(chan struct{}), look: make(chan struct{}, 1), reprove: make(chan struct{}, 1),
	}
	listeners := []events.Hooks{logEvents(config.Log), refusalHooks(&server.refusals), server.rememberCommits(), config.Hooks}
	if config.Settings.Metrics() { // otherwise validations need not read the clock
		server.metrics = newMetrics(server)
		listeners = append(listeners, server.metrics.Hooks())
	}
	server.hooks = events.Join(listeners...)
	server.refusesChanges.Store(config.Settings.ReadOnly)
	server.readOnly.Store(config.Settings.ReadOnly)
	server.judge = server.newJudge()
	if config.Judge == nil {
		server.config.Judge = server.judge
	}
	server.proofs = newProofs(server)
	return server
}

// New loads the store and returns a server that is ready to Serve. Its errors are
// storage's and those of the policy.
func New(ctx context.Context, config Config) (*Server, error) {
	server := newServer(config)
	server.parts = newComponents()
	if err := server.parts.start(ctx, append([]component{server.callersFile(), server.noticeSecret()}, server.components()...)); err != nil {
		server.Stop(ctx)
		return nil, err
	}
	return server, nil
}

// components returns what runs over a store, in the order of the start.
func (s *Server) components() []component {
	return []component{
		{name: "traces", start: s.trace, stop: s.stopTracing},
		{name: "projection", start: s.load},
		{name: "clock", start: s.startClock, run: s.watchClock},
		{name: "feed", start: s.fillFeed},
		{name: "change log", run: s.follow},
		{name: "census of keys", run: func(ctx context.Context) error { s.projection.Recount(ctx); return nil }},
		{name: "policy", start: s.installPolicy},
		{name: "shared settings", start: s.agreeOnSettings},
		{name: "last-used times", start: s.recordUses, run: s.flushUses, stop: s.flushLastUses},
		{name: "refusals", start: s.collectRefusals, run: s.flushRefusals, stop: s.flushLastRefusals},
		{name: "notices", start: s.prepareNotices},
		{name: "sweep", start: s.prepareSink, run: s.lead},
		{name: "backups", start: s.prepareBackups, run: s.backUp},
		{name: "keys that end", run: s.countEnding},
		{name: "forms of tokens", run: s.watchForms, stop: s.reportLastForms},
		{name: "connections", start: s.makeConnections, run: s.sweepConnections},
		{name: "calls", start: s.startCalls, run: s.watchCalls, stop: s.stopCalls},
		{name: "clocks of other servers", run: s.compareClocks},
		{name: "outages of the store", run: s.watchOutages},
		{name: "files", run: s.watchFiles},
		{name: "memory", run: s.returnMemory},
		{name: "half-open calls", run: func(ctx context.Context) error { s.calls.gate.Run(ctx); return nil }},
	}
}

// trace makes what sends traces, if the settings name a collector.
func (s *Server) trace(ctx context.Context) (err error) {
	if s.config.Settings.TraceEndpoint == "" {
		return nil
	}
	s.tracing, err = tracing.New(ctx, tracing.Config{
		Endpoint: s.config.Settings.TraceEndpoint, OneIn: s.config.Settings.TraceOneIn, Version: version.Text(), Log: s.log,
	})
	return err
}

// stopTracing sends the last traces.
func (s *Server) stopTracing(ctx context.Context) error {
	if err := s.tracing.Stop(ctx); err != nil {
		s.log.WarnContext(ctx, "the last traces could not be sent", "error", err)
	}
	return nil
}

// load fills the projection with what the store holds.
func (s *Server) load(ctx context.Context) (err error) {
	// From here on the store belongs to this process: a process that served it before has stopped.
	s.started = time.Now() // leases go by the time that passes
	s.began = s.wallClock()()
	s.outages = &outages{hooks: s.hooks}
	s.projection = projection.New(observed(s.config.Store, s.outages, s.loaded), s.log)
	if s.position, err = s.projection.Load(ctx); err != nil {
		return fmt.Errorf("loading the store: %w", err)
	}
	return nil
}

// fillFeed makes the hub, with the changes that the store has kept.
func (s *Server) fillFeed(ctx context.Context) error {
	size := cmp.Or(s.config.RingSize, feed.DefaultRingSize)
	history, err := s.config.Store.ListFeed(ctx, min(size, feed.MaxHistory))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		s.log.WarnContext(ctx, "the change log could not be read: near-caches begin anew", "error", err)
		history = nil
	}
	staleness, previous, err := s.staleness()
	if err != nil {
		return err
	}
	s.hub = feed.New(feed.Config{
		Epoch: s.config.Store.Epoch(), Revision: s.position.Revision, History: history, Started: s.started,
		RingSize:  size,
		Staleness: staleness, PreviousStaleness: previous, Shared: s.settingsKeeper() != nil,
		MaxSessions: s.config.Settings.MaxSessions,
		MaxAge:      s.config.Settings.SessionAge,
		Observer:    sessionObserver{s.hooks},
	})
	s.projection.PublishTo(publisher{s.hub, s.hooks, s.followTime})
	return nil
}

// follow applies committed changes to the projection. If it fails, the projection must not be
// served any longer.
func (s *Server) follow(ctx context.Context) error {
	err := s.projection.Follow(ctx)
	if ctx.Err() == nil {
		close(s.distrusted)
	}
	return err
}

// installPolicy makes the manager of keys, and stores a policy if the store has no policy.
func (s *Server) installPolicy(ctx context.Context) error {
	uses, _ := storage.UsageReaderOf(s.config.Store)
	fencer, _ := storage.FencerOf(s.config.Store)
	s.keys = keys.New(keys.Config{
		Store: ownCommits(s.tracing.Store(s.config.Store), s.others), Uses: uses, Fencer: fencer, Projection: s.projection,
		Now: s.clock.Now, ClockTrusted: s.clockTrusted, LatestTime: s.latestTime,
		TokensRefused: s.config.Settings.Tokens == config.TokensRefused, ReadOnly: s.refusesChanges.Load,
		Settings: s.settingsKeeper(), Staleness: s.ownStaleness(),
		Random: s.config.Random, MaxWaiting: max(1, s.config.Settings.MaxInFlight/stayingShare/workspaceShare),
	})
	s.changing.Store(s.keys)
	active, err := s.keys.InstallPolicy(ctx, systemActor, s.config.Policy)
	if err != nil {
		return fmt.Errorf("installing it: %w", err)
	}
	// If the settings name no policy file, nobody expects the built-in policy to be active still.
	if wanted := s.config.Policy.Digest(); active.Digest != wanted && s.config.Settings.Policy != "" {
		s.log.WarnContext(ctx, "the store has another policy, which is the one that counts; change it with keysvc policy apply",
			"active", active.Digest, "given", wanted)
	}
	s.log.InfoContext(ctx, "store loaded", "epoch", s.config.Store.Epoch(), "revision", s.position.Revision, "policy", active.Digest)
	return nil
}

// recordUses makes the recorder of last-used times.
func (s *Server) recordUses(context.Context) error {
	s.recorder = usage.NewRecorder(postponedUses{s.config.Store, s}, func(keys int, err error) {
		if errors.Is(err, errPostponed) {
			return
		}
		s.hooks.UsesFlushed(events.Flush{Keys: keys, Last: s.lastFlush, Error: err})
	})
	return nil
}

// flushUses writes last-used times at every interval.
func (s *Server) flushUses(ctx context.Context) error {
	s.recorder.Run(ctx, s.config.Settings.UsageEvery())
	return nil
}

// flushLastUses writes the last-used times that were noted since the last flush. It may take
// flushTimeout, even if the drain timeout has passed.
func (s *Server) flushLastUses(ctx context.Context) error {
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	s.lastFlush = true          // flushUses has returned: nobody else flushes
	_ = s.recorder.Flush(flush) // the hook has its error, and the stop goes on
	return nil
}

// lead does what one process of those over a store does at a time.
func (s *Server) lead(ctx context.Context) error {
	work := func(ctx context.Context) {
		var working sync.WaitGroup
		working.Go(func() { s.sweep(ctx) })
		if writer := s.sink.Load(); writer != nil {
			working.Go(func() { writer.Run(ctx) })
		}
		if s.sender != nil {
			working.Go(func() { s.sender.Run(s.background(ctx)) })
		}
		working.Wait()
	}
	if elector, has := storage.ElectorOf(s.config.Store); has {
		elector.Lead(ctx, work)
	} else {
		work(ctx)
	}
	return nil
}

// sweep purges records past their retention, at every interval, and old audit events once a day.
func (s *Server) sweep(ctx context.Context) {
	if !s.sweeps {
		return
	}
	s.keys.SweepEvery(ctx, systemActor, s.config.Settings.SweepInterval, func(swept keys.Swept, err error) {
		s.hooks.SweepDone(events.Sweep{Keys: swept.Keys, Members: swept.Members, Error: err})
		s.pruneAudit(ctx)
	})
}

// pruneInterval is how often old audit events are looked for.
const pruneInterval = 24 * time.Hour

// pruneAudit deletes old audit events of the store, and old files of its sink, if the store can, the
// clock is right as far as anybody knows, and the last time was a day ago.
func (s *Server) pruneAudit(ctx context.Context) {
	settings, now := s.config.Settings, s.clock.Now()
	if s.refusesChanges.Load() || s.clockTrusted() != nil || now.Sub(s.pruned) < pruneInterval {
		return
	}
	s.pruned = now
	var prune events.Prune
	if pruner, can := storage.AuditPrunerOf(s.config.Store); can && settings.AuditRetentionDays > 0 {
		prune.Events, prune.Error = pruner.PruneAudit(ctx, now.AddDate(0, 0, -settings.AuditRetentionDays))
	}
	if trimmer := s.sinkTrimmer(); trimmer != nil && settings.AuditSinkKeepDays > 0 {
		var err error
		prune.Files, err = trimmer.TrimSink(ctx, now.AddDate(0, 0, -settings.AuditSinkKeepDays))
		prune.Error = errors.Join(prune.Error, err)
	}
	if ctx.Err() != nil {
		prune.Error = nil
	}
	s.hooks.AuditPruned(prune)
}

// startCalls makes the services, and begins to serve the listeners.
func (s *Server) startCalls(context.Context) error {
	validator := validation.New(s.projection, s.tracing.Store(s.config.Store), s.clock.Now)
	validator.DoubtTime(s.latestTime)
	validator.RecordTo(s.recorder)
	if s.config.Settings.Tokens == config.TokensRefused {
		validator.RefuseTokens()
	}
	s.calls = newCalls(s, validator)
	for _, listener := range s.listeners {
		s.calls.begin(listener)
		s.log.Info("serving", "address", address(listener), "purpose", string(listener.purpose), "data", s.config.Settings.Data)
	}
	return nil
}

// watchCalls waits until serving a listener fails, or until the store cannot be trusted
// any more; then it ends all calls at once.
func (s *Server) watchCalls(ctx context.Context) error {
	select {
	case err := <-s.calls.failed:
		return err
	case <-s.distrusted:
		s.calls.cutOff()
	case <-ctx.Done():
	}
	return nil
}

// stopCalls drains; see calls.stop.
func (s *Server) stopCalls(ctx context.Context) error {
	select {
	case <-s.distrusted: // watchCalls may have ended without seeing it
		s.calls.cutOff()
	default:
	}
	s.calls.stop(ctx)
	return nil
}

// Serve answers all calls on a listener until Stop, or until the store cannot be trusted
// any more; then the error says why, and Stop must still be called. It closes the
// listener. It is for servers that New returned.
func (s *Server) Serve(listener net.Listener) error {
	return s.ServePurpose(listener, config.PurposeAll)
}

// ServePurpose is Serve for a listener that serves one purpose.
func (s *Server) ServePurpose(listener net.Listener, purpose config.Purpose) error {
	served := make(chan error, 1)
	wanted := servedListener{Listener: listener, purpose: purpose, connections: s.connectionsOf(listener, purpose)}
	go func() { served <- s.calls.serve(wanted) }()
	select {
	case err := <-served:
		select {
		case <-s.distrusted:
			return <-s.parts.failure()
		default:
			return err
		}
	case err := <-s.parts.failure():
		return err
	}
}

// Stop stops a server that New returned: it no longer serves, waits for the calls in
// flight until the context ends, cuts off the rest, and returns when nothing runs any more.
func (s *Server) Stop(ctx context.Context) {
	if err := s.parts.stop(ctx); err != nil {
		s.log.WarnContext(ctx, "the stop failed", "error", err)
	}
}

// Feed returns the state of the sessions of near-caches.
func (s *Server) Feed() feed.Snapshot { return s.hub.Snapshot() }

// Buffered returns how many bytes of requests and answers calls hold.
func (s *Server) Buffered() budget.Snapshot { return s.budget.Snapshot() }

// HalfOpen returns how many calls wait for their request.
func (s *Server) HalfOpen() int { return s.calls.gate.HalfOpen() }

// OpenStreams returns how many streams are open on all connections, without those of near-caches.
func (s *Server) OpenStreams() int64 { return s.connections.Streams() }

// Calls returns how many calls are in flight and were refused, by kind.
func (s *Server) Calls() []Calls { return s.slots.snapshot() }

// Connections returns how many connections there are.
func (s *Server) Connections() connection.Counts { return s.connections.Counts() }
