package budget

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const (
	listKeys    = keysvcv1.KeyService_ListKeys_FullMethodName
	createKey   = keysvcv1.KeyService_CreateKey_FullMethodName
	validateKey = keysvcv1.ValidationService_ValidateKey_FullMethodName
	batch       = keysvcv1.ValidationService_BatchValidateKeys_FullMethodName
	syncing     = keysvcv1.SyncService_Sync_FullMethodName
)

// TestAnswersThatNobodyReadsAreBounded: a client asks for lists on fifty streams, and its windows
// are closed.
func TestAnswersThatNobodyReadsAreBounded(t *testing.T) {
	for _, end := range []struct {
		name string
		end  func(*rawClient)
	}{
		{"reset", func(c *rawClient) {
			for stream := uint32(1); stream < c.next; stream += 2 {
				c.write(func() error { return c.framer.WriteRSTStream(stream, http2.ErrCodeCancel) })
			}
		}},
		{"closed", func(c *rawClient) { _ = c.conn.Close() }},
		{"read after all", func(c *rawClient) {
			c.write(func() error { return c.framer.WriteWindowUpdate(0, 1<<30) })
			c.write(func() error {
				return c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
			})
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.answer.Store(1 << 20)
			c := w.raw(t, 0)
			for range 50 {
				c.call(listKeys, &keysvcv1.ListKeysRequest{PageSize: 1000})
			}
			most := int64(0)
			until(t, "the rest is refused", func() bool {
				most = max(most, w.budget.Snapshot().Held)
				return c.count(codes.ResourceExhausted) >= 40
			})
			if most > limit/4 {
				t.Errorf("one connection held %d bytes, more than a quarter of %d", most, limit)
			}
			if held := w.budget.Snapshot().Held; held < 1<<20 {
				t.Errorf("answers that are not written hold %d bytes", held)
			}
			// Another connection, and validations, go on.
			if _, err := keysvcv1.NewValidationServiceClient(w.dial(t)).ValidateKey(t.Context(), &keysvcv1.ValidateKeyRequest{Token: strings.Repeat("x", 1<<18)}); err != nil {
				t.Errorf("a validation: %v", err)
			}
			end.end(c)
			until(t, "everything is given back", func() bool { return w.budget.Snapshot().Held == 0 })
		})
	}
}

// TestRequestsThatDoNotComeAreBounded: requests that were announced and come slowly take what they
// announced, and are ended.
func TestRequestsThatDoNotComeAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.raw(t, 1<<20)
	const announced = 1 << 20
	for range 50 {
		c.data(c.open(batch), prefixed(announced, []byte{1}), false)
	}
	// One fits into an eighth of the budget, three times its size: nobody knows the caller yet.
	until(t, "the rest is refused", func() bool { return c.count(codes.ResourceExhausted) == 49 })
	if held := w.budget.Snapshot().Held; held == 0 || held > limit/8 {
		t.Errorf("announced requests hold %d bytes, want up to an eighth of %d", held, limit)
	}
	// The bytes trickle, which does not help.
	c.data(1, []byte{1}, false)
	w.gate.halfOpen.sweep(w.gate.halfOpen.now.Load() + 1)
	until(t, "the calls end", func() bool { return c.ended() == 50 })
	until(t, "everything is given back", func() bool { return w.budget.Snapshot().Held == 0 })
	if w.entered.Load() != 0 {
		t.Error("a handler was called")
	}
}

// TestHalfOpenCallsEnd: a call whose request never comes ends, of each kind, at each stage.
func TestHalfOpenCallsEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.raw(t, 1<<20)
	for _, method := range []string{validateKey, createKey, syncing, grpc_health_v1.Health_Watch_FullMethodName, grpc_health_v1.Health_Check_FullMethodName} {
		c.open(method)                                            // nothing comes
		c.data(c.open(method), []byte{0, 0}, false)               // a part of the prefix
		c.data(c.open(method), prefixed(100, []byte{1}), false)   // a part of the request
		c.data(c.open(method), prefixed(10000, []byte{1}), false) // a part of a larger one
		if method != syncing {
			c.data(c.open(method), prefixed(0, nil), false) // the client's half does not end
		}
	}
	const calls = 24
	until(t, "all are half-open", func() bool { return w.gate.HalfOpen() == calls })
	w.gate.halfOpen.sweep(w.gate.halfOpen.now.Load())
	if c.ended() != 0 {
		t.Error("a call ended before its time")
	}
	w.gate.halfOpen.sweep(w.gate.halfOpen.now.Load() + 1)
	until(t, "all have ended", func() bool { return c.count(codes.DeadlineExceeded) == calls })
	if w.entered.Load() != 0 || w.gate.HalfOpen() != 0 {
		t.Errorf("%d handlers were called, and %d calls are half-open", w.entered.Load(), w.gate.HalfOpen())
	}
}

// TestHalfOpenCallsAreBounded: those that have waited longest make room for others.
func TestHalfOpenCallsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.raw(t, 1<<20)
	for index := range 900 {
		c.open([]string{validateKey, syncing}[index%2])
	}
	until(t, "the rest is refused", func() bool { return c.count(codes.ResourceExhausted) == 900-listLength })
	if half := w.gate.HalfOpen(); half != listLength {
		t.Errorf("%d calls are half-open, want %d", half, listLength)
	}
	if _, err := keysvcv1.NewValidationServiceClient(w.dial(t)).ValidateKey(t.Context(), &keysvcv1.ValidateKeyRequest{}); err != nil {
		t.Errorf("a whole call: %v", err)
	}
}

// TestElementsAreRefusedBeforeTheyAreDecoded sends half a million empty items of a batch.
func TestElementsAreRefusedBeforeTheyAreDecoded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.raw(t, 1<<20)
	wire := make([]byte, 0, 1<<20)
	for len(wire) < 1<<20 {
		wire = append(wire, 0x0a, 0)
	}
	c.upload(c.open(batch), prefixed(len(wire), wire))
	until(t, "it is refused", func() bool { return c.count(codes.InvalidArgument) == 1 })
	if w.entered.Load() != 0 {
		t.Error("the handler was called")
	}
}

// TestStreamsThatNobodyReadsHoldOneMessage: the next message waits for the last one.
func TestStreamsThatNobodyReadsHoldOneMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.answer.Store(32<<10 - 100)
	c := w.raw(t, 1000)
	const streams = 20
	for range streams {
		wire := prefixed(0, nil)
		c.data(c.open(syncing), wire, false)
	}
	until(t, "every stream has sent", func() bool { return w.budget.Snapshot().Held == streams*32<<10 })
	_ = c.conn.Close()
	until(t, "everything is given back", func() bool { return w.budget.Snapshot().Held == 0 })
}

// TestGoodCallsLeaveNothing: calls of all sizes, cancelled or not, give everything back.
func TestGoodCallsLeaveNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	connection := w.dial(t)
	keys, validation := keysvcv1.NewKeyServiceClient(connection), keysvcv1.NewValidationServiceClient(connection)
	var working sync.WaitGroup
	for index := range 8 {
		working.Go(func() {
			for round := range 50 {
				size := 1 << ((index + round) % 18)
				w.answer.Store(int64(size))
				ctx, cancel := context.WithCancel(t.Context())
				if round%5 == 4 {
					go cancel()
				}
				_, err := keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{})
				if err == nil {
					var response *keysvcv1.ValidateKeyResponse
					response, err = validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{Token: strings.Repeat("x", size)})
					if err == nil && response.GetRevision() != int64(size) {
						t.Errorf("of %d bytes came %d", size, response.GetRevision())
					}
				}
				if err == nil {
					_, err = keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{Scopes: make([]string, size/16)})
				}
				if code := status.Code(err); code != codes.OK && code != codes.Canceled && size/16 <= DefaultElements {
					t.Errorf("of %d bytes: %v", size, err)
				}
				cancel()
			}
		})
	}
	working.Wait()
	until(t, "everything is given back", func() bool { return w.budget.Snapshot().Held == 0 })
}

// TestBrokenRequestsAreRefused: what is no request gets an error, and disturbs nobody.
func TestBrokenRequestsAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.raw(t, 1<<20)
	want := map[uint32]codes.Code{}
	send := func(code codes.Code, method string, data []byte) {
		stream := c.open(method)
		c.data(stream, data, true)
		want[stream] = code
	}
	for _, method := range []string{validateKey, syncing, grpc_health_v1.Health_Watch_FullMethodName} {
		send(codes.Internal, method, []byte{0, 0})
		send(codes.Internal, method, prefixed(10, []byte{1}))
		send(codes.Internal, method, prefixed(5000, []byte{1}))
		send(codes.Unimplemented, method, append([]byte{1}, prefixed(0, nil)[1:]...))
		send(codes.InvalidArgument, method, prefixed(1<<20+1, nil))
		send(codes.Internal, method, prefixed(1, []byte{0xff}))
	}
	send(codes.Internal, validateKey, nil)
	send(codes.Internal, validateKey, append(prefixed(0, nil), prefixed(0, nil)...))
	send(codes.OK, validateKey, prefixed(0, nil))
	until(t, "all have ended", func() bool { return c.ended() == len(want) })
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for stream, code := range want {
		if got := c.statuses[stream]; got != strconv.Itoa(int(code)) {
			t.Errorf("stream %d: got %s, want %d", stream, got, code)
		}
	}
}
