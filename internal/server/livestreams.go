package server

import (
	"context"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
)

// liveStreams has the streams that are open, to judge their callers again.
type liveStreams struct {
	mu   sync.Mutex
	open map[*liveStream]struct{}
}

// liveStream is a stream that is open.
type liveStream struct {
	live  *callers.Live
	needs access.Right
	// peer is what the connection proves; nil if that is not known, and then nothing is judged
	// again.
	peer *callers.Peer
	// byToken is set if a token has proved who calls.
	byToken bool
	// end ends the stream with a status.
	end context.CancelCauseFunc
}

// begin notes a stream until the function that it returns is called.
func (l *liveStreams) begin(stream *liveStream) (ended func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = make(map[*liveStream]struct{})
	}
	l.open[stream] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.open, stream)
	}
}

// all returns the streams that are open.
func (l *liveStreams) all() []*liveStream {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*liveStream, 0, len(l.open))
	for each := range l.open {
		all = append(all, each)
	}
	return all
}

// rejudge judges the callers of all streams again, after what the judge decides by has changed. A
// stream whose caller is not known any more, or lacks the right now, ends.
func (d *door) rejudge(ctx context.Context) {
	for _, each := range d.live.all() {
		d.rejudgeStream(ctx, each)
	}
}

// expire judges those streams again whose caller's credential has ended.
func (d *door) expire(ctx context.Context, now time.Time) {
	for _, each := range d.live.all() {
		if identity, _ := each.live.Watch(); identity != nil && identity.Ended(now) {
			d.rejudgeStream(ctx, each)
		}
	}
}

func (d *door) rejudgeStream(ctx context.Context, stream *liveStream) {
	if stream.peer == nil {
		return
	}
	before, _ := stream.live.Watch()
	identity := d.again(stream, before)
	if err := d.mayCall(ctx, identity, stream.needs); err != nil {
		stream.end(err)
	}
	if identity != before {
		stream.live.Set(identity)
	}
}

// again returns who calls by what the judge decides by now; nil if nobody knows.
func (d *door) again(stream *liveStream, before *callers.Identity) *callers.Identity {
	var identity *callers.Identity
	var err error
	if stream.byToken {
		judge, can := d.judge.(interface {
			Again(earlier *callers.Identity) (*callers.Identity, error)
		})
		if !can {
			return nil
		}
		identity, err = judge.Again(before)
	} else {
		identity, err = d.judge.Connection(stream.peer)
	}
	if err != nil || identity.Ended(d.now()) {
		return nil
	}
	return identity
}
