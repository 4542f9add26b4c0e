package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/scribe-mail/keysvc/test/crash/disk"
)

// A crowd changes a store from many goroutines, so that one transaction holds several
// changes. Each goroutine (a hand) has a workspace of its own, and knows what may be stored
// of that workspace. The order differs from run to run, so a seed does not repeat a crowd. The
// image of a finding is kept instead.

// hand is one goroutine of the crowd.
type hand struct {
	changer *changer
	states  []*model
	tokens  []string
	events  []event
}

func (h *hand) note(l *life, what string, allowed ...int) {
	h.events = append(h.events, event{l.rec.at(), allowed, what})
}

// allowed returns the states that may be stored after a number of operations; none before
// the hand has begun.
func (h *hand) allowed(at int) []int { return allowedAt(h.events, at) }

// work makes changes.
func (h *hand) work(l *life, count int) error {
	h.note(l, "begin", 0)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for range count {
		now := len(h.states) - 1
		what := h.changer.next(h.states[now])
		next := h.states[now].clone()
		what.effect(next)
		h.states = append(h.states, next)
		h.note(l, what.what, now, now+1)
		complete, err := what.call(ctx, l.product)
		if err != nil {
			return found("%s: %v", what.what, err)
		}
		if complete != nil {
			complete(next)
		}
		for index := range next.keys {
			for _, token := range next.keys[index].live {
				if !slices.Contains(h.tokens, token) {
					h.tokens = append(h.tokens, token)
				}
			}
		}
		h.note(l, "acknowledged", now+1)
		if err := compareAnswers(l.product, h.tokens, next.answers(h.tokens)); err != nil {
			return err
		}
	}
	return nil
}

// fits returns the allowed state that the store shows. If it shows another one, the error says
// how it differs from the last allowed state.
func (h *hand) fits(p *product, allowed []int) (int, error) {
	var problem error
	for _, index := range allowed {
		if problem = compareAnswers(p, h.tokens, h.states[index].answers(h.tokens)); problem == nil {
			return index, nil
		}
	}
	return 0, problem
}

// crowds makes images of a store while a crowd changes it.
func (r *round) crowds() error {
	l := newLife(r.random.Uint64(), 0)
	if err := l.begin(r.path(), nil); err != nil {
		return r.report(err, l, nil, "without a fault")
	}
	err := l.work(1, nil)
	hands := make([]*hand, 2+r.random.IntN(7))
	failures := make([]error, len(hands))
	var working sync.WaitGroup
	for number := range hands {
		random := rand.New(rand.NewPCG(r.random.Uint64(), 0))
		m := &model{policy: true}
		for member := range 3 {
			m.members = append(m.members, memberModel{workspace: fmt.Sprintf("own-%d", number), id: fmt.Sprintf("m%d", member)})
		}
		h := &hand{changer: &changer{random: random, names: number * 1000, noPolicy: true}, states: []*model{m}}
		hands[number] = h
		working.Go(func() { failures[number] = h.work(l, 3+random.IntN(8)) })
	}
	working.Wait()
	for _, failure := range failures {
		if err == nil {
			err = failure
		}
	}
	l.rec.syncing = nil
	if ending := l.end(nil); err == nil {
		err = ending
	}
	if err != nil {
		return r.report(err, l, nil, "without a fault")
	}
	moments := make([]int, 40)
	for index := range moments {
		moments[index] = r.random.IntN(len(l.log) + 1)
	}
	slices.Sort(moments)
	cursor := l.walk()
	for _, at := range moments {
		way, torn := disk.Cut(r.random.IntN(int(disk.Cuts))), r.random.IntN(4) == 0
		image := cursor.to(at).PowerCut(way, torn, r.random)
		r.images++
		err := r.verifyCrowd(l, hands, at, image)
		if err := r.report(err, l, image, fmt.Sprintf("power cut after operation %d of %d (%s, torn %t)", at, len(l.log), way, torn)); err != nil {
			return err
		}
	}
	return nil
}

// verifyCrowd compares an image with what each hand knows.
func (r *round) verifyCrowd(l *life, hands []*hand, at int, image *disk.Disk) error {
	if len(l.allowed(at)) > 1 || l.states[l.allowed(at)[0]].absent || !l.states[l.allowed(at)[0]].model.policy {
		return nil // before the crowd began, which other kinds cover
	}
	return r.withFile(image, func(folder, file string) error {
		quiet := &recorder{folder: folder, quiet: true}
		recorders.Store(folder, quiet)
		defer quiet.end()
		if _, err := os.Stat(file); err != nil {
			return found("the file is gone")
		}
		if problems, err := examine(filepath.Clean(folder)); err != nil || len(problems) > 0 {
			return found("check: %q, %v", problems, err)
		}
		p, err := start(folder, l.config())
		if err != nil {
			return found("the store does not open: %v", err)
		}
		for number, h := range hands {
			allowed := h.allowed(at)
			if len(allowed) == 0 {
				allowed = []int{0}
			}
			if _, err := h.fits(p, allowed); err != nil {
				_ = p.close()
				return found("workspace own-%d: %v", number, err)
			}
		}
		if err := p.close(); err != nil {
			return found("closing: %v", err)
		}
		return nil
	})
}
