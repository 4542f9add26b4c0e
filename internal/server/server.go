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
	"time"

	"google.golang.org/grpc"
	channelz "google.golang.org/grpc/channelz/service"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/clock"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/feed"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/usage"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// What no operator needs to set.
const (
	// connectionTimeout bounds a connection's handshake.
	connectionTimeout = 10 * time.Second
	// keepaliveTime and keepaliveTimeout find peers that went away without a word.
	keepaliveTime    = time.Minute
	keepaliveTimeout = 20 * time.Second
	// flushTimeout bounds the last write of last-used times. It is less than stopGrace, so
	// that there is time to close the store.
	flushTimeout = 3 * time.Second
	// busyWorkspace is the part of the room for changes that those of one workspace may take.
	busyWorkspace = 4
	// keepaliveMinimum is how often a client may ping.
	keepaliveMinimum = 10 * time.Second
)

// systemActor is recorded for what the process does by itself.
var systemActor = audit.Actor{Caller: "system"}

// Store is the part of a store that a Server needs.
type Store interface {
	storage.Source
	storage.Committer
	storage.KeyReader
	storage.MemberReader
	storage.FeedReader
	storage.UsageWriter
}

// Config is what a Server works with.
type Config struct {
	// Store holds everything. Required; the Server does not close it.
	Store Store
	// Settings are the limits, and what is served. Required.
	Settings config.Settings
	// Policy fills a store that has none. Required.
	Policy *policy.Policy
	// Now is the clock; the Server keeps it from going back. Default: time.Now. Leases of
	// near-caches do not go by it, but by the time that passes.
	Now func() time.Time
	// Passed says how much time has passed, whatever the clock is set to: how jumps of the
	// clock are noticed. Default: clock.Booted if Now is nil, else nothing, and no jump is.
	Passed func() time.Duration
	// Random yields ids and secrets. Default: the system's CSPRNG.
	Random io.Reader
	// RingSize is how many changes are kept for near-caches that read slowly or come back.
	// Default: feed.DefaultRingSize.
	RingSize int
	// Log receives what operators should know. Default: nothing.
	Log *slog.Logger
}

// Server is a keysvc process without its listener and store.
type Server struct {
	grpc       *grpc.Server
	door       *door
	health     *health.Server
	projection *projection.Projection
	hub        *feed.Hub
	keys       *keys.Manager
	recorder   *usage.Recorder
	log        *slog.Logger
	clock      *clock.Clock
	sayJump    sync.Once
	// sweeps is set unless nothing may be purged.
	sweeps bool

	// background lasts until stopFollowing ends it and following, which is what runs besides the calls.
	background    context.Context //nolint:containedctx // the server's own lifetime, not a call's
	stopFollowing context.CancelFunc
	following     sync.WaitGroup
	failed        chan error
	// stopping lasts until Stop begins and calls beginStop.
	stopping  context.Context //nolint:containedctx // as background
	beginStop context.CancelFunc
}

// New loads the store and returns a server that is ready to serve. Its errors are
// storage's and those of the policy.
func New(ctx context.Context, settings Config) (*Server, error) {
	log := settings.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	server := &Server{
		projection: projection.New(settings.Store, log),
		recorder:   usage.NewRecorder(settings.Store, log),
		log:        log,
		failed:     make(chan error, 1),
	}
	server.stopping, server.beginStop = context.WithCancel(context.Background())
	// The store is this process's: whoever served it before has stopped.
	started := time.Now() //nolint:forbidigo // leases go by the time that passes
	position, err := server.projection.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("loading the store: %w", err)
	}
	if err := server.startClock(ctx, settings, position); err != nil {
		return nil, err
	}
	server.keys = keys.New(keys.Config{
		Store: settings.Store, Projection: server.projection, Now: server.clock.Now, ClockTrusted: server.clockTrusted,
		Random: settings.Random, MaxWaiting: max(1, settings.Settings.MaxInFlight/busyWorkspace),
	})
	if err := server.makeHub(ctx, settings, position, started); err != nil {
		return nil, err
	}
	server.follow()
	active, err := server.keys.InstallPolicy(ctx, systemActor, settings.Policy)
	if err != nil {
		server.Stop(ctx)
		return nil, fmt.Errorf("installing the policy: %w", err)
	}
	// Nobody who did not name a policy expects the built-in one to be active still.
	if wanted := settings.Policy.Digest(); active.Digest != wanted && settings.Settings.Policy != "" {
		log.WarnContext(ctx, "the store has another policy, which is the one that counts; change it with keysvc policy apply",
			"active", active.Digest, "given", wanted)
	}
	validator := validation.New(server.projection, settings.Store, server.clock.Now)
	validator.DoubtTime(server.clock.Latest)
	validator.RecordTo(server.recorder)
	server.register(settings, validator, server.clock.Now)
	server.work(settings.Settings)
	log.InfoContext(ctx, "store loaded", "epoch", settings.Store.Epoch(), "revision", position.Revision, "policy", active.Digest)
	return server, nil
}

// makeHub makes the hub, with what the store has kept of its changes.
func (s *Server) makeHub(ctx context.Context, settings Config, position storage.Position, started time.Time) error {
	size := cmp.Or(settings.RingSize, feed.DefaultRingSize)
	history, err := settings.Store.ListFeed(ctx, size)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		s.log.WarnContext(ctx, "the change log could not be read: near-caches begin anew", "error", err)
		history = nil
	}
	s.hub = feed.New(feed.Config{
		Epoch: settings.Store.Epoch(), Revision: position.Revision, History: history, Started: started,
		RingSize:    size,
		Staleness:   settings.Settings.Staleness,
		MaxSessions: settings.Settings.MaxSessions,
		MaxAge:      settings.Settings.SessionAge,
	})
	s.projection.PublishTo(s.hub)
	return nil
}

// Feed returns how the sessions of near-caches stand.
func (s *Server) Feed() feed.Snapshot { return s.hub.Snapshot() }

// Calls returns how the calls stand, by kind.
func (s *Server) Calls() []Calls { return s.door.rooms.snapshot() }

// follow lets the projection follow the store until Stop.
func (s *Server) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	s.background, s.stopFollowing = ctx, cancel
	s.following.Go(func() {
		if err := s.projection.Follow(ctx); ctx.Err() == nil {
			s.failed <- err
		}
	})
}

// work does what is not asked for by a call: writing last-used times, and purging.
func (s *Server) work(settings config.Settings) {
	s.following.Go(func() { s.recorder.Run(s.background, settings.UsageInterval) })
	s.following.Go(func() { s.watchClock(s.background) })
	if !s.sweeps {
		return
	}
	s.following.Go(func() {
		s.keys.SweepEvery(s.background, systemActor, settings.SweepInterval, func(swept keys.Swept, err error) {
			if err != nil {
				s.log.WarnContext(s.background, "the sweep broke off; the next one goes on", "error", err)
			}
			if swept != (keys.Swept{}) {
				s.log.InfoContext(s.background, "records past their retention were purged", "keys", swept.Keys, "members", swept.Members)
			}
		})
	})
}

// register makes the gRPC server.
func (s *Server) register(config Config, validator *validation.Validator, now func() time.Time) {
	errors := service.Errors{Log: s.log}
	validations := service.NewValidation(validator, errors)
	s.door = newDoor(s.stopping, config.Settings, s.log, now, errors, validations.Work)
	s.grpc = grpc.NewServer(
		grpc.UnaryInterceptor(s.door.unary),
		grpc.StreamInterceptor(s.door.stream),
		grpc.MaxConcurrentStreams(uint32(config.Settings.MaxStreams)),  //nolint:gosec // validated: at most 2^20
		grpc.MaxHeaderListSize(uint32(config.Settings.MaxHeaderBytes)), //nolint:gosec // validated: at most 2^20
		grpc.MaxRecvMsgSize(config.Settings.MaxMessageBytes),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinimum, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	keyService, memberService, policyService := service.NewManagement(s.keys, errors, requestIDOf)
	keysvcv1.RegisterKeyServiceServer(s.grpc, keyService)
	keysvcv1.RegisterMemberServiceServer(s.grpc, memberService)
	keysvcv1.RegisterPolicyServiceServer(s.grpc, policyService)
	keysvcv1.RegisterValidationServiceServer(s.grpc, validations)
	keysvcv1.RegisterSyncServiceServer(s.grpc, service.NewSync(s.hub, s.projection, validator, errors))
	s.health = health.NewServer()
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, grpc_health_v1.HealthCheckResponse_SERVING)
	}
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	if config.Settings.Channelz {
		channelz.RegisterChannelzServiceToServer(s.grpc)
	}
}

// Serve answers calls on a listener until Stop, or until the store cannot be trusted
// any more; then the error says why, and Stop must still be called. It closes the
// listener.
func (s *Server) Serve(listener net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(listener) }()
	select {
	case err := <-served:
		if errors.Is(err, grpc.ErrServerStopped) {
			return nil
		}
		return err
	case err := <-s.failed:
		s.health.Shutdown()
		// It closes listener and connections at once, and then waits for handlers, which may
		// hang with the store; Stop waits for them.
		go s.grpc.Stop()
		return err
	}
}

// Stop says that the server no longer serves, waits for the calls in flight until the
// context ends, cuts off the rest, and returns when nothing runs any more.
func (s *Server) Stop(ctx context.Context) {
	if s.grpc != nil {
		s.health.Shutdown()
		s.hub.Stop() // first, as the goodbyes must be there when the streams end
		s.beginStop()
		drained := make(chan struct{})
		go func() {
			s.grpc.GracefulStop()
			close(drained)
		}()
		select {
		case <-drained:
		case <-ctx.Done():
			s.log.WarnContext(ctx, "calls in flight are cut off: the drain timeout passed")
			s.grpc.Stop()
			<-drained
		}
	}
	s.stopFollowing()
	s.following.Wait()
	// The last uses are worth a moment, whatever is left of the drain.
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	if err := s.recorder.Flush(flush); err != nil {
		s.log.WarnContext(ctx, "the last last-used times could not be written", "error", err)
	}
}
