package connection

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Reason says why the server has refused or ended a connection.
type Reason string

// The reasons.
const (
	// ClosedFull is for connections beyond MaxConnections, and ClosedSourceFull beyond
	// MaxPerSource.
	ClosedFull       Reason = "too many connections"
	ClosedSourceFull Reason = "too many connections of one source"
	// ClosedFast is for connections that begin too fast, and ClosedSourceFast for those of one
	// source.
	ClosedFast       Reason = "too many new connections"
	ClosedSourceFast Reason = "too many new connections of one source"
	// ClosedHandshake is for a failed handshake of TLS.
	ClosedHandshake Reason = "the TLS handshake failed"
	// ClosedSlow is for a client that has sent nothing useful yet.
	ClosedSlow Reason = "the client does not begin"
	// ClosedUnknown is for a client that nobody knows.
	ClosedUnknown Reason = "the client is not known"
	// ClosedRemoved is for a client that was known when it connected.
	ClosedRemoved Reason = "the client is not known any more"
	// ClosedExpired is for a credential that has ended.
	ClosedExpired Reason = "the credential of the client has ended"
	// ClosedUnread is for a client that does not read its answers.
	ClosedUnread Reason = "the client does not read its answers"
	// ClosedFlood is for too many frames of a kind, and ClosedProtocol for frames that HTTP/2 does
	// not allow.
	ClosedFlood    Reason = "a flood of frames"
	ClosedProtocol Reason = "not HTTP/2 as it should be"
)

// Closed are connections that the server has refused or ended for a reason.
type Closed struct {
	Reason Reason
	// Peer names one of the clients, and Detail says more of why; "" if there is no more.
	Peer, Detail string
	// Count is how many were closed since Closed was last reported for this reason.
	Count int64
}

// reasonOf returns the reason of an error of the guard.
func reasonOf(err error) Reason {
	if flood := (floodError{}); errors.As(err, &flood) {
		return ClosedFlood
	}
	return ClosedProtocol
}

// nameOf names the other end of a connection for the log.
func nameOf(from source, raw net.Conn) string {
	if from.unix {
		return fmt.Sprintf("uid %d", from.userID)
	}
	if address := raw.RemoteAddr(); address != nil {
		return address.String()
	}
	return ""
}

// reportInterval is the shortest time between two reports for one reason.
const reportInterval = time.Second

// reports reports closed connections, at a bounded rate.
type reports struct {
	call func(Closed)

	mu      sync.Mutex
	waiting map[Reason]*waitingReport
}

// waitingReport is what was not reported yet for a reason, and when it was reported last.
type waitingReport struct {
	closed Closed
	last   time.Duration
}

func newReports(call func(Closed)) reports {
	return reports{call: call, waiting: make(map[Reason]*waitingReport)}
}

// add reports a connection, now or later.
func (r *reports) add(reason Reason, peer, detail string, now time.Duration) {
	r.mu.Lock()
	waiting := r.waiting[reason]
	if waiting == nil {
		waiting = &waitingReport{last: now - reportInterval}
		r.waiting[reason] = waiting
	}
	count := waiting.closed.Count + 1
	waiting.closed = Closed{Reason: reason, Peer: peer, Detail: detail, Count: count}
	due := waiting.due(now)
	r.mu.Unlock()
	r.tell(due)
}

// due returns what is to be reported now; with Count 0 if nothing is.
func (w *waitingReport) due(now time.Duration) (due Closed) {
	if w.closed.Count > 0 && now-w.last >= reportInterval {
		due, w.closed, w.last = w.closed, Closed{}, now
	}
	return due
}

// flush reports what has waited long enough.
func (r *reports) flush(now time.Duration) {
	var all []Closed
	r.mu.Lock()
	for _, waiting := range r.waiting {
		all = append(all, waiting.due(now))
	}
	r.mu.Unlock()
	for _, due := range all {
		r.tell(due)
	}
}

func (r *reports) tell(due Closed) {
	if due.Count > 0 && r.call != nil {
		r.call(due)
	}
}
