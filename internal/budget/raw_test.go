package budget

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests. A wait that lasts so long hangs.
const patience = 20 * time.Second

// world is a grpc server behind a gate, with services that answer what a test wants.
type world struct {
	gate   *Gate
	budget *Budget
	listen *bufconn.Listener
	// stop begins the stop.
	stop context.CancelFunc
	// answer is how large the answers are, in bytes. entered counts the handlers that were called.
	answer  atomic.Int64
	entered atomic.Int64
}

// limit is the size of the budget of a world.
const limit = 32 << 20

type keyService struct {
	keysvcv1.UnimplementedKeyServiceServer
	*world
}

func (k keyService) ListKeys(context.Context, *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
	k.entered.Add(1)
	return &keysvcv1.ListKeysResponse{NextPageToken: string(bytes.Repeat([]byte("x"), int(k.answer.Load())))}, nil
}

func (k keyService) CreateKey(_ context.Context, request *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error) {
	k.entered.Add(1)
	return &keysvcv1.CreateKeyResponse{Epoch: string(bytes.Repeat([]byte("x"), int(k.answer.Load()))), Revision: int64(len(request.GetScopes()))}, nil
}

type validationService struct {
	keysvcv1.UnimplementedValidationServiceServer
	*world
}

func (v validationService) ValidateKey(_ context.Context, request *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
	v.entered.Add(1)
	return &keysvcv1.ValidateKeyResponse{KeyId: "id", Revision: int64(len(request.GetToken()))}, nil
}

func (v validationService) BatchValidateKeys(_ context.Context, request *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
	v.entered.Add(1)
	return &keysvcv1.BatchValidateKeysResponse{Responses: make([]*keysvcv1.ValidateKeyResponse, len(request.GetRequests()))}, nil
}

type syncService struct {
	keysvcv1.UnimplementedSyncServiceServer
	*world
}

// Sync sends messages until it fails.
func (s syncService) Sync(stream grpc.BidiStreamingServer[keysvcv1.SyncRequest, keysvcv1.SyncResponse]) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	s.entered.Add(1)
	text := string(bytes.Repeat([]byte("x"), int(s.answer.Load())))
	for {
		err := stream.Send(&keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Welcome{Welcome: &keysvcv1.SyncWelcome{Epoch: text}}})
		if err != nil {
			return err
		}
	}
}

// newWorld starts a server, which stops with the test. The callers are known.
func newWorld(t *testing.T) *world {
	t.Helper()
	stopping, stop := context.WithCancel(context.Background())
	w := &world{budget: New(limit), listen: bufconn.Listen(64 << 10), stop: stop}
	w.gate = NewGate(Config{
		Budget: w.budget, MaxMessageBytes: 1 << 20, Elements: Limits{"keysvc.v1.BatchValidateKeysRequest.requests": 256},
		Unary: func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			return handler(callers.NewContext(ctx, callers.Local()), request)
		},
		Status: func(_ context.Context, err error) error {
			told, is := errors.AsType[*problem.Error](err)
			if !is {
				return status.Error(codes.Internal, err.Error())
			}
			if told.Reason == keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS {
				return status.Error(codes.ResourceExhausted, told.Error())
			}
			return status.Error(codes.InvalidArgument, told.Error())
		},
		Refused: func(Snapshot) {}, Places: &places{}, Stopping: stopping,
	})
	server := w.gate.Services(grpc.NewServer(append(w.gate.Options(), grpc.MaxConcurrentStreams(1000), grpc.WaitForHandlers(true),
		grpc.ChainStreamInterceptor(func(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			return handler(service, known{stream})
		}))...))
	keysvcv1.RegisterKeyServiceServer(server, keyService{world: w})
	keysvcv1.RegisterValidationServiceServer(server, validationService{world: w})
	keysvcv1.RegisterSyncServiceServer(server, syncService{world: w})
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(w.listen) })
	t.Cleanup(func() {
		stop()
		server.Stop()
		serving.Wait()
		if held := w.budget.Snapshot().Held; held != 0 {
			t.Errorf("%d bytes are held after the stop", held)
		}
		if half := w.gate.HalfOpen(); half != 0 {
			t.Errorf("%d calls are half-open after the stop", half)
		}
	})
	return w
}

// places is a Places without a bound.
type places struct{ taken atomic.Int64 }

// Take implements Places.
func (p *places) Take(*peer.Peer, callers.Work) (*atomic.Int64, error) {
	p.taken.Add(1)
	return &p.taken, nil
}

// Give implements Places.
func (p *places) Give(share *atomic.Int64) { share.Add(-1) }

// known is a stream whose caller is known.
type known struct{ grpc.ServerStream }

// Context implements grpc.ServerStream.
func (k known) Context() context.Context {
	return callers.NewContext(k.ServerStream.Context(), callers.Local())
}

// dial returns a well-behaved client.
func (w *world) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return w.listen.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return connection
}

// until waits until a condition holds.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("it never came that %s", what)
		}
		<-time.After(time.Millisecond) // no event says so
	}
}

// rawClient is a client that speaks HTTP/2 frame by frame.
type rawClient struct {
	t      *testing.T
	conn   net.Conn
	framer *http2.Framer
	// writing guards the framer's writes, and the encoder of header blocks.
	writing sync.Mutex
	block   bytes.Buffer
	encoder *hpack.Encoder
	next    uint32
	// mutex guards what was read: the grpc-status of each stream that has ended, and the bytes of
	// answers.
	mutex    sync.Mutex
	statuses map[uint32]string
	windows  map[uint32]int // what may be sent beside the initial window
	received int
	reading  sync.WaitGroup
}

// raw opens a connection. window is the flow-control window that its streams give the server.
func (w *world) raw(t *testing.T, window uint32) *rawClient {
	t.Helper()
	conn, err := w.listen.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := &rawClient{t: t, conn: conn, framer: http2.NewFramer(conn, conn), next: 1, statuses: make(map[uint32]string), windows: make(map[uint32]int)}
	c.encoder = hpack.NewEncoder(&c.block)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	t.Cleanup(c.close)
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	c.write(func() error {
		return c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
	})
	// Only now: the reader acknowledges the server's settings, and nothing may go before the preface.
	c.reading.Go(c.read)
	return c
}

func (c *rawClient) close() {
	_ = c.conn.Close()
	c.reading.Wait()
}

// read notes what the server sends.
func (c *rawClient) read() {
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, field := range frame.Fields {
				if field.Name == "grpc-status" {
					c.mutex.Lock()
					c.statuses[frame.StreamID] = field.Value
					c.mutex.Unlock()
				}
			}
		case *http2.DataFrame:
			c.mutex.Lock()
			c.received += len(frame.Data())
			c.mutex.Unlock()
		case *http2.WindowUpdateFrame:
			c.mutex.Lock()
			c.windows[frame.StreamID] += int(frame.Increment)
			c.mutex.Unlock()
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				c.writing.Lock()
				_ = c.framer.WriteSettingsAck()
				c.writing.Unlock()
			}
		}
	}
}

// write writes something.
func (c *rawClient) write(something func() error) {
	c.t.Helper()
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := something(); err != nil {
		c.t.Fatal(err)
	}
}

// open begins a call, and returns its stream.
func (c *rawClient) open(method string) (stream uint32) {
	c.t.Helper()
	c.write(func() error {
		stream, c.next = c.next, c.next+2
		c.block.Reset()
		for _, field := range []hpack.HeaderField{
			{Name: ":method", Value: "POST"},
			{Name: ":scheme", Value: "http"},
			{Name: ":path", Value: method},
			{Name: ":authority", Value: "keysvc"},
			{Name: "content-type", Value: "application/grpc"},
			{Name: "te", Value: "trailers"},
		} {
			if err := c.encoder.WriteField(field); err != nil {
				return err
			}
		}
		return c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.block.Bytes(), EndHeaders: true})
	})
	return stream
}

// data sends bytes of a call.
func (c *rawClient) data(stream uint32, data []byte, end bool) {
	c.t.Helper()
	c.write(func() error { return c.framer.WriteData(stream, end, data) })
}

// upload sends a request as the windows allow.
func (c *rawClient) upload(stream uint32, data []byte) {
	c.t.Helper()
	for sent := 0; sent < len(data); {
		piece := min(len(data)-sent, 16<<10-1)
		until(c.t, "the server reads on", func() bool {
			c.mutex.Lock()
			defer c.mutex.Unlock()
			return sent+piece < WindowBytes+c.windows[stream] && sent+piece < WindowBytes+c.windows[0] || len(c.statuses) > 0
		})
		c.data(stream, data[sent:sent+piece], sent+piece == len(data))
		sent += piece
	}
}

// call makes a call.
func (c *rawClient) call(method string, request proto.Message) (stream uint32) {
	c.t.Helper()
	stream = c.open(method)
	wire, err := proto.Marshal(request)
	if err != nil {
		c.t.Fatal(err)
	}
	c.data(stream, prefixed(len(wire), wire), true)
	return stream
}

// prefixed returns bytes of a message that says it has a length.
func prefixed(length int, wire []byte) []byte {
	prefix := make([]byte, prefixLength, prefixLength+len(wire))
	binary.BigEndian.PutUint32(prefix[1:], uint32(length))
	return append(prefix, wire...)
}

// count returns how many calls have ended with a code.
func (c *rawClient) count(code codes.Code) (calls int) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, each := range c.statuses {
		if each == fmt.Sprint(int(code)) {
			calls++
		}
	}
	return calls
}

// ended returns how many calls have ended.
func (c *rawClient) ended() int {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return len(c.statuses)
}
