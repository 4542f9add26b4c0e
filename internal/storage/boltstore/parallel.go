package boltstore

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// inParallel calls work for each part from 0 to parts-1, in ascending order, on as many goroutines
// as there are processors, and returns when all of them have ended. worker is the number of the
// goroutine, below workerCount. If calls fail, no further part begins, and the error is that of the
// lowest part: every part below it has begun, and so has been seen. A fault in mapped memory is an
// error of its part.
func inParallel(parts int, work func(worker, part int) error) error {
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
	for worker := 1; worker < min(workerCount(), parts); worker++ {
		others.Go(func() { run(worker) })
	}
	run(0)
	others.Wait()
	return first
}

// workerCount is the max number of goroutines of inParallel.
func workerCount() int { return runtime.GOMAXPROCS(0) }

// inOrder passes on the results of parts in the order of the parts, one at a time. The parts may
// end in any order, and a part never waits for another one.
type inOrder struct {
	mutex   sync.Mutex
	waiting map[int]func() error
	next    int
	passing bool
}

// done passes on the result of a part as soon as those of all lower parts were passed on: in this
// call, or in one of another part.
func (o *inOrder) done(part int, pass func() error) error {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if o.waiting == nil {
		o.waiting = make(map[int]func() error)
	}
	o.waiting[part] = pass
	if o.passing {
		return nil
	}
	o.passing = true
	defer func() { o.passing = false }()
	for pass := o.waiting[o.next]; pass != nil; pass = o.waiting[o.next] {
		delete(o.waiting, o.next)
		o.next++
		o.mutex.Unlock()
		err := pass()
		o.mutex.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}
