package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/scribe-mail/keysvc/bench/population"
	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// hitsMethod is the method of the service whose requests are answered from memory.
const hitsMethod = "/test.v1.Signatures/Get"

// clientConfig returns the configuration of a keyclient that merges calls, or does not, and answers
// nothing from memory.
func clientConfig(merging bool) keyclient.Config {
	return keyclient.Config{SeparateCalls: !merging, WithoutNearCache: true}
}

// hits lets goroutines pass requests through the interceptor of a service, from incoming metadata
// to the principal in the context, and answers from the near-cache. Callers is the number of
// goroutines, and Batch that of different tokens.
func (g *generator) hits(next order) (outcome, error) {
	client, err := g.client(next, orderHits, keyclient.Config{})
	if err != nil {
		return outcome{}, err
	}
	guard, err := keyauth.NewGuard(client, keyauth.Config{
		Tables: []keyauth.Table{{hitsMethod: keyauth.Scope(population.Scope)}}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return outcome{}, err
	}
	requests, err := incoming(next.Batch)
	if err != nil {
		return outcome{}, err
	}
	intercept, info := guard.UnaryServerInterceptor(), &grpc.UnaryServerInfo{FullMethod: hitsMethod}
	handler := func(ctx context.Context, _ any) (any, error) {
		if _, ok := keyauth.PrincipalFrom(ctx); !ok {
			return nil, errors.New("no principal")
		}
		return nil, nil // the result is not used
	}
	// All of them are in memory before time is measured: ask until a round has no miss.
	for misses, deadline := int64(-1), time.Now().Add(patience); misses != client.NearCache().Misses; {
		misses = client.NearCache().Misses
		for _, request := range requests {
			if _, err := intercept(request, nil, info, handler); err != nil {
				return outcome{}, err
			}
		}
		if time.Now().After(deadline) {
			return outcome{}, errors.New("the near-cache does not answer from memory")
		}
	}
	var total atomic.Int64
	var failed atomic.Pointer[error]
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	var working sync.WaitGroup
	for worker := range next.Callers {
		working.Go(func() {
			number := worker * 7919
			for time.Since(began) < next.Time {
				for range 256 { // the clock is read by the interceptor itself, too; this reading is for free
					if _, err := intercept(requests[number%len(requests)], nil, info, handler); err != nil {
						failed.Store(new(err)) // &err would allocate in every round
						return
					}
					number++
				}
				total.Add(256)
			}
		})
	}
	working.Wait()
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	if err := failed.Load(); err != nil {
		return outcome{}, *err
	}
	return outcome{Calls: total.Load(), Seconds: took.Seconds(), Allocations: after.Mallocs - before.Mallocs}, nil
}

// incoming returns contexts of requests that bring tokens of the population.
func incoming(count int) ([]context.Context, error) {
	spread, err := population.Spread(tokens, tokens)
	if err != nil {
		return nil, err
	}
	requests := make([]context.Context, count)
	for index := range requests {
		ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(
			":authority", "x", "authorization", "Bearer "+spread[index%len(spread)].Token.Reveal(), "content-type", "application/grpc", "user-agent", "grpc-go"))
		requests[index] = peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 20, 30, 40), Port: 1}})
	}
	return requests, nil
}

// hash computes SHA-256 of 64 bytes for a time.
func hash(duration time.Duration) outcome {
	var input [64]byte
	began, calls := time.Now(), int64(0)
	for time.Since(began) < duration {
		for range 256 {
			sum := sha256.Sum256(input[:])
			copy(input[:], sum[:])
		}
		calls += 256
	}
	return outcome{Calls: calls, Seconds: time.Since(began).Seconds()}
}

// lease creates a key, lets a near-cache validate it all the time, and revokes it. The outcome's Max
// is when the last validation began that was ALLOWED, after the acknowledgement of the revoke.
func (g *generator) lease(next order) (outcome, error) {
	client, err := g.client(next, orderHits, keyclient.Config{})
	if err != nil {
		return outcome{}, err
	}
	ctx, keys := g.t.Context(), keysvcv1.NewKeyServiceClient(g.connection(next))
	made, err := keys.CreateKey(ctx, newKey(0))
	if err != nil {
		return outcome{}, err
	}
	question := keyauth.Question{Token: made.GetToken(), Requirement: keyauth.Scope(population.Scope)}
	var last, asked atomic.Int64
	validating, stop := context.WithCancel(ctx)
	defer stop()
	warm := make(chan struct{})
	var working sync.WaitGroup
	working.Go(func() {
		for validating.Err() == nil {
			started := time.Now()
			if answer, err := client.Validate(validating, question); err == nil && answer.Decision == keysvcv1.Decision_DECISION_ALLOWED {
				last.Store(started.UnixNano())
			}
			if asked.Add(1) == 100 {
				close(warm)
			}
			time.Sleep(100 * time.Microsecond)
		}
	})
	select {
	case <-warm:
	case <-time.After(patience):
		stop()
		working.Wait()
		return outcome{}, errors.New("a near-cache does not validate a key")
	}
	if _, err := keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: made.GetKey().GetWorkspaceId(), KeyId: made.GetKey().GetKeyId()}); err != nil {
		return outcome{}, err
	}
	acknowledged := time.Now()
	time.Sleep(next.Time)
	stop()
	working.Wait()
	took := max(0, time.Duration(last.Load()-acknowledged.UnixNano()))
	if took > staleness {
		return outcome{}, fmt.Errorf("ALLOWED %s after the acknowledgement of a revoke", took)
	}
	return outcome{Calls: asked.Load(), Max: took}, nil
}
