//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const (
	// rate is how many validations the good caller makes each second.
	rate = 200
	// patience is how long one may take before it counts as failed, and managing how long another
	// call may take.
	patience, managing = 2 * time.Second, 5 * time.Second
)

// good is a caller who behaves. It validates over connections that stay open, validates over a
// new connection each second, manages keys, and has a near-cache.
type good struct {
	server  *server
	tokens  []string
	running sync.WaitGroup
	cancel  context.CancelFunc

	mu sync.Mutex
	// current receives what happens.
	current *experience
	closed  []func()
	cache   *keyclient.Client
}

// experience is what the good caller saw in some time.
type experience struct {
	validations, newcomers, management []time.Duration
	refused, failed                    int
	// pending is how many calls have not ended.
	pending int
	// first is the first failure.
	first error
	// sessions is how many sessions of the near-cache ended.
	sessions int
}

// startControl starts a caller of a server that nobody attacks. What it sees tells how busy the
// machine is.
func startControl(ctx context.Context, s *server, tokens []string) (*good, error) {
	ctx, cancel := context.WithCancel(ctx)
	g := &good{server: s, tokens: tokens, cancel: cancel, current: &experience{}}
	connection, err := s.dial()
	if err != nil {
		cancel()
		return nil, err
	}
	g.closed = append(g.closed, func() { _ = connection.Close() })
	g.every(ctx, 10*time.Millisecond, func(e *experience, i int) {
		g.validate(ctx, e, connection, tokens[i%len(tokens)], func(took time.Duration) { e.validations = append(e.validations, took) })
	})
	return g, nil
}

// startGood starts a good caller of a server.
func startGood(ctx context.Context, s *server, tokens []string) (*good, error) {
	ctx, cancel := context.WithCancel(ctx)
	g := &good{server: s, tokens: tokens, cancel: cancel, current: &experience{}}
	config := keyclient.Config{NearCacheHooks: keyclient.NearCacheHooks{
		SessionEnded: func(reason error) {
			if reason != nil {
				g.note(func() { g.current.sessions++ })
			}
		},
	}}
	if s.doors.way == plain {
		config.AllowPlaintext = true
	} else {
		config.TransportCredentials = s.doors.good
	}
	cache, err := keyclient.New(s.address, config)
	if err != nil {
		cancel()
		return nil, err
	}
	g.cache = cache
	g.closed = append(g.closed, func() { _ = cache.Close() })
	var connections []*grpc.ClientConn
	for range 4 {
		connection, err := s.dial()
		if err != nil {
			g.stop()
			return nil, err
		}
		connections = append(connections, connection)
		g.closed = append(g.closed, func() { _ = connection.Close() })
	}
	g.every(ctx, time.Second/rate, func(e *experience, i int) {
		g.validate(ctx, e, connections[i%len(connections)], tokens[i%len(tokens)], func(took time.Duration) { e.validations = append(e.validations, took) })
	})
	g.every(ctx, time.Second, func(e *experience, i int) {
		// Whoever begins may have to try more than once to get a connection, as keyclient does.
		connection, err := s.dial(
			grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}}),
		)
		if err != nil {
			g.fail(ctx, e, "a new connection", err)
			return
		}
		defer connection.Close()
		g.validate(ctx, e, connection, tokens[i%len(tokens)], func(took time.Duration) { e.newcomers = append(e.newcomers, took) })
	})
	g.every(ctx, 150*time.Millisecond, func(e *experience, i int) { g.manage(ctx, e, connections[0], i) })
	g.every(ctx, 20*time.Millisecond, func(e *experience, i int) {
		answer, err := cache.Validate(ctx, keyauth.Question{Token: tokens[i%len(tokens)], Requirement: keyauth.Scope("signatures:read")})
		if err == nil && answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
			err = errors.New(answer.Decision.String())
		}
		if err != nil {
			g.fail(ctx, e, "the near-cache", err)
		}
	})
	return g, nil
}

// every starts a call at each tick, however long the calls before it take.
func (g *good) every(ctx context.Context, interval time.Duration, call func(e *experience, i int)) {
	g.running.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				g.running.Go(func() {
					e := g.begin()
					defer g.note(func() { e.pending-- })
					call(e, i)
				})
			}
		}
	})
}

// begin notes that a call begins. A call belongs to the time in which it began.
func (g *good) begin() *experience {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.current.pending++
	return g.current
}

func (g *good) note(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// fail notes a failure, unless the caller is being stopped.
func (g *good) fail(ctx context.Context, e *experience, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	g.note(func() {
		if status.Code(err) == codes.ResourceExhausted {
			e.refused++
		} else {
			e.failed++
		}
		if e.first == nil {
			e.first = fmt.Errorf("%s: %w", what, err)
		}
	})
}

// validate validates a token, which must be ALLOWED.
func (g *good) validate(ctx context.Context, e *experience, connection *grpc.ClientConn, token string, took func(time.Duration)) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	answer, err := keysvcv1.NewValidationServiceClient(connection).ValidateKey(limited, &keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: "signatures:read"})
	if err == nil && answer.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
		err = errors.New(answer.GetDecision().String())
	}
	if err != nil {
		g.fail(ctx, e, "a validation", err)
		return
	}
	g.note(func() { took(time.Since(began)) })
}

// manage makes one call of those that people make.
func (g *good) manage(ctx context.Context, e *experience, connection *grpc.ClientConn, i int) {
	limited, cancel := context.WithTimeout(ctx, managing)
	defer cancel()
	keys, members := keysvcv1.NewKeyServiceClient(connection), keysvcv1.NewMemberServiceClient(connection)
	var err error
	began := time.Now()
	switch i % 3 {
	case 0:
		_, err = keys.ListKeys(limited, &keysvcv1.ListKeysRequest{WorkspaceId: goodWorkspace, PageSize: 20})
	case 1:
		_, err = members.GetMember(limited, &keysvcv1.GetMemberRequest{WorkspaceId: goodWorkspace, MemberId: "owner"})
	case 2:
		_, err = members.PutMember(limited, &keysvcv1.PutMemberRequest{WorkspaceId: goodWorkspace, MemberId: "other", Role: []string{"admin", "manager"}[i/3%2], State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE})
	}
	if err != nil {
		g.fail(ctx, e, "management", err)
		return
	}
	g.note(func() { e.management = append(e.management, time.Since(began)) })
}

// since returns what the caller saw since the last time.
func (g *good) since() *experience {
	g.mu.Lock()
	defer g.mu.Unlock()
	seen := g.current
	g.current = &experience{}
	return seen
}

// settled reports whether all calls that began in some time have ended.
func (g *good) settled(e *experience) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return e.pending == 0
}

// copied returns a copy of an experience that grows no more.
func (g *good) copied(e *experience) *experience {
	g.mu.Lock()
	defer g.mu.Unlock()
	settled := *e
	settled.validations, settled.newcomers, settled.management = slices.Clone(e.validations), slices.Clone(e.newcomers), slices.Clone(e.management)
	return &settled
}

// stop ends the caller.
func (g *good) stop() {
	g.cancel()
	for _, shut := range g.closed {
		shut()
	}
	g.running.Wait()
}

// percentile returns the time within which a share of the calls were answered.
func percentile(took []time.Duration, share float64) time.Duration {
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[min(len(took)-1, int(share*float64(len(took))))]
}
