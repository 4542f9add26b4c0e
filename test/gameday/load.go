//go:build linux

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// load is services that ask about a valid and about a revoked key without a pause.
type load struct {
	cancel  context.CancelFunc
	group   sync.WaitGroup
	clients []*keyclient.Client

	mutex sync.Mutex
	// answered counts right answers, unanswered calls without an answer.
	answered, unanswered int
	// wrong is the first wrong answer, lost the first call without an answer.
	wrong, lost string
	// slowest is the longest time that a right answer took.
	slowest time.Duration
}

// load starts a service that asks the server each time, and one with a near-cache.
func (d *day) load(valid, revoked key, tls *keyclient.TLS) (*load, error) {
	ctx, cancel := context.WithCancel(d.ctx)
	l := &load{cancel: cancel}
	for _, without := range []bool{true, false} {
		client, err := keyclient.New(d.server.address, keyclient.Config{TLS: tls, WithoutNearCache: without, ValidationTimeout: 10 * time.Second})
		if err != nil {
			cancel()
			return nil, err
		}
		l.clients = append(l.clients, client)
		for range 4 {
			l.group.Go(func() { l.ask(ctx, client, valid, revoked) })
		}
	}
	d.ending = append(d.ending, func() error { l.stop(); return nil })
	return l, nil
}

func (l *load) ask(ctx context.Context, client *keyclient.Client, valid, revoked key) {
	for ctx.Err() == nil {
		for _, k := range []key{valid, revoked} {
			began := time.Now()
			answer, err := client.Validate(ctx, keyauth.Question{Token: k.token, Requirement: keyauth.Scope(k.scope)})
			if ctx.Err() != nil {
				return
			}
			l.record(k, k == valid, answer, err, time.Since(began))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (l *load) record(k key, allowed bool, answer keyauth.Answer, err error, took time.Duration) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	switch {
	case err != nil && unanswered(status.Code(err)):
		l.unanswered++
		if l.lost == "" {
			l.lost = err.Error()
		}
	case err != nil, allowed != (answer.Decision == keysvcv1.Decision_DECISION_ALLOWED):
		if l.wrong == "" {
			l.wrong = fmt.Sprintf("%s: %v %v %v", k.name, answer.Decision, answer.Reason, err)
		}
	default:
		l.answered++
		l.slowest = max(l.slowest, took)
	}
}

// more waits for as many right answers as given from now on, and reports whether they came.
func (l *load) more(count int) bool {
	l.mutex.Lock()
	want := l.answered + count
	l.mutex.Unlock()
	for began := time.Now(); time.Since(began) < patience; time.Sleep(5 * time.Millisecond) {
		l.mutex.Lock()
		enough := l.answered >= want
		l.mutex.Unlock()
		if enough {
			return true
		}
	}
	return false
}

// stop ends the load.
func (l *load) stop() {
	l.cancel()
	l.group.Wait()
	for _, client := range l.clients {
		_ = client.Close()
	}
	l.clients = nil
}

// judge ends the load, and checks that no answer was wrong and that no call failed.
func (d *day) judge(l *load) {
	l.stop()
	d.check(l.wrong == "", "no answer was wrong %s", l.wrong)
	d.check(l.unanswered == 0, "no call failed: %d right answers, %d calls without one %s; the slowest took %v", l.answered, l.unanswered, l.lost, l.slowest.Round(time.Millisecond))
}

// lenient is like judge. A call in a thousand may fail: a near-cache of a machine that is busy with the
// disk gives up answers that were late.
func (d *day) lenient(l *load) {
	l.stop()
	d.check(l.wrong == "", "no answer was wrong %s", l.wrong)
	d.check(l.unanswered*1000 <= l.answered, "validations went on: %d right answers, %d calls without one %s", l.answered, l.unanswered, l.lost)
}
