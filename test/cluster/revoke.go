//go:build linux

package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const (
	// aWorkspace is how many keys are made in one workspace.
	aWorkspace = 20
	// awaiting is how many calls of AwaitRevision wait at a time. Each takes S.
	awaiting = 32
	// pollEvery is how often a near-cache is asked about a key that was just revoked.
	pollEvery = 50 * time.Microsecond

	halfBound       = time.Millisecond
	hundredthBound  = 10 * time.Millisecond
	patienceOfCache = 10 * time.Second
)

// revoke revokes keys through one replica, and validates them through all.
func (w *world) revoke(ctx context.Context) error {
	var plain, cached []*keyclient.Client
	for _, replica := range w.cluster.Replicas {
		for _, without := range []bool{true, false} {
			client, err := w.client("validator", replica.Address(), keyclient.Config{WithoutNearCache: without})
			if err != nil {
				return err
			}
			if without {
				plain = append(plain, client)
			} else {
				cached = append(cached, client)
			}
		}
	}
	var after series
	var late, awaited atomic.Int64
	var waiting sync.WaitGroup
	places := make(chan struct{}, awaiting)
	var awaitErr atomic.Pointer[error]
	defer waiting.Wait()
	for count := range w.plan.revokes {
		workspace := fmt.Sprintf("revoke-%d", count/aWorkspace)
		if count%aWorkspace == 0 {
			if err := w.member(ctx, workspace); err != nil {
				return err
			}
		}
		through := count % replicas
		k, err := w.create(ctx, (count+1)%replicas, workspace, fmt.Sprintf("key %d", count))
		if err != nil {
			return err
		}
		for _, client := range cached {
			if err := fill(ctx, client, k); err != nil {
				return err
			}
		}
		revision, epoch, err := w.revokeKey(ctx, through, k)
		acknowledged := time.Now()
		if err != nil {
			return err
		}
		var asking sync.WaitGroup
		var mutex sync.Mutex
		for index := range replicas {
			asking.Go(func() {
				if ok, err := allowed(ctx, plain[index], k); ok || err != nil {
					w.promise(false, "revoked through %d: replica %d answers allowed=%t, %v", through, index, ok, err)
				}
			})
			asking.Go(func() {
				took, err := untilRefused(ctx, cached[index], k, acknowledged)
				mutex.Lock()
				defer mutex.Unlock()
				after.took = append(after.took, took)
				w.promise(err == nil && took < staleness, "revoked through %d: the near-cache of replica %d allowed it for %v, %v", through, index, took, err)
			})
		}
		asking.Wait()
		places <- struct{}{}
		waiting.Go(func() {
			defer func() { <-places }()
			bounded, cancel := context.WithTimeout(ctx, patienceOfCache)
			defer cancel()
			if _, err := w.admins[through].Sync.AwaitRevision(bounded, &keysvcv1.AwaitRevisionRequest{Revision: revision, Epoch: epoch}); err != nil {
				awaitErr.Store(&err)
				return
			}
			awaited.Add(1)
			for _, client := range cached {
				if ok, _ := allowed(ctx, client, k); ok {
					late.Add(1)
				}
			}
		})
	}
	waiting.Wait()
	w.say("\n%d keys revoked through one replica, validated through all three; near-caches with each\n", w.plan.revokes)
	w.say("without a near-cache: never ALLOWED after the acknowledgement: %t", w.kept("answers allowed"))
	w.say("with one, for how long after the acknowledgement: p50 %s, p99 %s, longest %s", short(after.at(0.5)), short(after.at(0.99)), short(after.at(1)))
	w.say("after AwaitRevision (%d times): %d times ALLOWED", awaited.Load(), late.Load())
	w.inTime(after.at(0.5) <= halfBound, "revoke: p50 of near-caches is %v", after.at(0.5))
	w.inTime(after.at(0.99) <= hundredthBound, "revoke: p99 of near-caches is %v", after.at(0.99))
	w.promise(late.Load() == 0, "revoke: %d times ALLOWED after AwaitRevision", late.Load())
	if failed := awaitErr.Load(); failed != nil {
		w.promise(false, "revoke: AwaitRevision: %v", *failed)
	}
	return nil
}

// fill asks a near-cache until it answers from memory.
func fill(ctx context.Context, client *keyclient.Client, k key) error {
	for began := time.Now(); time.Since(began) < patienceOfCache; {
		before := client.NearCache().Hits
		ok, err := allowed(ctx, client, k)
		if err != nil || !ok {
			return fmt.Errorf("a key that is valid: %t, %w", ok, err)
		}
		if client.NearCache().Hits > before {
			return nil
		}
	}
	return fmt.Errorf("a near-cache does not answer from memory for %v", patienceOfCache)
}

// untilRefused asks until a key is refused, and returns for how long after a moment it was ALLOWED.
func untilRefused(ctx context.Context, client *keyclient.Client, k key, from time.Time) (last time.Duration, err error) {
	for time.Since(from) < patienceOfCache {
		asked := time.Now()
		ok, err := allowed(ctx, client, k)
		if err != nil || !ok {
			return last, err
		}
		last = asked.Sub(from)
		sleep(ctx, pollEvery)
	}
	return last, fmt.Errorf("allowed for %v", patienceOfCache)
}
