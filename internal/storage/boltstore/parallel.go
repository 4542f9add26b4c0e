package boltstore

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/scribe-mail/keysvc/internal/giveway"
)

// inParallel calls work for each part from 0 to parts-1, in ascending order, on a number of goroutines,
// and returns when all of them have ended. worker is the number of the goroutine. If calls fail, no further part begins, and the error is that of the
// lowest part: every part below it has begun, and so has been seen. A fault in mapped memory is an
// error of its part.
func inParallel(workers, parts int, work func(worker, part int) error) error {
	var next atomic.Int64
	var failed atomic.Bool
	var mutex sync.Mutex // guards lowest and first
	lowest, first := parts, error(nil)
	run := func(worker int) {
		for !failed.Load() {
			part := int(next.Add(1)) - 1
			if part >= parts {
				return
			}
			// guard catches a fault in mapped memory only in its own goroutine.
			if err := guard(func() error { return work(worker, part) }); err != nil {
				failed.Store(true)
				mutex.Lock()
				if part < lowest {
					lowest, first = part, err
				}
				mutex.Unlock()
			}
		}
	}
	var others sync.WaitGroup
	for worker := 1; worker < min(workers, parts); worker++ {
		others.Go(func() { run(worker) })
	}
	run(0)
	others.Wait()
	return first
}

// workerCount is how many goroutines work in parallel: as many as there are processors, and one for
// work that gives way.
func workerCount(ctx context.Context) int {
	if giveway.From(ctx) != nil {
		return 1
	}
	return runtime.GOMAXPROCS(0)
}

// inOrder is inParallel for parts whose results are passed on in the order of the parts, one at a
// time. work returns the function that passes its result on, which any of the goroutines may call.
// Parts wait before they begin if the results of many are waiting, so that memory stays bounded.
func inOrder(workers, parts int, work func(worker, part int) (pass func() error, err error)) error {
	results := &orderedResults{most: 2 * workers, waiting: make(map[int]func() error)}
	results.changed.L = &results.mutex
	return inParallel(workers, parts, func(worker, part int) (err error) {
		if !results.begin(part) {
			return nil
		}
		ended := false
		defer func() { // also after a panic
			if !ended || err != nil {
				results.fail()
			}
		}()
		pass, err := work(worker, part)
		if pass == nil {
			pass = func() error { return nil }
		}
		if err == nil {
			err = results.done(part, pass)
		}
		ended = true
		return err
	})
}

// orderedResults are the results of inOrder that wait for those of lower parts.
type orderedResults struct {
	most int

	mutex   sync.Mutex // guards the group below
	changed sync.Cond
	waiting map[int]func() error
	// next is the part whose result is passed on next. passing reports whether a goroutine passes
	// results on.
	next            int
	passing, failed bool
}

// begin waits until the part may begin, and reports whether no other part has failed. The part that
// is to be passed on next never waits.
func (r *orderedResults) begin(part int) bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	for part >= r.next+r.most && !r.failed {
		r.changed.Wait()
	}
	return !r.failed
}

func (r *orderedResults) fail() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.failed = true
	r.changed.Broadcast()
}

// done passes on the result of a part as soon as those of all lower parts were passed on: in this
// call, or in one of another part.
func (r *orderedResults) done(part int, pass func() error) error {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.waiting[part] = pass
	if r.passing {
		return nil
	}
	r.passing = true
	for pass := r.waiting[r.next]; pass != nil && !r.failed; pass = r.waiting[r.next] {
		delete(r.waiting, r.next)
		if err := r.unlocked(pass); err != nil {
			return err // passing stays set: nothing is passed on any more
		}
		r.next++
		r.changed.Broadcast()
	}
	r.passing = false
	return nil
}

// unlocked calls pass without the mutex, which is held again afterwards, also after a panic.
func (r *orderedResults) unlocked(pass func() error) error {
	r.mutex.Unlock()
	defer r.mutex.Lock()
	return pass()
}
