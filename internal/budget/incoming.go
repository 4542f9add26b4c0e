package budget

import (
	"context"
	"encoding/binary"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// transportStream is what grpc's transport offers for a stream. grpc exports these methods on a
// type that it does not export. Every test over a real server finds out if another version of grpc
// lacks one of them.
type transportStream interface {
	grpc.ServerTransportStream
	// ReadMessageHeader fills header with the next bytes of the stream.
	ReadMessageHeader(header []byte) error
	// Read returns the next bytes. It lets the client send that many.
	Read(bytes int) (mem.BufferSlice, error)
	// WriteStatus ends the stream. It may be called by any goroutine, and again.
	WriteStatus(result *status.Status) error
}

// What only a mistake in keysvc, or another version of grpc, can bring about. Config.Status logs the
// error, and the caller is told of an internal error.
var (
	errTransport = errors.New("budget: the transport of grpc lacks a method that keysvc needs")
	errMessage   = errors.New("budget: a message is not one of protobuf")
	errOpening   = errors.New("budget: the interceptor of streams was passed by")
)

// transportOf returns the transport's stream of a call.
func (g *Gate) transportOf(ctx context.Context) (transportStream, error) {
	if transport, is := grpc.ServerTransportStreamFromContext(ctx).(transportStream); is {
		return transport, nil
	}
	return nil, g.config.Status(ctx, errTransport)
}

const (
	// prefixLength is the length of what stands before a message: a flag, and its length.
	prefixLength = 5
	// decodedFactor is how much a decoded message takes for each byte of its wire form, and
	// elementBytes how much for each element, at most.
	decodedFactor = 2
	elementBytes  = 256
	// piece is how many bytes of a request are read at a time.
	piece = 4 << 10
	// countFrom is the size from which the elements of a request are counted.
	countFrom = 512
)

// buffers has a size for each power of two, unlike grpc's pool: in that one, a message of 40 KiB
// takes a buffer of 1 MiB.
var buffers = newBuffers()

func newBuffers() mem.BufferPool {
	var exponents []uint8
	for exponent := uint8(8); exponent <= 20; exponent++ {
		exponents = append(exponents, exponent)
	}
	pool, err := mem.NewBinaryTieredBufferPool(exponents...)
	if err != nil {
		panic(err) // the exponents are fixed
	}
	return pool
}

// incoming reads the requests of one call.
type incoming struct {
	gate      *Gate
	transport transportStream
	holder    Holder
	// identified is set if holder has the caller. It is looked up only if bytes are taken.
	identified bool
	prefix     [prefixLength]byte
	// opening has the first prefix of a stream; nil once that was used, and for unary calls.
	opening *opening
	// taken is what the newest request holds.
	taken int64
}

// receive reads and decodes the next request. io.EOF is returned if the client has ended its half
// of the stream; other errors are statuses.
func (in *incoming) receive(ctx context.Context, request proto.Message) error {
	// 1. Learn how long the request is.
	if err := in.begin(); err != nil {
		if errors.Is(err, io.EOF) {
			return io.EOF
		}
		return transportError(err)
	}
	length := int(binary.BigEndian.Uint32(in.prefix[1:]))
	switch {
	case in.prefix[0] != 0:
		return status.Error(codes.Unimplemented, "the request is compressed; compression is not supported")
	case length > in.gate.config.MaxMessageBytes:
		return in.gate.config.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID,
			"the request has %d bytes; %d are allowed", length, in.gate.config.MaxMessageBytes))
	}
	// 2. Take its bytes from the budget before it comes, because the client is free to send it as
	// slowly as it likes.
	if length > small && !in.take(ctx, int64(length)*(1+decodedFactor)) {
		return in.gate.noRoom(ctx)
	}
	buffer, err := in.read(length)
	if err != nil {
		return transportError(err)
	}
	defer buffer.Free()
	wire := buffer.ReadOnlyData()
	// 3. Count its elements before it is decoded.
	if length > countFrom {
		if err := in.count(ctx, request, wire); err != nil {
			return err
		}
	}
	if err := proto.Unmarshal(wire, request); err != nil {
		return status.Errorf(codes.Internal, "the request cannot be decoded: %v", err)
	}
	// 4. The wire form is not needed any more.
	if in.taken > 0 {
		in.give(int64(length))
	}
	return nil
}

// begin reads the prefix of the next request. That of the first request of a stream was read by
// await.
func (in *incoming) begin() error {
	if opening := in.opening; opening != nil {
		in.opening, in.prefix = nil, opening.first
		return opening.err
	}
	return in.transport.ReadMessageHeader(in.prefix[:])
}

// read returns the next bytes of the stream. It collects them in one buffer, piece by piece: a
// client may send each byte in a frame of its own, which takes fifty times as much.
func (in *incoming) read(length int) (mem.Buffer, error) {
	if length <= piece {
		data, err := in.transport.Read(length)
		if err != nil {
			return nil, err
		}
		defer data.Free()
		return data.MaterializeToBuffer(buffers), nil
	}
	whole := buffers.Get(length)
	for filled := 0; filled < length; {
		data, err := in.transport.Read(min(length-filled, piece))
		if err != nil {
			buffers.Put(whole)
			return nil, err
		}
		filled += data.CopyTo((*whole)[filled:])
		data.Free()
	}
	return mem.NewBuffer(whole, buffers), nil
}

// count takes the bytes that the elements of a request will hold, and refuses a request with too
// many of them.
func (in *incoming) count(ctx context.Context, request proto.Message, wire []byte) error {
	elements, err := in.gate.elements.count(request.ProtoReflect().Descriptor(), wire)
	if many, is := errors.AsType[*tooManyError](err); is {
		var fields problem.Fields
		fields.Add(many.field, "has more than %d items; %d are allowed", many.allowed, many.allowed)
		return in.gate.config.Status(ctx, fields.Err())
	}
	if err != nil {
		return in.gate.config.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID, "the request is nested too deep"))
	}
	if elements > 0 && !in.take(ctx, int64(elements)*elementBytes) {
		return in.gate.noRoom(ctx)
	}
	return nil
}

// take takes bytes for the newest request. It reports whether there was room for them.
func (in *incoming) take(ctx context.Context, bytes int64) bool {
	in.identify(ctx)
	if !in.gate.config.Budget.take(in.holder, bytes) {
		return false
	}
	in.taken += bytes
	return true
}

// identify looks up the caller.
func (in *incoming) identify(ctx context.Context) {
	if !in.identified {
		in.holder.Caller, in.identified = callers.FromContext(ctx).CallerName(), true
	}
}

// give gives back some of the bytes of the newest request.
func (in *incoming) give(bytes int64) {
	in.taken -= bytes
	in.gate.config.Budget.give(in.holder, bytes)
}

// ended returns nil if the client has ended its half of the stream after its only request.
func (in *incoming) ended() error {
	switch err := in.transport.ReadMessageHeader(in.prefix[:1]); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return transportError(err)
	}
	return status.Error(codes.Internal, "the call takes one request, and more came")
}

// transportError returns the status of an error of the transport.
func transportError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return status.Error(codes.Internal, "the request ended before it was complete")
	}
	if _, is := status.FromError(err); is {
		return err
	}
	return status.Error(codes.Unavailable, "the connection was lost")
}
