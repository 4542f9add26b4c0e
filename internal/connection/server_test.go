package connection_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/connection"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests. A wait that lasts so long hangs.
const patience = 20 * time.Second

// clock is the time of a server in a test. It stands still until it is moved.
type clock struct {
	mutex  sync.Mutex
	passed time.Duration
}

var start = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

func (c *clock) elapsed() time.Duration {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.passed
}

func (c *clock) now() time.Time { return start.Add(c.elapsed()) }

func (c *clock) pass(d time.Duration) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.passed += d
}

// judge is a callers.Judge that a test changes.
type judge struct {
	mutex sync.Mutex
	// decide returns who a peer is. The default is callers.Local.
	decide func(*callers.Peer) (*callers.Identity, error)
}

func (j *judge) set(decide func(*callers.Peer) (*callers.Identity, error)) {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	j.decide = decide
}

// Connection implements callers.Judge.
func (j *judge) Connection(peer *callers.Peer) (*callers.Identity, error) {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	if j.decide == nil {
		return callers.Local(), nil
	}
	return j.decide(peer)
}

// Bearer implements callers.Judge.
func (*judge) Bearer(context.Context, *callers.Peer, string) (*callers.Identity, error) {
	return nil, errors.New("no bearers here")
}

// named returns an identity.
func named(name string, notAfter time.Time) *callers.Identity {
	return &callers.Identity{Name: name, NotAfter: notAfter, Grants: access.Everything()}
}

// always returns a decision that knows everybody as one identity.
func always(identity *callers.Identity) func(*callers.Peer) (*callers.Identity, error) {
	return func(*callers.Peer) (*callers.Identity, error) { return identity, nil }
}

// never is a decision that knows nobody.
func never(*callers.Peer) (*callers.Identity, error) { return nil, errors.New("in no line") }

// running is a real gRPC server whose connections a Set has.
type running struct {
	set     *connection.Set
	clock   *clock
	judge   *judge
	address net.Addr
	closed  chan connection.Closed
}

// serve starts a server on a listener, which stops with the test.
func serve(t *testing.T, inner net.Listener, listener *connection.Listener, change func(*connection.Config)) *running {
	t.Helper()
	r := &running{clock: &clock{}, judge: &judge{}, address: inner.Addr(), closed: make(chan connection.Closed, 1000)}
	config := connection.Config{
		Judge: r.judge, MaxConnections: 1000, MaxPerSource: 500, MaxStreams: 1000, MaxHeaderBytes: 16 << 10,
		Silence: 20 * time.Second, Now: r.clock.now, Elapsed: r.clock.elapsed,
		Closed: func(closed connection.Closed) { r.closed <- closed },
	}
	if change != nil {
		change(&config)
	}
	r.set = connection.New(config)
	server := grpc.NewServer(
		grpc.Creds(r.set.Credentials()), grpc.UnknownServiceHandler(handle), grpc.MaxConcurrentStreams(1000),
		grpc.MaxHeaderListSize(16<<10), grpc.ConnectionTimeout(patience), grpc.WaitForHandlers(true),
	)
	served := make(chan error, 1)
	go func() { served <- server.Serve(r.set.Listen(inner, listener)) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serving: %v", err)
		}
		if counts := r.set.Counts(); counts.Open != 0 || counts.Young != 0 || counts.Largest != 0 {
			t.Errorf("after the stop: %+v", counts)
		}
	})
	return r
}

// serveLoopback is serve on a free port of the loopback, in plaintext.
func serveLoopback(t *testing.T, change func(*connection.Config)) *running {
	t.Helper()
	return serve(t, listen(t), &connection.Listener{Kind: connection.Loopback}, change)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// handle answers every method: "/t/answer" with as many bytes as the number in the request, "/t/who"
// with the name of the caller, and "/t/watch" with the name now and whenever it changes.
func handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	var request wrapperspb.StringValue
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	switch method {
	case "/t/answer":
		length := 0
		_, _ = fmt.Sscan(request.GetValue(), &length)
		return stream.SendMsg(wrapperspb.Bytes(make([]byte, length)))
	case "/t/who":
		identity := callers.FromContext(stream.Context())
		return stream.SendMsg(wrapperspb.Bytes([]byte(identity.CallerName())))
	}
	for last := "-"; stream.Context().Err() == nil; {
		if name := callers.FromContext(stream.Context()).CallerName(); name != last {
			last = name
			if err := stream.SendMsg(wrapperspb.Bytes([]byte(name))); err != nil {
				return err
			}
		}
		<-time.After(time.Millisecond)
	}
	return stream.Context().Err()
}

// expectClosed waits until the server has closed a connection by itself, and returns the report.
func (r *running) expectClosed(t *testing.T, reason connection.Reason) connection.Closed {
	t.Helper()
	select {
	case closed := <-r.closed:
		if closed.Reason != reason {
			t.Errorf("closed because %q (%s), want %q", closed.Reason, closed.Detail, reason)
		}
		return closed
	case <-time.After(patience):
		t.Fatalf("nothing was closed because %q", reason)
		panic("unreachable")
	}
}

// expectNothingClosed checks that the server has closed nothing by itself.
func (r *running) expectNothingClosed(t *testing.T) {
	t.Helper()
	select {
	case closed := <-r.closed:
		t.Errorf("closed: %+v", closed)
	default:
	}
}

// waitUntil waits until a condition holds.
func waitUntil(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
		<-time.After(time.Millisecond)
	}
}

// dial opens a gRPC client.
func (r *running) dial(t *testing.T, with credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	if with == nil {
		with = insecure.NewCredentials()
	}
	client, err := grpc.NewClient("passthrough:///"+r.address.String(), grpc.WithTransportCredentials(with),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, r.address.Network(), r.address.String())
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// ask calls a method.
func ask(t *testing.T, client *grpc.ClientConn, method, request string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var response wrapperspb.BytesValue
	err := client.Invoke(ctx, method, wrapperspb.String(request), &response)
	return string(response.GetValue()), err
}

// hostile is a client that speaks HTTP/2 frame by frame.
type hostile struct {
	t       *testing.T
	socket  net.Conn
	framer  *http2.Framer
	buffer  bytes.Buffer
	block   bytes.Buffer
	encoder *hpack.Encoder
	next    uint32
}

// attack opens a connection, which is closed with the test. Nothing reads it.
func (r *running) attack(t *testing.T) *hostile {
	t.Helper()
	socket, err := net.Dial(r.address.Network(), r.address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	h := &hostile{t: t, socket: socket, next: 1}
	h.framer = http2.NewFramer(&h.buffer, socket)
	h.framer.AllowIllegalWrites = true
	h.encoder = hpack.NewEncoder(&h.block)
	return h
}

// expectRefused opens a connection, and expects that the server closes it at once.
func (r *running) expectRefused(t *testing.T) {
	t.Helper()
	socket, err := net.Dial(r.address.Network(), r.address.String())
	if err != nil {
		return // closed already
	}
	defer socket.Close()
	_ = socket.SetReadDeadline(time.Now().Add(patience))
	if n, err := socket.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection that should be refused: %d bytes, %v", n, err)
	}
}

// greet sends the preface and SETTINGS.
func (h *hostile) greet(settings ...http2.Setting) {
	h.buffer.WriteString(http2.ClientPreface)
	_ = h.framer.WriteSettings(settings...)
}

// read reads everything, until the connection ends.
func (h *hostile) read() *hostile {
	go func() { _, _ = io.Copy(io.Discard, h.socket) }()
	return h
}

// flush sends what was written. It reports whether the connection took it.
func (h *hostile) flush() bool {
	_ = h.socket.SetWriteDeadline(time.Now().Add(patience))
	_, err := h.buffer.WriteTo(h.socket)
	return err == nil
}

// call writes a call, with the message if there is one, and returns the id of its stream.
func (h *hostile) call(method string, request *string) uint32 {
	id := h.next
	h.next += 2
	h.block.Reset()
	for _, field := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: method},
		{Name: ":authority", Value: "t"},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	} {
		_ = h.encoder.WriteField(field)
	}
	_ = h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block.Bytes(), EndHeaders: true})
	if request != nil {
		message := append([]byte{0x0a, byte(len(*request))}, *request...)
		_ = h.framer.WriteData(id, true, append([]byte{0, 0, 0, 0, byte(len(message))}, message...))
	}
	return id
}

// TestFloodsOverLoopbackEndTheirConnection sends floods to a real gRPC server over loopback, while somebody else is
// served.
func TestFloodsOverLoopbackEndTheirConnection(t *testing.T) {
	nothing := ""
	for name, test := range map[string]struct {
		send func(h *hostile)
		// most is how many are enough to be thrown out.
		most   int
		reason connection.Reason
	}{
		"rapid resets": {func(h *hostile) {
			_ = h.framer.WriteRSTStream(h.call("/t/who", &nothing), http2.ErrCodeCancel)
		}, 3000, connection.ClosedFlood},
		"rapid resets without a message": {func(h *hostile) {
			_ = h.framer.WriteRSTStream(h.call("/t/who", nil), http2.ErrCodeCancel)
		}, 3000, connection.ClosedFlood},
		"resets that the server is made to send": {func(h *hostile) {
			_ = h.framer.WriteWindowUpdate(h.call("/t/who", nil), 0)
		}, 3000, connection.ClosedFlood},
		"pings":    {func(h *hostile) { _ = h.framer.WritePing(false, [8]byte{}) }, 1000, connection.ClosedFlood},
		"settings": {func(h *hostile) { _ = h.framer.WriteSettings() }, 300, connection.ClosedFlood},
		"large settings": {func(h *hostile) {
			_ = h.framer.WriteSettings(make([]http2.Setting, 1000)...)
		}, 10, connection.ClosedFlood},
		"window updates": {func(h *hostile) { _ = h.framer.WriteWindowUpdate(0, 1) }, 4000, connection.ClosedFlood},
		"empty data": {func(h *hostile) {
			if h.next == 1 {
				h.call("/t/who", nil)
			}
			_ = h.framer.WriteData(1, false, nil)
		}, 4000, connection.ClosedFlood},
		"data with nothing but padding": {func(h *hostile) {
			if h.next == 1 {
				h.call("/t/who", nil)
			}
			_ = h.framer.WriteDataPadded(1, false, nil, make([]byte, 255))
		}, 4000, connection.ClosedFlood},
		"priorities": {func(h *hostile) {
			_ = h.framer.WritePriority(1, http2.PriorityParam{StreamDep: 3})
		}, 1000, connection.ClosedFlood},
		"unknown frames": {func(h *hostile) { _ = h.framer.WriteRawFrame(0xee, 0, 0, nil) }, 1000, connection.ClosedFlood},
		"continuations": {func(h *hostile) {
			if h.next == 1 {
				h.next = 3
				_ = h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
			}
			_ = h.framer.WriteContinuation(1, false, nil)
		}, 100, connection.ClosedProtocol},
		"header blocks without an end": {func(h *hostile) {
			if h.next == 1 {
				h.next = 3
				_ = h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 16<<10)})
				return
			}
			_ = h.framer.WriteContinuation(1, false, make([]byte, 16<<10))
		}, 100, connection.ClosedProtocol},
		"HTTP/1": {func(h *hostile) {
			h.buffer.Reset()
			h.buffer.WriteString("GET / HTTP/1.1\r\nHost: t\r\n\r\n")
		}, 10, connection.ClosedProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			r := serveLoopback(t, nil)
			good := r.dial(t, nil)
			if _, err := ask(t, good, "/t/who", ""); err != nil {
				t.Fatal(err)
			}
			h := r.attack(t).read()
			h.greet()
			// The client sends until it notices the end, which may be some time after it.
			sent, deadline := 0, time.Now().Add(patience)
			for test.send(h); h.flush(); test.send(h) {
				if sent++; sent > 100*test.most && time.Now().After(deadline) {
					t.Fatalf("%d were taken in %s", sent, patience)
				}
			}
			closed := r.expectClosed(t, test.reason)
			t.Logf("thrown out after at most %d: %s", sent, closed.Detail)
			if _, err := ask(t, good, "/t/who", ""); err != nil {
				t.Errorf("the good caller: %v", err)
			}
		})
	}
}

// TestConnectionsAreBounded opens more connections than allowed.
func TestConnectionsAreBounded(t *testing.T) {
	for name, test := range map[string]struct {
		config func(*connection.Config)
		reason connection.Reason
	}{
		"in all":        {func(c *connection.Config) { c.MaxConnections, c.MaxPerSource = 20, 0 }, connection.ClosedFull},
		"of one source": {func(c *connection.Config) { c.MaxPerSource = 20 }, connection.ClosedSourceFull},
	} {
		t.Run(name, func(t *testing.T) {
			r := serveLoopback(t, test.config)
			var open []*hostile
			for range 20 {
				h := r.attack(t).read()
				h.greet()
				if !h.flush() {
					t.Fatal("refused")
				}
				open = append(open, h)
			}
			waitUntil(t, "20 connections", func() bool {
				counts := r.set.Counts()
				return counts.Open == 20 && counts.Young == 0
			})
			r.clock.pass(time.Minute) // the rate of new connections is another bound
			r.expectRefused(t)
			r.expectClosed(t, test.reason)
			// More are counted, and reported once a second.
			for range 10 {
				r.expectRefused(t)
			}
			r.expectNothingClosed(t)
			r.clock.pass(2 * time.Second)
			r.set.Sweep()
			if closed := r.expectClosed(t, test.reason); closed.Count != 10 {
				t.Errorf("got %+v, want 10", closed)
			}
			// Where one leaves, there is room for another.
			_ = open[0].socket.Close()
			waitUntil(t, "19 connections", func() bool { return r.set.Counts().Open == 19 })
			if _, err := ask(t, r.dial(t, nil), "/t/who", ""); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNewConnectionsAreBounded opens and closes connections as fast as it can.
func TestNewConnectionsAreBounded(t *testing.T) {
	for name, test := range map[string]struct {
		config func(*connection.Config)
		reason connection.Reason
	}{
		"in all":        {func(c *connection.Config) { c.MaxConnections, c.MaxPerSource = 100, 0 }, connection.ClosedFast},
		"of one source": {func(c *connection.Config) { c.MaxPerSource = 100 }, connection.ClosedSourceFast},
	} {
		t.Run(name, func(t *testing.T) {
			r := serveLoopback(t, test.config)
			for range 100 {
				h := r.attack(t)
				h.greet() // another bound is that of connections without SETTINGS
				h.flush()
				if _, err := h.socket.Read(make([]byte, 1)); err != nil {
					t.Errorf("refused: %v", err)
				}
				_ = h.socket.Close()
				waitUntil(t, "SETTINGS", func() bool { return r.set.Counts().Young == 0 })
			}
			waitUntil(t, "no connections", func() bool { return r.set.Counts().Open == 0 })
			r.expectNothingClosed(t)
			r.expectRefused(t)
			r.expectClosed(t, test.reason)
			// Ten come back each second.
			r.clock.pass(time.Second)
			for range 10 {
				h := r.attack(t)
				h.greet()
				if _, err := func() (int, error) { h.flush(); return h.socket.Read(make([]byte, 1)) }(); err != nil {
					t.Errorf("refused: %v", err)
				}
				_ = h.socket.Close()
			}
		})
	}
}

// TestSilentConnectionsMakeRoom has a crowd that connects and says nothing, and somebody who does.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	r := serveLoopback(t, func(c *connection.Config) { c.MaxConnections, c.MaxPerSource = 256, 0 })
	var silent []*hostile
	for range 64 {
		silent = append(silent, r.attack(t))
	}
	waitUntil(t, "64 connections", func() bool { return r.set.Counts().Young == 64 })
	r.expectRefused(t)
	r.expectClosed(t, connection.ClosedFast) // for a second, a handshake may be slow
	r.clock.pass(time.Second)
	if _, err := ask(t, r.dial(t, nil), "/t/who", ""); err != nil {
		t.Error(err)
	}
	r.expectClosed(t, connection.ClosedSlow)
	_ = silent[0].socket.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, silent[0].socket); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the oldest: %v", err)
	}
	if counts := r.set.Counts(); counts.Young != 63 || counts.Open != 64 {
		t.Errorf("got %+v", counts)
	}
}

// TestAnswersThatNobodyReads has clients that ask for much and read nothing.
func TestAnswersThatNobodyReads(t *testing.T) {
	const seconds = 40
	for name, begin := range map[string]func(h *hostile){
		"with closed windows": func(h *hostile) {
			h.greet(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			h.read()
		},
		"with a closed window of the connection": func(h *hostile) {
			h.greet(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
			h.read()
		},
		"with open windows, without reading the socket": func(h *hostile) {
			h.greet(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
			_ = h.framer.WriteWindowUpdate(0, 1<<30)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := serveLoopback(t, nil)
			h := r.attack(t)
			begin(h)
			length := "1000000"
			for range 50 {
				h.call("/t/answer", &length)
			}
			if !h.flush() {
				t.Fatal("refused")
			}
			// 50 MB do not fit into the buffers of the socket, so the server must wait for the client.
			ended := 0
			deadline := time.Now().Add(patience)
			for time.Now().Before(deadline) && ended == 0 {
				r.clock.pass(time.Second)
				r.set.Sweep()
				select {
				case closed := <-r.closed:
					if closed.Reason != connection.ClosedUnread {
						t.Errorf("got %+v", closed)
					}
					ended = int(r.clock.elapsed() / time.Second)
				case <-time.After(10 * time.Millisecond):
				}
			}
			if ended == 0 || ended < 30 {
				t.Errorf("ended after %d seconds of its clock", ended)
			}
			waitUntil(t, "no connection", func() bool { return r.set.Counts().Open == 0 })
		})
	}
	// Who reads may take its time.
	r := serveLoopback(t, nil)
	client := r.dial(t, nil)
	done := make(chan error, 1)
	go func() {
		for range 20 {
			if _, err := ask(t, client, "/t/answer", "1000000"); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range seconds {
		r.clock.pass(time.Second)
		r.set.Sweep()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestUnixSocketsProveTheUser(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	inner, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	r := serve(t, inner, &connection.Listener{Kind: connection.Unix}, func(c *connection.Config) { c.MaxConnections = 1 })
	var got callers.Peer
	r.judge.set(func(peer *callers.Peer) (*callers.Identity, error) {
		got = *peer
		return named("me", time.Time{}), nil
	})
	// The user of this process may have more connections than anybody.
	for range 3 {
		if name, err := ask(t, r.dial(t, nil), "/t/who", ""); err != nil || name != "me" {
			t.Errorf("got %q, %v", name, err)
		}
	}
	if got.Source != callers.SourceUnix || int(got.UserID) != os.Getuid() || int(got.GroupID) != os.Getgid() || got.Address != "" {
		t.Errorf("the judge got %+v", got)
	}
	r.judge.set(never)
	if _, err := ask(t, r.dial(t, nil), "/t/who", ""); status.Code(err) != codes.Unavailable {
		t.Errorf("an unknown user: %v", err)
	}
	if closed := r.expectClosed(t, connection.ClosedUnknown); closed.Peer != fmt.Sprintf("uid %d", os.Getuid()) || closed.Detail != "in no line" {
		t.Errorf("got %+v", closed)
	}
}

// TestIdentitiesChangeOnLiveConnections removes and changes a caller that is connected.
func TestIdentitiesChangeOnLiveConnections(t *testing.T) {
	r := serveLoopback(t, nil)
	r.judge.set(always(named("ann", time.Time{})))
	client := r.dial(t, nil)
	stream, err := client.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/t/watch")
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.SendMsg(wrapperspb.String(""))
	expect := func(want string) {
		t.Helper()
		var name wrapperspb.BytesValue
		if err := stream.RecvMsg(&name); err != nil || string(name.GetValue()) != want {
			t.Errorf("the stream has %q, %v; want %q", name.GetValue(), err, want)
		}
	}
	expect("ann")
	r.judge.set(always(named("ann again", time.Time{})))
	r.set.Rejudge()
	expect("ann again")
	if name, err := ask(t, client, "/t/who", ""); err != nil || name != "ann again" {
		t.Errorf("got %q, %v", name, err)
	}
	r.judge.set(never)
	r.set.Rejudge()
	if open := r.set.Counts().Open; open != 0 {
		t.Errorf("%d connections are left", open)
	}
	var name wrapperspb.BytesValue
	for err = error(nil); err == nil; err = stream.RecvMsg(&name) {
		if len(name.GetValue()) > 0 && string(name.GetValue()) != "ann again" {
			t.Errorf("a removed caller's stream got %q", name.GetValue())
		}
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	r.expectClosed(t, connection.ClosedRemoved)
}

// TestIdentitiesEnd looks at a caller before and after the end of its credential.
func TestIdentitiesEnd(t *testing.T) {
	r := serveLoopback(t, nil)
	r.judge.set(always(named("ann", start.Add(time.Hour))))
	client := r.dial(t, nil)
	who := func(want string) {
		t.Helper()
		if name, err := ask(t, client, "/t/who", ""); err != nil || name != want {
			t.Errorf("got %q, %v; want %q", name, err, want)
		}
	}
	who("ann")
	r.clock.pass(time.Hour - time.Nanosecond)
	who("ann")
	// Nobody has swept yet.
	r.clock.pass(time.Nanosecond)
	who("")
	r.set.Sweep()
	r.expectClosed(t, connection.ClosedExpired)
	// A new connection with the credential is refused.
	if _, err := ask(t, r.dial(t, nil), "/t/who", ""); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
	if closed := r.expectClosed(t, connection.ClosedUnknown); !strings.Contains(closed.Detail, "has ended") {
		t.Errorf("got %+v", closed)
	}
}

// TestConnectionsAreDrainedBeforeTheirCredentialEnds has a client whose new credential is ready before
// the old one ends. It loses no call, and its stream goes on.
func TestConnectionsAreDrainedBeforeTheirCredentialEnds(t *testing.T) {
	r := serveLoopback(t, nil)
	r.judge.set(always(named("old", start.Add(time.Hour))))
	client := r.dial(t, nil)
	stream, err := client.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/t/watch")
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.SendMsg(wrapperspb.String(""))
	var name wrapperspb.BytesValue
	if err := stream.RecvMsg(&name); err != nil || string(name.GetValue()) != "old" {
		t.Fatalf("got %q, %v", name.GetValue(), err)
	}
	r.judge.set(always(named("new", start.Add(2*time.Hour))))
	r.clock.pass(59 * time.Minute)
	r.set.Sweep()
	waitUntil(t, "a new connection", func() bool {
		got, err := ask(t, client, "/t/who", "")
		if err != nil {
			t.Fatalf("a call was lost: %v", err)
		}
		return got == "new"
	})
	if open := r.set.Counts().Open; open != 2 {
		t.Errorf("%d connections, want the old one for its stream and the new one", open)
	}
	r.clock.pass(time.Minute)
	r.set.Sweep()
	r.expectClosed(t, connection.ClosedExpired)
	if got, err := ask(t, client, "/t/who", ""); err != nil || got != "new" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestOnlyWhatIsExpectedComesIn has listeners and connections that do not fit.
func TestOnlyWhatIsExpectedComesIn(t *testing.T) {
	for name, listener := range map[string]*connection.Listener{
		"a listener of no kind":                {},
		"a unix listener":                      {Kind: connection.Unix},
		"a TLS listener without configuration": {Kind: connection.TLS},
	} {
		t.Run(name, func(t *testing.T) {
			r := serve(t, listen(t), listener, nil)
			if _, err := ask(t, r.dial(t, nil), "/t/who", ""); status.Code(err) != codes.Unavailable {
				t.Errorf("got %v", err)
			}
			waitUntil(t, "no connection", func() bool { return r.set.Counts().Open == 0 })
		})
	}
	t.Run("a connection of another listener", func(t *testing.T) {
		r := serveLoopback(t, nil)
		inner := listen(t)
		server := grpc.NewServer(grpc.Creds(r.set.Credentials()), grpc.UnknownServiceHandler(handle))
		served := make(chan error, 1)
		go func() { served <- server.Serve(inner) }()
		other := &running{address: inner.Addr()}
		if _, err := ask(t, other.dial(t, nil), "/t/who", ""); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
		server.Stop()
		<-served
	})
	t.Run("nobody, where anybody may come", func(t *testing.T) {
		r := serve(t, listen(t), &connection.Listener{Kind: connection.Plaintext, Anonymous: true}, nil)
		r.judge.set(never)
		if name, err := ask(t, r.dial(t, nil), "/t/who", ""); err != nil || name != "" {
			t.Errorf("got %q, %v", name, err)
		}
		r.set.Rejudge()
		if open := r.set.Counts().Open; open != 1 {
			t.Errorf("%d connections", open)
		}
	})
}
