package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/scribe-mail/keysvc/test/crash/disk"
)

// state is what a store may hold at some moment.
type state struct {
	// absent means that there is no store.
	absent bool
	// known reports whether revision and digest are known.
	known    bool
	revision int64
	digest   [32]byte
	model    *model
	// creates reports whether the only difference from the previous state is a new key.
	creates bool
}

// event is what may be stored from a moment of the log on: one state, or several while a
// change is in progress.
type event struct {
	at      int // how many operations came before
	allowed []int
	what    string
}

// life is what one process did to a store, from its start to its end.
type life struct {
	seed   uint64
	random *rand.Rand
	dice   dice
	// base is the folder at the start.
	base *disk.Disk
	// states are all states of the store so far, oldest first, and tokens all tokens issued
	// so far, in this life and the lives before.
	states []state
	tokens []string
	events []event
	// log is what was done to the folder. It is set at the end.
	log []disk.Op
	// story describes the changes for people.
	story []string

	changer *changer
	elapsed atomic.Int64 // the clock, in seconds since began
	folder  string
	rec     *recorder
	product *product
	// mayShow is the newest revision that may be visible during a sync, and early a newer
	// revision that was visible.
	mayShow, early atomic.Int64
}

// newLife returns the first life of a store.
func newLife(seed uint64, bulk int) *life {
	l := &life{base: &disk.Disk{}, states: []state{{absent: true, known: true, model: newModel(2, 3)}}}
	l.draw(seed, bulk)
	return l
}

// draw makes the life's sources of randomness from a seed.
func (l *life) draw(seed uint64, bulk int) {
	l.seed = seed
	l.random = rand.New(rand.NewPCG(seed, 7))
	l.dice = newDice(seed)
	l.changer = &changer{random: l.random, bulk: bulk, names: int(seed % 1_000_000 * 1000)}
}

// after returns the life of another process, which begins with what this process left after
// a number of operations.
func (l *life) after(at int, left *disk.Disk, seed uint64) *life {
	allowed := l.allowed(at)
	next := &life{
		base:   left,
		states: slices.Clone(l.states[:slices.Max(allowed)+1]),
		tokens: slices.Clone(l.tokens),
		events: []event{{0, allowed, "begin"}},
		story:  append(slices.Clone(l.story), fmt.Sprintf("another process begins after operation %d", at)),
	}
	next.draw(seed, l.changer.bulk)
	next.elapsed.Store(l.elapsed.Load())
	return next
}

// allowed returns the states that may be stored after a number of operations.
func (l *life) allowed(at int) []int { return allowedAt(l.events, at) }

// allowedAt returns the states that the newest event up to a moment allows; none before the
// first event.
func allowedAt(events []event, at int) []int {
	var allowed []int
	for _, event := range events {
		if event.at > at {
			break
		}
		allowed = event.allowed
	}
	return allowed
}

func (l *life) now() time.Time { return began.Add(time.Duration(l.elapsed.Load()) * time.Second) }

func (l *life) note(what string, allowed ...int) {
	l.events = append(l.events, event{l.rec.at(), allowed, what})
}

func (l *life) config() config { return config{now: l.now, random: l.dice} }

// begin starts a process in a new folder. fault may be nil; otherwise it fails calls. A
// start that fails is repeated.
func (l *life) begin(folder string, fault *fault) error {
	l.folder = folder
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	if err := l.base.Restore(folder); err != nil {
		return err
	}
	l.rec = watch(folder, l.base)
	l.rec.seeds = l.seed
	if fault != nil {
		l.rec.fault = fault.strike
	}
	allowed := []int{0}
	if len(l.events) > 0 {
		allowed = l.events[0].allowed
	}
	if l.base.Number(storeFile) < 0 {
		if !l.states[allowed[0]].absent {
			return found("the file is gone")
		}
		// The process will make the store. Its epoch is not known yet.
		l.states = append(l.states, state{model: l.states[0].model})
		allowed = []int{0, len(l.states) - 1}
	}
	l.note("start", allowed...)
	for {
		struck := fault.count()
		var err error
		if l.product, err = start(folder, l.config()); err == nil {
			break
		}
		if fault.count() == struck {
			return found("the store does not open: %v", err)
		}
		l.story = append(l.story, fmt.Sprintf("the start failed: %v", err))
	}
	l.product.follow()
	l.rec.syncing = l.observe
	return l.resolve("started", allowed)
}

// observe is called during a sync: the change that the sync makes durable must not be
// visible yet.
func (l *life) observe() {
	runtime.Gosched()
	if shown := l.product.projection.Revision(); shown > l.mayShow.Load() && l.early.Load() == 0 {
		l.early.Store(shown)
	}
}

// resolve finds out which state is stored, once the store is up.
func (l *life) resolve(what string, allowed []int) error {
	var revision int64
	var digest [32]byte
	deadline := time.Now().Add(patience)
	for {
		err := l.product.up()
		if err == nil {
			revision, digest, err = l.product.digest()
		}
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			err = l.product.projection.WaitFor(ctx, revision)
			cancel()
			if err == nil {
				break
			}
		}
		if time.Now().After(deadline) {
			return found("the store does not come back: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
	for _, index := range allowed {
		if known := &l.states[index]; known.known && !known.absent && known.revision == revision && known.digest == digest {
			return l.confirm(what, index)
		}
	}
	for _, index := range allowed {
		if unknown := &l.states[index]; !unknown.known {
			unknown.known, unknown.revision, unknown.digest = true, revision, digest
			return l.confirm(what, index)
		}
	}
	return found("revision %d is stored; %s was expected", revision, l.describe(allowed))
}

// confirm notes that a state is durable and visible.
func (l *life) confirm(what string, index int) error {
	l.mayShow.Store(l.states[index].revision)
	l.note(what, index)
	return l.compare(index)
}

func (l *life) describe(allowed []int) string {
	var parts []string
	for _, index := range allowed {
		switch state := &l.states[index]; {
		case state.absent:
			parts = append(parts, "no store")
		case state.known:
			parts = append(parts, fmt.Sprintf("revision %d", state.revision))
		default:
			parts = append(parts, "the change in progress")
		}
	}
	return strings.Join(parts, " or ")
}

// patience bounds the wait for a store that reopens.
const patience = 30 * time.Second

// compare validates every token, and compares the answers with a state.
func (l *life) compare(index int) error {
	if early := l.early.Load(); early != 0 {
		return found("revision %d showed before it was durable", early)
	}
	return compareAnswers(l.product, l.tokens, l.states[index].model.answers(l.tokens))
}

// compareAnswers compares the answers to tokens with the wanted ones.
func compareAnswers(p *product, tokens, want []string) error {
	for number, token := range tokens {
		for index, scope := range scopes {
			if got, want := p.decide(token, scope), want[number*len(scopes)+index]; got != want && (want != refused || got == allowed) {
				return found("token %d (%s…) with %s gets %s, expected %s", number, token[:min(len(token), 28)], scope, got, want)
			}
		}
	}
	return nil
}

// change makes one change.
func (l *life) change(what *attempt, fault *fault) error {
	now := len(l.states) - 1
	if last := l.events[len(l.events)-1].allowed; len(last) == 1 {
		now = last[0]
	}
	l.elapsed.Add(1)
	next := l.states[now].model.clone()
	what.effect(next)
	l.states = append(l.states, state{model: next, creates: what.creates})
	after := len(l.states) - 1
	l.note(what.what, now, after)
	l.story = append(l.story, what.what)
	struck := fault.count()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	complete, err := what.call(ctx, l.product)
	if err != nil {
		l.story[len(l.story)-1] += fmt.Sprintf(": %v", err)
		if fault.filled() && full(err) {
			// The product remembers for a while that there was no room. Nothing has changed.
			return l.resolve("refused", []int{now})
		}
		if fault.count() == struck {
			return found("%s: %v", what.what, err)
		}
		return l.resolve("came back", []int{now, after})
	}
	if complete != nil {
		complete(next)
	}
	for index := range next.keys {
		for _, token := range next.keys[index].live {
			if token != "" && !slices.Contains(l.tokens, token) {
				l.tokens = append(l.tokens, token)
			}
		}
	}
	l.note("acknowledged", after)
	if fault.count() != struck {
		// The call was repeated inside, or the fault struck after it.
		return l.resolve("acknowledged", []int{after})
	}
	stored := &l.states[after]
	if stored.revision, stored.digest, err = l.product.digest(); err != nil {
		return found("%s: %v", what.what, err)
	}
	stored.known = true
	l.mayShow.Store(stored.revision)
	return l.compare(after)
}

// work makes changes; the first one of a store installs the policy.
func (l *life) work(count int, fault *fault) error {
	for range count {
		last := l.events[len(l.events)-1].allowed
		m := l.states[last[0]].model
		next := install()
		if m.policy {
			next = l.changer.next(m)
		}
		if err := l.change(next, fault); err != nil {
			return err
		}
		if l.random.IntN(8) == 0 {
			// Write the last-used times of the keys that compare has used. That is not a change.
			struck := fault.count()
			if err := l.product.recorder.Flush(context.Background()); err != nil {
				if fault.count() == struck {
					return found("writing last-used times: %v", err)
				}
				if err := l.resolve("came back", l.events[len(l.events)-1].allowed); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// end stops the process in order, and checks that every change of a file was recorded.
func (l *life) end(fault *fault) error {
	struck := fault.count()
	err := l.product.close()
	if err != nil && fault.count() == struck {
		return found("closing: %v", err)
	}
	return l.seal()
}

// seal ends the recording.
func (l *life) seal() error {
	l.rec.end()
	l.log = l.rec.log
	if l.rec.lost != nil {
		return fmt.Errorf("the laboratory lost track: %w", l.rec.lost)
	}
	if err := l.rec.disk.Compare(l.folder); err != nil {
		return fmt.Errorf("the laboratory lost track: %w", err)
	}
	return os.RemoveAll(l.folder)
}

// fault fails calls.
type fault struct {
	// first is the number of the first call that fails, and calls how many fail from there.
	first, calls int
	only         string // "sync" fails syncs only; empty fails any call
	err          error
	part         int    // how many bytes of a write are written before it fails
	seen, struck int    // how many calls came, and how many of them failed
	on           string // the name of the first call that failed
	disarmed     bool
}

// strike is the function recorder.fault.
func (f *fault) strike(_ int, its *call) (int, error) {
	if f.disarmed || f.only == "sync" && its.name != "fsync" && its.name != "fdatasync" {
		return 0, nil
	}
	f.seen++
	if f.seen < f.first || f.seen >= f.first+f.calls {
		return 0, nil
	}
	f.struck++
	if f.on == "" {
		f.on = its.name
	}
	return f.part, f.err
}

// count returns how many calls have failed.
func (f *fault) count() int {
	if f == nil {
		return 0
	}
	return f.struck
}

// filled reports whether a call has failed as on a full disk.
func (f *fault) filled() bool { return f.count() > 0 && errors.Is(f.err, syscall.ENOSPC) }

// findingError is a broken promise, unlike an error of the laboratory.
type findingError struct{ text string }

func (f *findingError) Error() string { return f.text }

func found(format string, arguments ...any) error {
	return &findingError{fmt.Sprintf(format, arguments...)}
}

// cursor walks through the log of a life.
type cursor struct {
	life *life
	disk *disk.Disk
	at   int
}

func (l *life) walk() *cursor { return &cursor{life: l, disk: l.base.Clone()} }

// to goes forward to a number of operations.
func (c *cursor) to(at int) *disk.Disk {
	for ; c.at < at; c.at++ {
		c.disk.Apply(c.life.log[c.at])
	}
	return c.disk
}

// verify opens what is left of a folder and compares it with what it may hold.
func (l *life) verify(left *disk.Disk, allowed []int, folder string, further bool) error {
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	if err := left.Restore(folder); err != nil {
		return err
	}
	quiet := &recorder{folder: folder, quiet: true}
	recorders.Store(folder, quiet)
	defer os.RemoveAll(folder)
	defer quiet.end()
	if _, err := os.Stat(filepath.Join(folder, storeFile)); errors.Is(err, os.ErrNotExist) {
		if !l.states[allowed[0]].absent {
			return found("the file is gone")
		}
		p, err := start(folder, l.config())
		if err != nil {
			return found("no store can be made: %v", err)
		}
		return l.goOn(p, folder)
	}
	if problems, err := examine(folder); err != nil || len(problems) > 0 {
		return found("check: %q, %v", problems, err)
	}
	p, err := start(folder, l.config())
	if err != nil {
		return found("the store does not open: %v", err)
	}
	if err := l.judge(p, allowed); err != nil || !further {
		return errors.Join(err, p.close())
	}
	return l.goOn(p, folder)
}

// judge compares an opened store with what it may hold.
func (l *life) judge(p *product, allowed []int) error {
	revision, digest, err := p.digest()
	if err != nil {
		return found("reading: %v", err)
	}
	unknown := -1
	for _, index := range allowed {
		state := &l.states[index]
		if state.known && !state.absent && state.revision == revision && state.digest == digest {
			return compareAnswers(p, l.tokens, state.model.answers(l.tokens))
		}
		if !state.known {
			unknown = index
		}
	}
	if unknown >= 0 {
		return compareAnswers(p, l.tokens, l.states[unknown].model.answers(l.tokens))
	}
	return found("revision %d is stored; %s was expected", revision, l.describe(allowed))
}

// goOn makes a change in a store that was opened, and checks it after that.
func (l *life) goOn(p *product, folder string) error {
	p.follow()
	if err := putAnother(p); err != nil {
		return errors.Join(found("a change after the crash: %v", err), p.close())
	}
	if err := p.close(); err != nil {
		return found("closing: %v", err)
	}
	if problems, err := examine(folder); err != nil || len(problems) > 0 {
		return found("check after another change: %q, %v", problems, err)
	}
	return nil
}
