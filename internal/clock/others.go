package clock

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// suspicion is the shortest time between the first and the last of the changes that make a clock
	// count as ahead of all others. One such change proves nothing: its transaction may have been taken by
	// the store long before it was executed, as when the store had no quorum meanwhile.
	suspicion = 10 * time.Second
	// recent is the largest age of a read of the change log by which a change counts as new.
	recent = 15 * time.Second
	// agreement is how long one change whose time agrees with a clock outweighs others whose times do not:
	// at least two clocks are then of one opinion, and the wrong one is another.
	agreement = time.Minute
	// maxUnjudged bounds the changes that wait until it is known who made them. Further ones are not judged.
	maxUnjudged = 4096
)

// Others compares a Clock with the times of the changes that other processes make over the same store.
// Nobody knows which clock is right. So a Clock counts as apart if it differs by more than Apart from all
// others that have shown their time lately.
//
// A change is stamped before it is committed, is committed before it is seen, and either may take long. So
// a time that is ahead of this clock shows a difference of the clocks by itself. A time that is behind it shows
// one only if the change is known to be new, which is if the change log did not have it when it
// was read last, and if more than one change shows it.
//
// Its methods may be called from many goroutines.
type Others struct {
	clock *Clock

	// apart is what shows that the clock is apart; nil while it is not.
	apart atomic.Pointer[mark]

	mutex sync.Mutex
	// commits are the own commits in flight, by a number that grows, and last is the number of the newest.
	commits map[int64]struct{}
	last    int64
	// own are revisions of own commits, and unjudged the changes that were seen and not judged yet, in
	// the order of revisions.
	own      map[int64]struct{}
	unjudged []seen
	// read is what the newest read of the change log has shown.
	read read
	// agreed is the moment of the newest change whose time agrees, if any has.
	agreed    time.Duration
	hasAgreed bool
	// behind is the moment of the first of the changes whose times are behind, since the newest one that
	// agrees; isBehind is set if there is one.
	behind   time.Duration
	isBehind bool
}

// mark is a time that another clock has shown, and the moment at which it arrived here.
type mark struct {
	stamp  time.Time
	moment time.Duration
}

// seen is a change that arrived.
type seen struct {
	mark
	revision int64
	// at is the own time when it arrived.
	at time.Time
	// read is the newest read of the change log at that time.
	read read
	// last is the number of the newest own commit at that time.
	last int64
}

// read is a read of the change log.
type read struct {
	revision int64
	// sent is the own time when it was sent; zero if there was none.
	sent time.Time
}

// NewOthers returns the Others of a clock.
func NewOthers(clock *Clock) *Others {
	return &Others{clock: clock, commits: make(map[int64]struct{}), own: make(map[int64]struct{})}
}

// Commit notes that this process makes a change. The caller calls done once the outcome is known, with the
// change's revision, or with 0 if it was not made.
func (o *Others) Commit() (done func(revision int64)) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.last++
	number := o.last
	o.commits[number] = struct{}{}
	return func(revision int64) {
		o.mutex.Lock()
		defer o.mutex.Unlock()
		delete(o.commits, number)
		if revision > 0 {
			o.own[revision] = struct{}{}
		}
	}
}

// Read notes that a read of the change log, sent when the clock's Own time was sent, has found a revision.
func (o *Others) Read(revision int64, sent time.Time) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.read = read{revision, sent}
}

// See notes that a change has arrived, which any process has stamped. Changes arrive in the order of
// revisions. If its time is ahead of the clock by more than Apart, this is judged at once, and See returns
// false.
func (o *Others) See(revision int64, stamp time.Time) bool {
	at := o.clock.Own()
	o.mutex.Lock()
	defer o.mutex.Unlock()
	change := seen{mark: mark{stamp, o.moment(at)}, revision: revision, at: at, read: o.read, last: o.last}
	if stamp.Sub(at) > Apart { // no change of this process's: what this process stamps is at most Apart ahead
		o.differs(change)
		return false
	}
	if len(o.unjudged) < maxUnjudged {
		o.unjudged = append(o.unjudged, change)
	}
	return true
}

// moment returns a measure of the time that passes. at is the Own time.
func (o *Others) moment(at time.Time) time.Duration {
	if o.clock.passed != nil {
		return o.clock.passed()
	}
	return time.Duration(at.UnixNano())
}

// Judge judges what has arrived. It is to be called every Interval. It returns how far the others are ahead
// of the clock if the clock is apart, which is negative if they are behind, and 0 if the clock is not apart.
func (o *Others) Judge() time.Duration {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	judged := 0
	for _, change := range o.unjudged {
		if o.mayBeOwn(change) {
			break
		}
		judged++
		if _, own := o.own[change.revision]; !own {
			o.judge(change)
		}
	}
	if judged > 0 {
		newest := o.unjudged[judged-1].revision
		o.unjudged = append(o.unjudged[:0], o.unjudged[judged:]...)
		for revision := range o.own {
			if revision <= newest {
				delete(o.own, revision)
			}
		}
	}
	by := o.By()
	if by.Abs() <= Apart { // somebody has set the clock right
		o.apart.Store(nil)
		return 0
	}
	return by
}

// mayBeOwn reports whether a change may be that of a commit whose outcome is not known yet. mutex is held.
func (o *Others) mayBeOwn(change seen) bool {
	for number := range o.commits {
		if number <= change.last {
			return true
		}
	}
	return false
}

// judge judges a change that another process has made, and whose time is not ahead. mutex is held.
func (o *Others) judge(change seen) {
	isNew := !change.read.sent.IsZero() && change.revision > change.read.revision
	switch {
	case isNew && change.read.sent.Sub(change.stamp) > Apart:
		o.differs(change)
	case isNew && change.at.Sub(change.read.sent) <= recent && change.at.Sub(change.stamp) <= Apart:
		o.agreed, o.hasAgreed, o.isBehind = change.moment, true, false
		o.apart.Store(nil)
	}
}

// differs takes a change whose time differs from the clock. mutex is held.
func (o *Others) differs(change seen) {
	if o.hasAgreed && change.moment-o.agreed <= agreement {
		return
	}
	if change.stamp.Before(change.at) {
		if !o.isBehind {
			o.behind, o.isBehind = change.moment, true
		}
		if change.moment-o.behind < suspicion {
			return
		}
	}
	o.apart.Store(&change.mark)
}

// By returns how far the others are ahead of the clock if the clock is apart, which is negative if
// they are behind, and 0 if it is not apart.
func (o *Others) By() time.Duration {
	shown := o.apart.Load()
	if shown == nil {
		return 0
	}
	at := o.clock.Own()
	return shown.stamp.Add(o.moment(at) - shown.moment).Sub(at)
}

// Latest returns the time that the others show if the clock is apart and behind them, and else the zero
// Time.
func (o *Others) Latest() time.Time {
	if o.apart.Load() == nil {
		return time.Time{}
	}
	if by := o.By(); by > 0 {
		return o.clock.Own().Add(by)
	}
	return time.Time{}
}
