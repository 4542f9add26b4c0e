package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto" // also registers the codec for requests
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// A folder of a million pairs is read as one stream of etcd's (RangeStream, since etcd 3.7). Pages would
// take minutes: for each page etcd counts the rest of the folder. The client's own GetStream makes
// three values of each pair that the garbage collector has to visit, which takes as long as
// everything else together. So messages are taken from the connection as they are, and pairs are
// slices of them.

// streamStall is how long a member may send nothing before the stream goes on at the next one.
const streamStall = 2 * time.Second

// pair is a stored pair. It lies in its chunk.
type pair struct {
	name, value       []byte // the name is without the store's prefix
	created, modified int64  // revisions
}

// chunk is one message of a stream, with about a MiB of pairs.
type chunk struct {
	bytes []byte
	pairs []pair
	// last reports whether the message ends its stream, and count is how many pairs the stream has
	// then.
	last  bool
	count int64

	decoded
	// ready is closed once decoded is set.
	ready chan struct{}
}

var chunks = sync.Pool{New: func() any { return &chunk{} }}

// release gives the memory of the chunk and of its pairs to other chunks.
func (c *chunk) release() {
	clear(c.items)
	chunks.Put(c)
}

// rawCodec is etcd's codec, except that a chunk is received as it is.
type rawCodec struct{ encoding.CodecV2 }

var streamCodec = rawCodec{encoding.GetCodecV2(proto.Name)}

// Unmarshal implements encoding.CodecV2.
func (c rawCodec) Unmarshal(data mem.BufferSlice, into any) error {
	received, is := into.(*chunk)
	if !is {
		return c.CodecV2.Unmarshal(data, into)
	}
	size := data.Len()
	if cap(received.bytes) < size {
		received.bytes = make([]byte, size+size/8)
	}
	received.bytes = received.bytes[:size]
	data.CopyTo(received.bytes)
	return nil
}

// errNoStream is the error of a server that has no streams.
var errNoStream = fmt.Errorf("%w: this etcd cannot stream: keysvc needs etcd 3.7 or later, and no proxy of etcd's in between", storage.ErrUnavailable)

// stream reads the pairs from one name up to another, or up to the end of the store if to is empty, in the order of their names, at a revision of
// etcd. use gets each chunk and owns it. If a member fails or stalls, the stream goes on at the next
// one, at the same revision. Errors: those of use, the context's, errCompacted, errNoStream, or another
// ErrUnavailable.
func (s *Store) stream(ctx context.Context, from, to string, at int64, use func(*chunk) error) error {
	retries, began := newBackoff(), time.Now()
	for {
		member := s.members.first()
		err := s.streamFrom(ctx, s.members.clients[member], from, to, at, func(received *chunk) error {
			if count := len(received.pairs); count > 0 {
				from = after(string(received.pairs[count-1].name))
			}
			began = time.Now()
			retries.Reset()
			return use(received)
		})
		var failed *streamError
		switch {
		case !errors.As(err, &failed):
			return err // nil, or the error of use
		case s.closing.Err() != nil:
			return storage.ErrUnavailable
		case ctx.Err() != nil:
			return ctx.Err()
		case s.finalError(failed.err) != nil:
			return s.finalError(failed.err)
		case status.Code(failed.err) == codes.Unimplemented:
			return errNoStream
		case time.Since(began) > s.config.Timeout || !retries.Wait(ctx):
			return unavailable(failed.err)
		}
		s.members.silent(member)
		s.config.Log.WarnContext(ctx, "reading on at another member of etcd", "error", failed.err)
	}
}

// streamError is the error of one attempt of a stream.
type streamError struct{ err error }

func (e *streamError) Error() string { return e.err.Error() }

var errIncomplete = errors.New("the stream ended too early")

// rangeStream describes RangeStream for grpc.
var rangeStream = &grpc.StreamDesc{StreamName: "RangeStream", ServerStreams: true}

// streamFrom is one attempt of stream, at one member. An error that is not of use is a streamError.
func (s *Store) streamFrom(ctx context.Context, member *clientv3.Client, from, to string, at int64, use func(*chunk) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	end := s.config.Prefix + to
	if to == "" {
		end = clientv3.GetPrefixRangeEnd(s.config.Prefix)
	}
	stalled := time.AfterFunc(streamStall, cancel)
	defer stalled.Stop()
	stream, err := member.ActiveConnection().NewStream(ctx, rangeStream, etcdserverpb.KV_RangeStream_FullMethodName,
		grpc.ForceCodecV2(streamCodec), grpc.MaxCallRecvMsgSize(maxChunk))
	if err == nil {
		err = stream.SendMsg(&etcdserverpb.RangeRequest{
			Key: []byte(s.config.Prefix + from), RangeEnd: []byte(end), Revision: at,
		})
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err != nil && !errors.Is(err, io.EOF) { // RecvMsg has the error that EOF stands for
		return &streamError{rpctypes.Error(err)}
	}
	count, complete := int64(0), false
	for {
		received := chunks.Get().(*chunk) //nolint:errcheck // the pool has nothing else
		stalled.Reset(streamStall)
		err := stream.RecvMsg(received)
		stalled.Stop() // use may take as long as it likes
		switch {
		case err == nil:
			err = received.parse(len(s.config.Prefix))
		case errors.Is(err, io.EOF) && complete:
			received.release()
			return nil
		case errors.Is(err, io.EOF):
			err = errIncomplete
		}
		if err != nil {
			received.release()
			return &streamError{rpctypes.Error(err)}
		}
		count += int64(len(received.pairs))
		if received.last {
			complete = received.count == count
		}
		if err := use(received); err != nil {
			return err
		}
	}
}

// maxChunk is the max size of a message. etcd aims at its limit for requests, 1.5 MiB as a rule.
const maxChunk = 1 << 30

// piped is stream with decode between the member and pass: decode is called for each chunk, for
// several at once, and pass then gets them in order, in one goroutine.
func (s *Store) piped(ctx context.Context, from, to string, at int64, decode func(*chunk), pass func(*chunk) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// received has the chunks that were received and not passed on. It bounds the memory that they
	// take, and how many are decoded at once.
	received := make(chan *chunk, runtime.GOMAXPROCS(0)+2)
	var streaming error
	var working sync.WaitGroup
	working.Go(func() {
		defer close(received)
		streaming = s.stream(ctx, from, to, at, func(next *chunk) error {
			next.ready = make(chan struct{})
			select {
			case received <- next:
			case <-ctx.Done():
				next.release()
				return context.Cause(ctx)
			}
			working.Go(func() {
				defer close(next.ready)
				decode(next)
			})
			return nil
		})
	})
	var passing error
	for next := range received {
		<-next.ready
		if passing != nil {
			next.release()
			continue
		}
		if passing = pass(next); passing != nil {
			cancel(passing)
		}
	}
	working.Wait()
	if passing != nil {
		return passing
	}
	return streaming
}
