//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/scribe-mail/keysvc/test/trio"
)

const (
	// followerBound is how long a call in a thousand may take while a follower of etcd is away.
	followerBound = 250 * time.Millisecond
	// recoveryBound is after which time all is well again once etcd has a majority.
	recoveryBound = 2 * time.Second
	// grace is for what was under way when the majority was lost.
	grace = 100 * time.Millisecond
	// staleness is S, for which a near-cache may answer on its own.
	staleness = time.Second
)

// fault is something that happens to a process while calls go on.
type fault struct {
	name string
	// bound is that of the 999th of 1,000 calls; 0 for none.
	bound time.Duration
	// target returns the process.
	target func(context.Context) (target, error)
	stop   bool
	// away is the index of the replica that is away, and -1 if none is.
	away int
}

// target is a process that a fault happens to.
type target interface {
	Kill() error
	Stop() error
	Continue() error
	Start() error
	Ready(context.Context) error
}

func (w *world) faults(ctx context.Context) error {
	l, err := w.startLoad(ctx)
	if err != nil {
		return err
	}
	defer l.stop()
	w.say("\n%d validations and %d changes a second spread over three replicas, deadline %v; %d near-caches\n", w.plan.rate, replicas*changeRate, deadline, caches)
	w.say("%-28s %7s %7s %8s %8s %8s %8s  %-16s %-16s %8s %8s %6s", "phase", "calls", "failed", "p50", "p99", "p99.9", "longest", "cached (failed)",
		"changes (failed)", "p50", "longest", "resets")
	if slices.Contains(w.plan.parts, partFaults) {
		if err := w.sufferAll(ctx, l); err != nil {
			return err
		}
	}
	if slices.Contains(w.plan.parts, partOutage) {
		for range w.plan.outages {
			if err := w.outage(ctx, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// sufferAll plays the faults of one process after another.
func (w *world) sufferAll(ctx context.Context, l *load) error {
	l.next(ctx, "nothing happens")
	follower := func(ctx context.Context) (target, error) { return w.cluster.Follower(ctx) }
	leader := func(ctx context.Context) (target, error) { return w.cluster.Leader(ctx) }
	first := w.cluster.Replicas[0]
	replica := func(context.Context) (target, error) { return first, nil }
	sleep(ctx, w.plan.lasts)
	w.judge(l.next(ctx, "between"), fault{name: "nothing happens", bound: followerBound, away: -1})
	for _, each := range []fault{
		{"etcd's follower is killed", followerBound, follower, false, -1},
		{"etcd's follower stands still", followerBound, follower, true, -1},
		{"etcd's leader is killed", 0, leader, false, -1},
		{"etcd's leader stands still", 0, leader, true, -1},
		{"a keysvc is killed", 0, replica, false, 0},
		{"a keysvc stands still", 0, replica, true, 0},
	} {
		if err := w.suffer(ctx, l, each); err != nil {
			return fmt.Errorf("%s: %w", each.name, err)
		}
	}
	return nil
}

// suffer plays one fault, and puts everything right again.
func (w *world) suffer(ctx context.Context, l *load, f fault) error {
	struck, err := f.target(ctx)
	if err != nil {
		return err
	}
	l.begin(f.name)
	if f.stop {
		err = struck.Stop()
	} else {
		err = struck.Kill()
	}
	if err != nil {
		return err
	}
	sleep(ctx, w.plan.lasts)
	if f.stop {
		err = struck.Continue()
	} else {
		err = errors.Join(struck.Start(), struck.Ready(ctx))
	}
	if err != nil {
		return err
	}
	w.judge(l.next(ctx, "between"), f)
	return w.well(ctx, l)
}

// begin begins a phase, and forgets the one before.
func (l *load) begin(name string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.phase = &phase{name: name, began: time.Now(), resets: l.resets.Load()}
}

// well waits until each replica and each member answers.
func (w *world) well(ctx context.Context, l *load) error {
	for _, client := range l.pinned {
		for {
			ok, err := allowed(ctx, client, l.valid)
			if ok {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("a replica does not answer: %w", err)
			}
			sleep(ctx, 20*time.Millisecond)
		}
	}
	_, err := w.cluster.Leader(ctx)
	return err
}

// judge prints what callers saw, and checks it.
func (w *world) judge(p *phase, f fault) {
	if p.name == "" {
		p.name = f.name
	}
	w.row(p)
	w.sound(p)
	w.promise(p.spread.failed == 0, "%s: %d of %d calls failed, the first %s", f.name, p.spread.failed, len(p.spread.took), p.spread.lost)
	w.promise(p.cached.failed == 0, "%s: %d questions to near-caches failed, the first %s", f.name, p.cached.failed, p.cached.lost)
	w.promise(p.resets == 0, "%s: near-caches were reset %d times", f.name, p.resets)
	if f.bound > 0 {
		w.inTime(p.spread.at(0.999) <= f.bound, "%s: p99.9 is %v, more than %v", f.name, p.spread.at(0.999).Round(time.Millisecond), f.bound)
	}
	for index := range p.changes {
		if changes := &p.changes[index]; index != f.away {
			w.promise(changes.failed == 0, "%s: %d changes through replica %d failed, the first %s", f.name, changes.failed, index, changes.lost)
			if f.bound > 0 || f.away >= 0 {
				w.inTime(changes.at(0.999) <= followerBound, "%s: a change through replica %d took %v", f.name, index, changes.at(0.999).Round(time.Millisecond))
			}
		}
	}
	if f.away < 0 {
		return
	}
	for index := range p.pinned {
		if others := &p.pinned[index]; index != f.away {
			w.promise(others.failed == 0, "%s: %d calls to replica %d failed, the first %s", f.name, others.failed, index, others.lost)
			w.inTime(others.at(0.999) <= followerBound, "%s: a call to replica %d took %v", f.name, index, others.at(0.999).Round(time.Millisecond))
		}
	}
}

func (w *world) row(p *phase) {
	changes := p.changed()
	w.say("%-28s %7d %7d %8s %8s %8s %8s  %-16s %-16s %8s %8s %6d", p.name, len(p.spread.took), p.spread.failed,
		short(p.spread.at(0.5)), short(p.spread.at(0.99)), short(p.spread.at(0.999)), short(p.spread.at(1)), p.cached.counts(),
		changes.counts(), short(changes.at(0.5)), short(changes.at(1)), p.resets)
}

// counts returns how many calls there were, and how many failed.
func (s *series) counts() string { return fmt.Sprintf("%d (%d)", len(s.took), s.failed) }

func short(d time.Duration) string {
	if d >= time.Second {
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// sound checks that no answer was wrong.
func (w *world) sound(p *phase) {
	for _, s := range []*series{&p.spread, &p.cached, &p.pinned[0], &p.pinned[1], &p.pinned[2]} {
		w.promise(s.wrong == "", "%s: %s", p.name, s.wrong)
	}
}

// outage takes etcd's majority away.
func (w *world) outage(ctx context.Context, l *load) error {
	leader, err := w.cluster.Leader(ctx)
	if err != nil {
		return err
	}
	before, err := w.told(ctx)
	if err != nil {
		return err
	}
	var stopped []*trio.Member
	for _, member := range w.cluster.Members {
		if member != leader {
			stopped = append(stopped, member)
			if err := member.Stop(); err != nil {
				return err
			}
		}
	}
	l.begin("etcd has no majority")
	lost := time.Now()
	noticed, err := w.untilUp(ctx, false, lost)
	if err != nil {
		return err
	}
	sleep(ctx, w.plan.outage-time.Since(lost))
	var errs []error
	continued := time.Now()
	for _, member := range stopped {
		errs = append(errs, member.Continue())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	probing, cancel := context.WithTimeout(ctx, patienceOfCache)
	defer cancel()
	etcdAnswers, err := w.etcdAnswers(probing, continued)
	if err != nil {
		return err
	}
	// A phase of its own, from the moment on.
	l.mutex.Lock()
	out := l.phase
	out.resets = l.resets.Load() - out.resets
	l.phase = &phase{name: "etcd has one again", began: continued, resets: l.resets.Load()}
	l.mutex.Unlock()
	forgotten, err := w.untilUp(ctx, true, continued)
	if err != nil {
		return err
	}
	sleep(ctx, w.plan.lasts)
	back := l.next(ctx, "between")
	after, err := w.told(ctx)
	if err != nil {
		return err
	}
	w.judgeTold(before, after)
	l.mutex.Lock()
	defer l.mutex.Unlock()
	w.row(out)
	w.row(back)
	again, late := back.spread.again(continued), back.spread.lateAfter(continued.Add(recoveryBound))
	var members []time.Duration
	for range w.cluster.Members {
		select {
		case each := <-etcdAnswers:
			members = append(members, each.Round(time.Millisecond))
		case <-probing.Done():
		}
	}
	w.say("%-28s %v after the majority was there; members of etcd answered after %v", "right again", again.Round(time.Millisecond), members)
	for index := range back.pinned {
		w.say("%-28s %v through replica %d alone", "", back.pinned[index].again(continued).Round(time.Millisecond), index)
	}
	w.say("%-28s keysvc_store_up is 0 after %v, and 1 again after %v; the store was loaded %v times", "operators",
		noticed.Round(100*time.Millisecond), forgotten.Round(100*time.Millisecond), sumLoads(after)-sumLoads(before))
	w.promise(noticed < patienceOfCache, "no majority: a replica does not say so")
	w.promise(forgotten < patienceOfCache, "no majority: a replica still says so afterwards")
	w.sound(out)
	w.sound(back)
	stale := out.spread.between(lost.Add(grace), continued) + out.cached.between(lost.Add(staleness+grace), continued)
	others := out.spread.others + out.cached.others
	for index := range out.pinned {
		stale += out.pinned[index].between(lost.Add(grace), continued)
		others += out.pinned[index].others
	}
	w.promise(stale == 0, "no majority: %d calls that began in it were ALLOWED in it", stale)
	w.promise(others == 0, "no majority: %d calls failed with another status than UNAVAILABLE", others)
	w.promise(out.resets == 0 && back.resets == 0, "no majority: near-caches were reset %d times", out.resets+back.resets)
	w.inTime(again <= recoveryBound, "no majority: right again only after %v", again.Round(time.Millisecond))
	w.inTime(late <= followerBound, "no majority: a call that began %v after it took %v", recoveryBound, late.Round(time.Millisecond))
	for _, replica := range w.cluster.Replicas {
		w.promise(replica.Running(), "no majority: %s has ended", replica.Name())
	}
	return nil
}
