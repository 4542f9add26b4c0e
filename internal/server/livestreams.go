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
	// rounds is how often all of them were judged again.
	rounds uint64
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

// judged returns how often all streams were judged again.
func (l *liveStreams) judged() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rounds
}

// begin notes a stream whose caller was judged after a call of judged. It reports whether all
// streams were judged again since then.
func (l *liveStreams) begin(stream *liveStream, judged uint64) (again bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = make(map[*liveStream]struct{})
	}
	l.open[stream] = struct{}{}
	return l.rounds != judged
}

// end forgets a stream.
func (l *liveStreams) end(stream *liveStream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, stream)
}

// round begins another round: it returns all streams that are open, to be judged again.
func (l *liveStreams) round() []*liveStream {
	l.mu.Lock()
	l.rounds++
	l.mu.Unlock()
	return l.all()
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

// beginLive notes a stream, whose caller was judged after a call of judged, until the function that
// it returns is called.
func (d *door) beginLive(ctx context.Context, stream *liveStream, judged uint64) (ended func()) {
	if d.live.begin(stream, judged) {
		d.rejudgeStream(ctx, stream) // the round that was going on may have missed it
	}
	return func() { d.live.end(stream) }
}

// rejudge judges the callers of all streams again, after what the judge decides by has changed. A
// stream whose caller is not known any more, or lacks the right now, ends.
func (d *door) rejudge(ctx context.Context) {
	for _, each := range d.live.round() {
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
