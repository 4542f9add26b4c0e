//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyclient"
)

// caches is how many near-caches there are, and cacheRate how many questions a second each is asked. changeRate is how many
// keys are renamed through each replica, a second. They are in so many workspaces, because changes of one workspace wait for
// each other.
const (
	caches     = 6
	cacheRate  = 20
	changeRate = 7
	workspaces = 10
)

// load is services that ask all the time about a key that is valid and one that was revoked.
type load struct {
	w               *world
	valid, revoked  key
	plain           *keyclient.Client
	pinned, nearing []*keyclient.Client
	// renamed are the keys that are renamed, by replica, each in a workspace of its own.
	renamed [replicas][]key
	cancel  context.CancelFunc
	running sync.WaitGroup
	// resets counts how often a near-cache dropped everything.
	resets atomic.Int64

	mutex sync.Mutex
	// phase gets what callers see now.
	phase *phase
}

// phase is what callers saw while something was the case.
type phase struct {
	name  string
	began time.Time
	// spread are the calls over all replicas, cached those of near-caches, pinned those to each replica, and changes the
	// changes through each.
	spread, cached  series
	pinned, changes [replicas]series
	resets          int64
}

// changed returns all changes of a phase.
func (p *phase) changed() *series {
	all := &series{}
	for index := range p.changes {
		each := &p.changes[index]
		all.took = append(all.took, each.took...)
		all.failed += each.failed
	}
	return all
}

// series is calls.
type series struct {
	took []time.Duration
	// allowed are the calls that were ALLOWED.
	allowed []span
	// failed is how many calls failed, and others how many of them with another status than UNAVAILABLE.
	failed, others int
	// wrong is the first wrong answer, lost the first failure.
	wrong, lost string
}

// span is from when until when a call took.
type span struct{ began, ended time.Time }

// between counts the calls that began after one moment, and were ALLOWED before another.
func (s *series) between(after, before time.Time) int {
	count := 0
	for _, each := range s.allowed {
		if each.began.After(after) && each.ended.Before(before) {
			count++
		}
	}
	return count
}

// again returns how long after a moment the first call was ALLOWED; the deadline if none was.
func (s *series) again(from time.Time) time.Duration {
	first := deadline
	for _, each := range s.allowed {
		first = min(first, each.ended.Sub(from))
	}
	return first
}

// lateAfter returns how long the calls that began after a moment took; the longest of a thousand is left out.
func (s *series) lateAfter(moment time.Time) time.Duration {
	var later series
	for _, each := range s.allowed {
		if each.began.After(moment) {
			later.took = append(later.took, each.ended.Sub(each.began))
		}
	}
	return later.at(0.999)
}

func (s *series) at(part float64) time.Duration {
	if len(s.took) == 0 {
		return 0
	}
	slices.Sort(s.took)
	return s.took[min(len(s.took)-1, int(part*float64(len(s.took))))]
}

func (w *world) startLoad(ctx context.Context) (*load, error) {
	l := &load{w: w}
	var err error
	if l.valid, err = w.create(ctx, 0, "acme", "valid"); err != nil {
		return nil, err
	}
	if l.revoked, err = w.create(ctx, 1, "acme", "revoked"); err != nil {
		return nil, err
	}
	if _, _, err = w.revokeKey(ctx, 2, l.revoked); err != nil {
		return nil, err
	}
	for number := range replicas * workspaces {
		workspace, index := fmt.Sprintf("renaming-%d", number), number%replicas
		if err := w.member(ctx, workspace); err != nil {
			return nil, err
		}
		made, err := w.create(ctx, index, workspace, "renamed")
		if err != nil {
			return nil, err
		}
		l.renamed[index] = append(l.renamed[index], made)
	}
	if l.plain, err = w.client("validator", w.all(), keyclient.Config{WithoutNearCache: true}); err != nil {
		return nil, err
	}
	for _, replica := range w.cluster.Replicas {
		client, err := w.client("validator", replica.Address(), keyclient.Config{WithoutNearCache: true})
		if err != nil {
			return nil, err
		}
		l.pinned = append(l.pinned, client)
	}
	for range caches {
		client, err := w.client("validator", w.all(), keyclient.Config{NearCacheHooks: keyclient.NearCacheHooks{Reset: func() { l.resets.Add(1) }}})
		if err != nil {
			return nil, err
		}
		l.nearing = append(l.nearing, client)
	}
	// All are connected before anything is measured.
	for _, client := range append(append([]*keyclient.Client{l.plain}, l.pinned...), l.nearing...) {
		for range 20 {
			if ok, err := allowed(ctx, client, l.valid); !ok || err != nil {
				return nil, fmt.Errorf("the valid key: %t, %w", ok, err)
			}
		}
	}
	l.phase = &phase{began: time.Now()}
	ctx, l.cancel = context.WithCancel(ctx)
	l.ask(ctx, l.plain, w.plan.rate, func(p *phase) *series { return &p.spread })
	for index, client := range l.pinned {
		l.ask(ctx, client, cacheRate, func(p *phase) *series { return &p.pinned[index] })
	}
	for _, client := range l.nearing {
		l.ask(ctx, client, cacheRate, func(p *phase) *series { return &p.cached })
	}
	for index := range l.renamed {
		l.begins(ctx, changeRate, func(now *phase, count int) {
			began := time.Now()
			err := w.rename(ctx, index, l.renamed[index][count%workspaces], fmt.Sprint("name ", count))
			if ctx.Err() == nil {
				l.note(now, &now.changes[index], l.revoked, false, err, span{began, time.Now()})
			}
		})
	}
	return l, nil
}

// ask asks so many times a second. Every tenth question is about the revoked key.
func (l *load) ask(ctx context.Context, client *keyclient.Client, rate int, of func(*phase) *series) {
	l.begins(ctx, rate, func(now *phase, count int) {
		asked := l.valid
		if count%10 == 0 {
			asked = l.revoked
		}
		began := time.Now()
		ok, err := allowed(ctx, client, asked)
		if ctx.Err() == nil {
			l.note(now, of(now), asked, ok, err, span{began, time.Now()})
		}
	})
}

// begins begins so many calls a second, whether the ones before have ended or not.
func (l *load) begins(ctx context.Context, rate int, call func(now *phase, count int)) {
	l.running.Go(func() {
		ticker := time.NewTicker(time.Second / time.Duration(rate))
		defer ticker.Stop()
		for count := 0; ; count++ {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			l.mutex.Lock()
			now := l.phase
			l.mutex.Unlock()
			l.running.Go(func() { call(now, count) })
		}
	})
}

func (l *load) note(p *phase, s *series, asked key, ok bool, err error, took span) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	length := took.ended.Sub(took.began)
	s.took = append(s.took, length)
	if ok {
		s.allowed = append(s.allowed, took)
	}
	switch {
	case err != nil:
		s.failed++
		if status.Code(err) != codes.Unavailable {
			s.others++
		}
		if s.lost == "" {
			s.lost = fmt.Sprintf("%v into the phase, after %v: %v", took.began.Sub(p.began).Round(time.Millisecond), length.Round(time.Millisecond), err)
		}
	case ok != (asked == l.valid) && s.wrong == "":
		s.wrong = fmt.Sprintf("a call %v into the phase: allowed is %t", took.began.Sub(p.began).Round(time.Millisecond), ok)
	}
}

// next ends the phase and begins another one. It returns the phase that has ended, when its calls have been answered.
func (l *load) next(ctx context.Context, name string) *phase {
	l.mutex.Lock()
	ended := l.phase
	l.phase = &phase{name: name, began: time.Now(), resets: l.resets.Load()}
	ended.resets = l.resets.Load() - ended.resets
	l.mutex.Unlock()
	// Calls that began in the phase end within their deadline.
	sleep(ctx, deadline)
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return ended
}

func sleep(ctx context.Context, length time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(length):
	}
}

func (l *load) stop() {
	l.cancel()
	l.running.Wait()
}
