package budget

import (
	"context"
	"runtime"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	// It registers the codec that this one uses.
	encodingproto "google.golang.org/grpc/encoding/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// Config configures a Gate. All fields are required but Urgent.
type Config struct {
	// Budget is what calls take bytes from.
	Budget *Budget
	// MaxMessageBytes is how large a request may be, in bytes.
	MaxMessageBytes int
	// Elements are how many elements the repeated fields of requests may have.
	Elements Limits
	// Unary is the interceptor of unary calls.
	Unary grpc.UnaryServerInterceptor
	// Status returns the status that an error is answered with.
	Status func(ctx context.Context, err error) error
	// Places bounds the calls that are open.
	Places Places
	// Refused is called with the Budget's state when a call finds no room. It must return at once.
	Refused func(Snapshot)
	// Urgent returns how many validations have begun so far. Large pages, and policies that are only
	// checked, give way to them. Nil if nothing is urgent.
	Urgent func() int64
	// Stopping ends when the server begins to stop.
	Stopping context.Context //nolint:containedctx // the server's own lifetime, not a call's
}

// Places bounds the calls that are open. A stream of a near-cache has a place until its first request
// begins to come. The methods may be called from many goroutines.
type Places interface {
	// Take takes a place for a call of a connection. The error is what the call is refused with.
	Take(connection *peer.Peer, work callers.Work) (share *atomic.Int64, err error)
	// Give gives the place back, with the share that Take has returned.
	Give(share *atomic.Int64)
}

// Gate is the way of every call from grpc to its service, and back. Its methods may be called from
// many goroutines.
type Gate struct {
	config   Config
	elements *counter
	halfOpen *halfOpen
	// turns holds one for each large page that is being made: on half of the processors at most.
	turns chan struct{}
}

// NewGate returns a Gate. Run must run while it is used.
func NewGate(config Config) *Gate {
	surplus := config.Status(context.Background(), problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
		"too many calls wait for their request to come; try again"))
	return &Gate{
		config: config, elements: &counter{limits: config.Elements}, halfOpen: newHalfOpen(status.Convert(surplus)),
		turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
	}
}

// Run ends the calls whose request does not come, until the context ends.
func (g *Gate) Run(ctx context.Context) { g.halfOpen.run(ctx) }

// HalfOpen returns how many calls wait for their request.
func (g *Gate) HalfOpen() int { return g.halfOpen.length() }

// Options returns what a grpc server needs so that its services can be registered with Services. One
// of them is an interceptor of streams: others must be given as grpc.ChainStreamInterceptor.
// Windows are static: one that adapts to the client grows to 16 MiB for each stream.
func (g *Gate) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{}),
		grpc.StaticStreamWindowSize(WindowBytes),
		grpc.StaticConnWindowSize(16 * WindowBytes),
		grpc.StreamInterceptor(g.await),
	}
}

// Services registers services with a grpc server so that their calls pass the gate.
type Services struct {
	*grpc.Server
	gate *Gate
}

// Services returns a registrar for a server that was made with Options.
func (g *Gate) Services(server *grpc.Server) Services { return Services{Server: server, gate: g} }

// RegisterService implements grpc.ServiceRegistrar. A unary method is registered as a stream with
// one message each way, which is what it is for grpc, too: then its handler lasts until the answer
// is written.
func (s Services) RegisterService(description *grpc.ServiceDesc, implementation any) {
	gated := *description
	gated.Methods, gated.Streams = nil, nil
	for _, method := range description.Methods {
		work := callers.Of("/" + description.ServiceName + "/" + method.MethodName).Work
		gated.Streams = append(gated.Streams, grpc.StreamDesc{
			StreamName: method.MethodName,
			Handler: func(service any, stream grpc.ServerStream) error {
				return s.gate.unary(service, stream, work, method.Handler)
			},
		})
	}
	for _, method := range description.Streams {
		work, handler, manyRequests := callers.Of("/"+description.ServiceName+"/"+method.StreamName).Work, method.Handler, method.ClientStreams
		method.Handler = func(service any, stream grpc.ServerStream) error {
			return s.gate.stream(service, stream, work, manyRequests, handler)
		}
		gated.Streams = append(gated.Streams, method)
	}
	s.Server.RegisterService(&gated, implementation)
}

// holderOf returns who holds what a call takes, without the caller.
func holderOf(ctx context.Context, work callers.Work) Holder {
	connection, _ := peer.FromContext(ctx)
	return Holder{Connection: connection, Work: work}
}

// noRoom returns the error for a call that found no room.
func (g *Gate) noRoom(ctx context.Context) error {
	state := g.config.Budget.Snapshot()
	g.config.Refused(state)
	return g.config.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
		"the server holds as many bytes of requests and answers as it may, or this caller or connection does; read the answers that wait, and try again"))
}

// protoCodec is grpc's own.
var protoCodec = encoding.GetCodecV2(encodingproto.Name)

// codec encodes and decodes for grpc. Messages of calls that pass a gate come to it encoded.
type codec struct{}

// encoded is a message that is encoded already.
type encoded interface{ encoding() mem.BufferSlice }

// Name implements encoding.CodecV2.
func (codec) Name() string { return encodingproto.Name }

// Marshal implements encoding.CodecV2.
func (codec) Marshal(message any) (mem.BufferSlice, error) {
	if ready, is := message.(encoded); is {
		return ready.encoding(), nil
	}
	return protoCodec.Marshal(message)
}

// Unmarshal implements encoding.CodecV2. Calls that pass a gate do not need it.
func (codec) Unmarshal(data mem.BufferSlice, message any) error {
	return protoCodec.Unmarshal(data, message)
}
