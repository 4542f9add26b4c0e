package connection

import (
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// waitingPerProcessor is how many streams may wait for an answer for each processor, before
	// connections with more than their share wait. More streams would only wait longer.
	waitingPerProcessor = 128
	// leastShare is how many streams that wait, and as many that have failed, a connection may have in
	// any case.
	leastShare = 16
	// forgetTime is the time in which as many failed streams are forgotten as the limit allows.
	forgetTime = 2
	// piece is how many bytes of a connection are read at a time, and smallPiece if a limit is near:
	// a piece must not hold many more streams than the limit allows. The headers of a call have 10 to
	// 200 bytes.
	piece, smallPiece = 4 << 10, 1 << 10
	// longestPause is the longest time for which a connection is not read: pings and resets must
	// come through some time.
	longestPause = time.Second
	// shortestInterval is the shortest time between two looks of a paused connection.
	shortestInterval = 20 * time.Millisecond
	// stalledTime is how long a connection may have more than its share of streams that wait, while
	// none of them is answered. Such streams wait for their own client.
	stalledTime = 10 * time.Second
	// impatience is by how much lower the limits of floods of streams are while too many fail.
	impatience = 8
)

// pace bounds how many streams wait for an answer, and how many fail: are refused, reset, or end with
// an error. Above a limit, a connection that has more than its share is read more slowly. So a client
// that has much to ask delays itself and not others, and a client that tries again at once whenever it
// is refused gets no further.
type pace struct {
	// mostWaiting and mostFailed are the limits; 0 means no bound.
	mostWaiting, mostFailed int64
	// waiting is how many streams wait for an answer, and connections how many connections are open.
	waiting, connections atomic.Int64
	// failed is about how many streams have failed lately: recent as it was when it changed last.
	failed atomic.Int64

	mu     sync.Mutex
	recent bucket
}

func newPace(mostFailed int) *pace {
	if mostFailed == 0 {
		return &pace{}
	}
	return &pace{mostWaiting: int64(waitingPerProcessor * runtime.GOMAXPROCS(0)), mostFailed: int64(mostFailed)}
}

// shares are what a connection may have in any case: streams that wait, and that have failed.
type shares struct {
	waiting int64
	failed  limit
}

// shares returns the share of each connection.
func (p *pace) shares() shares {
	connections := max(1, p.connections.Load())
	return shares{
		waiting: max(leastShare, p.mostWaiting/connections),
		failed:  limit{burst: max(leastShare, p.mostFailed/connections), perSecond: max(1, p.mostFailed/forgetTime/connections)},
	}
}

// most returns how many of so many bytes may be read at a time.
func (p *pace) most(size int) int {
	switch {
	case p.mostFailed == 0:
		return size
	case p.waiting.Load() <= p.mostWaiting/2 && p.failed.Load() <= p.mostFailed/2:
		return min(size, piece)
	}
	return min(size, smallPiece)
}

// tooMany reports whether too many streams wait for an answer, and whether too many have failed.
func (p *pace) tooMany(now time.Duration) (waiting, failed bool) {
	if p.mostFailed == 0 {
		return false, false
	}
	if failed = p.failed.Load() > p.mostFailed; failed {
		p.fail(now, 0) // those that have been forgotten since the last change do not count
		failed = p.failed.Load() > p.mostFailed
	}
	return p.waiting.Load() > p.mostWaiting, failed
}

// fail counts streams that have failed.
func (p *pace) fail(now time.Duration, streams int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now = max(now, p.recent.at) // the callers are many, and may be overtaken
	p.recent.take(limit{burst: p.mostFailed, perSecond: max(1, p.mostFailed/forgetTime)}, now, streams)
	// Beyond twice the limit all are forgotten, or an attack would be felt long after its end.
	p.recent.spent = min(p.recent.spent, 2*p.mostFailed*times)
	p.failed.Store(p.recent.spent / times)
}

// pause waits until the connection may be read. It returns at once if the connection does not have
// more than its share. The error says that the connection has ended.
func (c *Conn) pause() error {
	p := c.set.pace
	if waiting, failed := p.tooMany(c.set.config.Elapsed()); !waiting && !failed {
		c.stalled = stall{}
		return nil
	}
	c.pausing.Store(true) // from here on, each answer wakes
	defer c.pausing.Store(false)
	longest := time.NewTimer(longestPause)
	defer longest.Stop()
	for {
		waiting, failed := p.tooMany(c.set.config.Elapsed())
		pause := c.guard.ahead(p.shares(), waiting, failed)
		if pause <= 0 {
			c.stalled = stall{}
			return nil
		}
		if c.isStalled(waiting) {
			c.End(ClosedFlood, "its calls wait for their requests")
			return errEnded
		}
		// What the client has sent before it left is of no use to anybody.
		if hasLeft(c.raw) {
			_ = c.Close()
			return io.EOF
		}
		again := time.NewTimer(min(pause, p.interval()))
		select {
		case <-c.wakes:
			again.Stop()
		case <-again.C:
		case <-longest.C:
			again.Stop()
			c.ping()
			return nil
		}
	}
}

// stall is since when the streams of a connection have waited and none was answered, and how many had
// been answered then.
type stall struct {
	since   time.Duration
	answers int64
	begun   bool
}

// interval returns after how long a paused connection looks again whether too many streams count. If all
// looked seldom, they would go on together when few count, and too many would come at once. There are
// about a thousand looks a second.
func (p *pace) interval() time.Duration {
	return min(max(shortestInterval, time.Duration(p.connections.Load())*time.Millisecond), longestPause)
}

// isStalled reports whether more streams than the connection's share have waited for stalledTime, and
// none was answered. The goroutine that reads the connection calls it.
func (c *Conn) isStalled(waiting bool) bool {
	now, answers := c.set.config.Elapsed(), c.guard.answered()
	switch {
	case !waiting:
		c.stalled = stall{}
	case !c.stalled.begun || answers != c.stalled.answers:
		c.stalled = stall{since: now, answers: answers, begun: true}
	}
	return waiting && now-c.stalled.since >= stalledTime
}

// wake makes pause look again.
func (c *Conn) wake() {
	if c.pausing.Load() {
		select {
		case c.wakes <- struct{}{}:
		default: // it looks again already
		}
	}
}
