package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// errBroken is the error of a watch that broke off and may be resumed. errStuck is an errBroken: the
// member has not answered in time.
var (
	errBroken = errors.New("the watch has broken off")
	errStuck  = fmt.Errorf("%w: the member does not answer", errBroken)
)

// goal is the newest revision of a change that the store has told a caller of. Every watch has to come to it.
type goal struct {
	mutex    sync.Mutex
	revision int64
	// raised is closed and replaced when revision grows.
	raised chan struct{}
}

func (g *goal) raise(revision int64) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if revision > g.revision {
		g.revision = revision
		close(g.raised)
		g.raised = make(chan struct{})
	}
}

// now returns the goal, and a channel that is closed when it is raised.
func (g *goal) now() (int64, <-chan struct{}) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	return g.revision, g.raised
}

// stream is a watch at one member.
//
// It is the stream of etcd's API and not a watch of etcd's client, because that resumes a watch in
// silence when the member was restarted, whatever the member has as its data by then.
//
// It does not ask for a leader. So it lasts as long as its member, whatever happens to the others: after an election or an
// outage it goes on at once. That a member is behind shows as soon as somebody was told of more (goal).
type stream struct {
	messages <-chan message
	end      func()
	// open ends when nothing more can come from the member.
	open context.Context //nolint:containedctx // the stream's own life
	// whenSilent calls a function once the member turns out to be silent; nil if nobody is to find that out.
	whenSilent func(ctx context.Context, call func()) (stop func())
	// patience is how long the member may take, and waited how long it has taken since goal was set.
	patience, waited time.Duration
	goal             int64
}

// message is a message of a watch, or the error that ended it.
type message struct {
	response *etcdserverpb.WatchResponse
	err      error
}

// newStream begins a watch at one member. A goroutine receives; it ends with the stream. The caller ends
// the stream.
func newStream(ctx context.Context, client *clientv3.Client, request *etcdserverpb.WatchCreateRequest, patience time.Duration) *stream {
	ctx, cancel := context.WithCancel(ctx)
	open, broken := context.WithCancel(ctx)
	messages, ended := make(chan message), make(chan struct{})
	go func() {
		defer close(ended)
		receive(ctx, client, request, messages, broken)
	}()
	return &stream{messages: messages, open: open, patience: patience, end: func() { cancel(); <-ended }}
}

// connect returns a client for a watch at one member, and what disconnects it again.
func (s *Store) connect(member int) (_ *clientv3.Client, disconnect func(), err error) {
	if s.config.Connect == nil {
		return s.members.clients[member], func() {}, nil
	}
	client, err := s.config.Connect(member)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s", errBroken, err.Error())
	}
	return client, func() { _ = client.Close() }, nil
}

// receive passes on the messages of a watch until it or the context ends. It calls broken before it passes an error on.
// Everything here may wait for the member, even opening the stream.
func receive(ctx context.Context, client *clientv3.Client, request *etcdserverpb.WatchCreateRequest, messages chan<- message, broken func()) {
	pass := func(response *etcdserverpb.WatchResponse, err error) bool {
		if err != nil {
			broken()
		}
		select {
		case messages <- message{response, err}:
			return err == nil
		case <-ctx.Done():
			return false
		}
	}
	watch, err := etcdserverpb.NewWatchClient(client.ActiveConnection()).Watch(ctx, grpc.MaxCallRecvMsgSize(math.MaxInt32))
	if err == nil {
		err = watch.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: request}})
	}
	if err != nil {
		pass(nil, err)
		return
	}
	for pass(watch.Recv()) {
	}
}

// begun waits until the member has begun the watch.
func (w *stream) begun(ctx context.Context) error {
	response, err := w.next(ctx, nil, 0)
	if err == nil && !response.GetCreated() {
		err = fmt.Errorf("%w: it began with another message", errBroken)
	}
	w.goal, w.waited = 0, 0
	return err
}

// next returns the next message. reached is the revision that the watch has come to. If told is above
// it, or nil, next waits no longer than the patience allows. The wait counts only here: while the consumer of
// the watch is busy, nobody waits for the member. Errors: ErrGap, if etcd was compacted; errBroken; the
// context's.
func (w *stream) next(ctx context.Context, told *goal, reached int64) (*etcdserverpb.WatchResponse, error) {
	for {
		goal, raised := int64(math.MaxInt64), (<-chan struct{})(nil)
		if told != nil {
			goal, raised = told.now()
		}
		if w.goal <= reached { // it has come to the goal before
			w.goal, w.waited = goal, 0
		}
		var late <-chan time.Time
		var silent chan struct{}
		if w.goal > reached {
			raised = nil
			timer := time.NewTimer(w.patience - w.waited)
			defer timer.Stop()
			late = timer.C
			if w.whenSilent != nil {
				silent = make(chan struct{})
				defer w.whenSilent(ctx, func() { close(silent) })()
			}
		}
		begun := time.Now()
		select {
		case got := <-w.messages:
			w.waited += time.Since(begun)
			return got.content()
		case <-raised:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-silent:
			return nil, errStuck
		case <-late:
			select { // this process may have stood still
			case got := <-w.messages:
				return got.content()
			default:
				return nil, errStuck
			}
		}
	}
}

// content returns the response of a message, or its error.
func (m message) content() (*etcdserverpb.WatchResponse, error) {
	switch response := m.response; {
	case m.err != nil:
		return nil, fmt.Errorf("%w: %s", errBroken, m.err.Error())
	case response.GetCompactRevision() != 0:
		return nil, &compactedError{response.GetCompactRevision()}
	case response.GetCanceled():
		return nil, fmt.Errorf("%w: %s", errBroken, response.GetCancelReason())
	}
	return m.response, nil
}

// compactedError is the ErrGap of a watch whose beginning etcd has compacted.
type compactedError struct {
	revision int64 // the newest that etcd has compacted
}

func (e *compactedError) Error() string {
	return fmt.Sprintf("%v: etcd has been compacted up to revision %d", storage.ErrGap, e.revision)
}

// Is makes every compactedError an ErrGap.
func (e *compactedError) Is(target error) bool { return target == storage.ErrGap }
