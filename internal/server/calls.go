package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	channelz "google.golang.org/grpc/channelz/service"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/budget"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/connection"
	"github.com/scribe-mail/keysvc/internal/feed"
	"github.com/scribe-mail/keysvc/internal/metrics"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/tracing"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// Bounds that no operator needs to set.
const (
	// connectionTimeout bounds the handshake of a connection, up to the client's first SETTINGS.
	connectionTimeout = 10 * time.Second
	// keepaliveTime is the silence after which a peer gets a ping, and keepaliveTimeout the
	// longest time that its answer may take.
	keepaliveTime    = time.Minute
	keepaliveTimeout = 20 * time.Second
	// keepaliveMinimum is the shortest time between two pings of a client.
	keepaliveMinimum = 10 * time.Second
	// sessionJitter is the part by which a session may be older than session-age, and callGrace
	// how long calls on a connection past its age may take besides.
	sessionJitter = 10
	callGrace     = time.Minute
	// callWorkers is how many goroutines for calls there are for each processor. A new goroutine begins
	// with a small stack, and to let it grow in each call takes an eighth of the server's processor.
	// Calls beyond that number, and all calls while sessions hold these goroutines, get new ones, whose
	// stack the gate lets grow early.
	callWorkers = 32
)

// servedListener is a listener, and the services that it offers.
type servedListener struct {
	net.Listener
	purpose config.Purpose
	// connections says what is expected of its connections.
	connections *connection.Listener
}

// calls answers calls: it has one gRPC server for each purpose, all behind one door.
type calls struct {
	log    *slog.Logger
	door   *door
	gate   *budget.Gate
	health *health.Server
	hub    *feed.Hub
	// connections are those of all listeners.
	connections *connection.Set
	grpc        map[config.Purpose]*grpc.Server
	// names are those of the services that health is answered for.
	names map[string]struct{}
	// notServing is what keeps health from SERVING. serving guards it.
	serving    sync.Mutex
	notServing map[string]struct{}
	// metrics serves the listeners of metrics; nil if the settings have none.
	metrics *metrics.Endpoint
	// tracing makes the spans of calls; nil if there are none.
	tracing *tracing.Tracing
	// streams bounds the streams of all connections.
	streams *streamBound
	// beginStop ends the context that lasts until the stop begins.
	beginStop context.CancelFunc
	// failed yields the first error of a listener that can be served no longer.
	failed chan error
	// working are the goroutines that serve or cut off.
	working sync.WaitGroup
}

// newCalls makes the services, and registers each with the gRPC servers that offer it. The
// components before it have started.
func newCalls(s *Server, validator *validation.Validator) *calls {
	settings, errors := s.config.Settings, service.Errors{Log: s.log}
	stopping, beginStop := context.WithCancel(context.Background())
	validations := service.NewValidation(validator, errors)
	validations.CountInvalid(newTally(s.hooks).Add)
	validations.CountForms(&s.forms.counted)
	sync := service.NewSync(s.hub, s.projection, validator, errors)
	callerService, statusService := service.NewCallers(errors), service.NewStatus(s.condition, errors)
	keyService, memberService, policyService := service.NewManagement(s.keys, errors, requestIDOf, &s.forms.counted)
	settingsService := service.NewSettings(s.keys, errors, requestIDOf)
	auditService := service.NewAudit(s.keys, errors)
	backupService, debugService := service.NewBackup(s.backups, errors, s.backupRead), service.NewDebug(errors)
	c := &calls{
		log:    s.log,
		door:   newDoor(stopping, s.slots, s.log, s.clock.Now, errors, validations.Work, s.hooks, subjects{s.projection}, s.config.Judge),
		health: health.NewServer(), hub: s.hub, connections: s.connections,
		grpc: make(map[config.Purpose]*grpc.Server), names: map[string]struct{}{"": {}}, notServing: make(map[string]struct{}),
		beginStop: beginStop, failed: make(chan error, 1),
	}
	_, local := storage.As[storage.LocalBarrierReader](s.config.Store)
	c.door.remote = !local
	c.streams = newStreamBound(s, c.door)
	c.gate = budget.NewGate(budget.Config{
		Budget: s.budget, MaxMessageBytes: settings.MaxMessageBytes, Elements: service.ElementLimits(),
		Unary: c.door.unary, Places: c.streams, Status: errors.Status, Refused: c.door.noRoom(), Stopping: stopping,
		Urgent: s.slots.of(callers.Validation).begun.Load,
	})
	c.door.tracing, c.tracing = s.tracing, s.tracing
	if s.tracing != nil {
		validations.TraceDecisions(s.tracing.Decided)
	}
	if s.metrics != nil {
		validations.CountDecisions(s.metrics.Decided)
		sync.CountDecisions(s.metrics.DecidedNear)
		c.metrics = metrics.NewEndpoint(s.metrics, s.log)
	}
	for _, purpose := range config.Purposes() {
		if purpose == config.PurposeMetrics {
			continue // not over gRPC
		}
		server := c.gate.Services(c.newServer(settings, purpose))
		all := purpose == config.PurposeAll
		if all || purpose == config.PurposeValidation {
			keysvcv1.RegisterValidationServiceServer(server, validations)
			keysvcv1.RegisterSyncServiceServer(server, sync)
		}
		if all || purpose == config.PurposeManagement {
			keysvcv1.RegisterKeyServiceServer(server, keyService)
			keysvcv1.RegisterMemberServiceServer(server, memberService)
			keysvcv1.RegisterPolicyServiceServer(server, policyService)
			keysvcv1.RegisterSettingsServiceServer(server, settingsService)
			keysvcv1.RegisterAuditServiceServer(server, auditService)
			keysvcv1.RegisterBackupServiceServer(server, backupService)
			keysvcv1.RegisterDebugServiceServer(server, debugService)
		}
		if purpose != config.PurposeHealth {
			keysvcv1.RegisterCallerServiceServer(server, callerService)
			keysvcv1.RegisterStatusServiceServer(server, statusService)
		}
		// Each listener answers health for the services of all listeners.
		for name := range server.GetServiceInfo() {
			c.names[name] = struct{}{}
		}
		grpc_health_v1.RegisterHealthServer(server, c.health)
		if all || purpose == config.PurposeManagement {
			reflection.Register(server)
			if settings.Channelz {
				channelz.RegisterChannelzServiceToServer(server)
			}
		}
		c.grpc[purpose] = server.Server
	}
	c.setServing("", true)
	return c
}

// newServer returns a gRPC server for a purpose, without services. A method that is not registered
// with it is answered with UNIMPLEMENTED.
func (c *calls) newServer(settings config.Settings, purpose config.Purpose) *grpc.Server {
	workers := 0
	if purpose == config.PurposeAll || purpose == config.PurposeValidation {
		workers = callWorkers * runtime.GOMAXPROCS(0)
	}
	return grpc.NewServer(append(
		c.gate.Options(), // unary calls come to the door through the gate
		c.tracing.ServerOption(),
		grpc.Creds(c.connections.Credentials()),
		grpc.ChainStreamInterceptor(c.door.stream),
		grpc.InTapHandle(c.streams.tap),
		grpc.MaxConcurrentStreams(uint32(settings.MaxStreams)),  //nolint:gosec // validated: at most 2^20
		grpc.MaxHeaderListSize(uint32(settings.MaxHeaderBytes)), //nolint:gosec // validated: at most 2^20
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout,
			MaxConnectionIdle: settings.ConnectionIdle, MaxConnectionAge: settings.ConnectionAge,
			// A session that has begun just before lives for its whole age.
			MaxConnectionAgeGrace: settings.SessionAge + settings.SessionAge/sessionJitter + callGrace,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinimum, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
		grpc.NumStreamWorkers(uint32(workers)),
	)...)
}

// begin serves a listener in a goroutine.
func (c *calls) begin(listener servedListener) {
	c.working.Go(func() {
		if err := c.serve(listener); err != nil {
			select {
			case c.failed <- err:
			default:
			}
		}
	})
}

// serve answers calls on a listener until stop or cutOff, and closes it.
func (c *calls) serve(listener servedListener) error {
	if listener.purpose == config.PurposeMetrics {
		return c.serveMetrics(listener)
	}
	err := c.grpc[listener.purpose].Serve(c.connections.Listen(listener.Listener, listener.connections))
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// setServing makes the answers about health SERVING if what it is called with, and everything else, serves, and else
// NOT_SERVING. After a stop has begun they stay NOT_SERVING.
func (c *calls) setServing(what string, serves bool) {
	c.serving.Lock()
	defer c.serving.Unlock()
	if serves {
		delete(c.notServing, what)
	} else {
		c.notServing[what] = struct{}{}
	}
	state := grpc_health_v1.HealthCheckResponse_SERVING
	if len(c.notServing) > 0 {
		state = grpc_health_v1.HealthCheckResponse_NOT_SERVING
	}
	for name := range c.names {
		c.health.SetServingStatus(name, state)
	}
}

// cutOff closes listeners and connections at once, without waiting for handlers: they may
// hang with the store, and stop waits for them.
func (c *calls) cutOff() {
	c.health.Shutdown()
	for _, server := range c.grpc {
		c.working.Go(server.Stop)
	}
	if c.metrics != nil {
		c.metrics.Close()
	}
}

// stop says that the server no longer serves, waits for the calls in flight until the
// context ends, cuts off the rest, and returns when no handler runs any more.
func (c *calls) stop(ctx context.Context) {
	// 1. Probes and near-caches learn of the stop. The goodbyes must be there before step 2
	// ends the streams.
	c.health.Shutdown()
	c.hub.Stop()
	// 2. Streams end, because a stream that only waits would use up the whole drain timeout.
	c.beginStop()
	// 3. Listeners close, and each server waits for its calls.
	var draining sync.WaitGroup
	for _, server := range c.grpc {
		draining.Go(server.GracefulStop)
	}
	if c.metrics != nil {
		draining.Go(func() { c.metrics.Shutdown(ctx) })
	}
	drained := make(chan struct{})
	go func() {
		draining.Wait()
		close(drained)
	}()
	// 4. When the context ends, connections close, and only handlers are waited for.
	select {
	case <-drained:
	case <-ctx.Done():
		c.log.WarnContext(ctx, "calls in flight are cut off: the drain timeout passed")
		for _, server := range c.grpc {
			c.working.Go(server.Stop)
		}
		<-drained
	}
	c.working.Wait()
}
