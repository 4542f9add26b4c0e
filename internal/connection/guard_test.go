package connection

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// stopwatch is the time of a guard in a test.
type stopwatch struct{ passed time.Duration }

func (s *stopwatch) elapsed() time.Duration { return s.passed }

func newTestGuard(watch *stopwatch) *guard { return newGuard(watch.elapsed, 1000, 16<<10) }

// wire is a guard with both ends of its connection.
type wire struct {
	t      *testing.T
	watch  *stopwatch
	guard  *guard
	bytes  bytes.Buffer
	framer *http2.Framer
	// next is the id of the next stream.
	next uint32
}

func newWire(t *testing.T) *wire {
	t.Helper()
	w := &wire{t: t, watch: &stopwatch{}, next: 1}
	w.guard = newTestGuard(w.watch)
	w.framer = http2.NewFramer(&w.bytes, nil)
	w.framer.AllowIllegalWrites = true
	if err := w.guard.received([]byte(preface)); err != nil {
		t.Fatal(err)
	}
	if err := w.client(func(f *http2.Framer) error { return f.WriteSettings() }); err != nil {
		t.Fatal(err)
	}
	return w
}

// client sends what write writes, as the client.
func (w *wire) client(write func(*http2.Framer) error) error {
	w.t.Helper()
	w.bytes.Reset()
	if err := write(w.framer); err != nil {
		w.t.Fatal(err)
	}
	return w.guard.received(w.bytes.Bytes())
}

// server sends what write writes, as the server.
func (w *wire) server(write func(*http2.Framer) error) error {
	w.t.Helper()
	w.bytes.Reset()
	if err := write(w.framer); err != nil {
		w.t.Fatal(err)
	}
	return w.guard.sending(w.bytes.Bytes())
}

// open opens a stream, and returns its id. The client has sent its message if ended is set.
func (w *wire) open(ended bool) uint32 {
	w.t.Helper()
	id := w.next
	w.next += 2
	if err := w.client(func(f *http2.Framer) error {
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true}); err != nil || !ended {
			return err
		}
		return f.WriteData(id, true, make([]byte, 60))
	}); err != nil {
		w.t.Fatalf("opening stream %d: %v", id, err)
	}
	return id
}

// answer sends headers, a message and trailers.
func (w *wire) answer(id uint32, length int) {
	w.t.Helper()
	if err := w.server(func(f *http2.Framer) error {
		return errors.Join(
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true}),
			f.WriteData(id, false, make([]byte, length)),
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: true}),
		)
	}); err != nil {
		w.t.Fatalf("answering stream %d: %v", id, err)
	}
}

// TestFloodsEndTheConnection sends frames of each kind as fast as they can be, and expects the end
// after about as many as the kind allows.
func TestFloodsEndTheConnection(t *testing.T) {
	for name, test := range map[string]struct {
		kind floodKind
		send func(w *wire) error
	}{
		"rapid resets": {floodResets, func(w *wire) error {
			id := w.open(true)
			return w.client(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) })
		}},
		"resets of one stream": {floodResets, func(w *wire) error {
			if w.next == 1 {
				w.answer(w.open(true), 60)
			}
			return w.client(func(f *http2.Framer) error { return f.WriteRSTStream(1, http2.ErrCodeCancel) })
		}},
		"deadlines of no time": {floodResets, func(w *wire) error {
			id := w.open(true)
			return w.server(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) })
		}},
		"refused streams": {floodFaults, func(w *wire) error {
			id := w.open(true)
			return w.server(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeRefusedStream) })
		}},
		"pings": {floodPings, func(w *wire) error {
			return w.client(func(f *http2.Framer) error { return f.WritePing(false, [8]byte{}) })
		}},
		"answers to pings that nobody sent": {floodPings, func(w *wire) error {
			return w.client(func(f *http2.Framer) error { return f.WritePing(true, [8]byte{}) })
		}},
		"settings": {floodSettings, func(w *wire) error {
			return w.client(func(f *http2.Framer) error { return f.WriteSettings() })
		}},
		"window updates": {floodWindows, func(w *wire) error {
			return w.client(func(f *http2.Framer) error { return f.WriteWindowUpdate(0, 1) })
		}},
		"empty data": {floodSmall, func(w *wire) error {
			if w.next == 1 {
				w.open(false)
			}
			return w.client(func(f *http2.Framer) error { return f.WriteData(1, false, nil) })
		}},
		"data in single bytes": {floodSmall, func(w *wire) error {
			if w.next == 1 {
				w.open(false)
			}
			return w.client(func(f *http2.Framer) error { return f.WriteData(1, false, []byte{1}) })
		}},
		"data with nothing but padding": {floodSmall, func(w *wire) error {
			if w.next == 1 {
				w.open(false)
			}
			return w.client(func(f *http2.Framer) error { return f.WriteDataPadded(1, false, nil, make([]byte, 255)) })
		}},
		"single bytes with padding": {floodSmall, func(w *wire) error {
			if w.next == 1 {
				w.open(false)
			}
			return w.client(func(f *http2.Framer) error { return f.WriteDataPadded(1, false, []byte{1}, make([]byte, 255)) })
		}},
		"data for a stream that has ended": {floodStray, func(w *wire) error {
			if w.next == 1 {
				w.answer(w.open(true), 60)
			}
			return w.client(func(f *http2.Framer) error { return f.WriteData(1, false, make([]byte, 1000)) })
		}},
		"priorities": {floodPriorities, func(w *wire) error {
			return w.client(func(f *http2.Framer) error { return f.WritePriority(1, http2.PriorityParam{}) })
		}},
		"unknown types": {floodUnknown, func(w *wire) error {
			return w.client(func(f *http2.Framer) error { return f.WriteRawFrame(0x77, 0, 0, nil) })
		}},
		"goaways": {floodUnknown, func(w *wire) error {
			return w.client(func(f *http2.Framer) error { return f.WriteGoAway(0, 0, nil) })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w, limit := newWire(t), floods[test.kind].limit
			sent := int64(0)
			var err error
			for ; err == nil && sent < 2*limit.burst; sent++ {
				err = test.send(w)
			}
			flood := (floodError{})
			if !errors.As(err, &flood) || flood.kind != test.kind || sent < limit.burst-10 {
				t.Fatalf("after %d: %v, want a flood of kind %d after %d", sent, err, test.kind, limit.burst)
			}
			// At the rate that is allowed in the long run, the same goes on.
			w = newWire(t)
			for range 2 * limit.burst {
				w.watch.passed += time.Second/time.Duration(limit.perSecond) + 1
				if err := test.send(w); err != nil {
					t.Fatalf("at the allowed rate: %v", err)
				}
			}
		})
	}
}

// TestFewResetsMayCrossTheEndOfTheirStream: a client that was answered often may not reset as often what it likes.
func TestFewResetsMayCrossTheEndOfTheirStream(t *testing.T) {
	w := newWire(t)
	for range 5 * w.guard.maxStreams {
		w.answer(w.open(true), 60)
	}
	taken := int64(0)
	for w.client(func(f *http2.Framer) error { return f.WriteRSTStream(1, http2.ErrCodeCancel) }) == nil {
		taken++
	}
	if want := floods[floodResets].limit.burst + int64(w.guard.maxStreams); taken != want {
		t.Errorf("%d resets of streams that had ended were taken, want %d", taken, want)
	}
}

func TestFramesThatAreNotAllowedEndTheConnection(t *testing.T) {
	for name, write := range map[string]func(f *http2.Framer) error{
		"a frame that is too large":  func(f *http2.Framer) error { return f.WriteRawFrame(0x77, 0, 0, make([]byte, maxFrameLength+1)) },
		"a continuation of nothing":  func(f *http2.Framer) error { return f.WriteContinuation(1, true, nil) },
		"a push promise":             func(f *http2.Framer) error { return f.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 4)) },
		"data before its stream":     func(f *http2.Framer) error { return f.WriteData(1, false, nil) },
		"a reset before its stream":  func(f *http2.Framer) error { return f.WriteRSTStream(1, 0) },
		"a window before its stream": func(f *http2.Framer) error { return f.WriteWindowUpdate(1, 1) },
		"another frame in a header block": func(f *http2.Framer) error {
			return errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1}), f.WritePing(false, [8]byte{}))
		},
		"a header block that is too large": func(f *http2.Framer) error {
			part := make([]byte, 7<<10)
			return errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: part}),
				f.WriteContinuation(1, false, part), f.WriteContinuation(1, false, part))
		},
		"a header block of too many frames": func(f *http2.Framer) error {
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
			for range maxContinuations + 1 {
				err = errors.Join(err, f.WriteContinuation(1, false, nil))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := newWire(t).client(write); err == nil || reasonOf(err) != ClosedProtocol {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := newTestGuard(&stopwatch{}).received([]byte("GET / HTTP/1.1\r\n")); !errors.Is(err, errNotHTTP2) {
		t.Errorf("HTTP/1.1: %v", err)
	}
}

func TestTooManyOpenStreamsEndTheConnection(t *testing.T) {
	w := newWire(t)
	var err error
	opened := 0
	for ; err == nil && opened < 10_000; opened++ {
		id := w.next
		w.next += 2
		err = w.client(func(f *http2.Framer) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true})
		})
	}
	if !errors.Is(err, errStreams) {
		t.Errorf("after %d: %v", opened, err)
	}
}

// TestHonestClientsPassTheGuard has what honest clients do, at its worst.
func TestHonestClientsPassTheGuard(t *testing.T) {
	ping := func(f *http2.Framer) error { return f.WritePing(false, [8]byte{}) }
	for name, act := range map[string]func(w *wire) error{
		// gRPC measures the bandwidth: with each round trip a window update and a ping.
		"100,000 validations a second": func(w *wire) (err error) {
			for range 100_000 {
				w.watch.passed += 10 * time.Microsecond
				w.answer(w.open(true), 80)
				err = errors.Join(err,
					w.client(func(f *http2.Framer) error { return f.WriteWindowUpdate(0, 80) }), w.client(ping),
					w.server(func(f *http2.Framer) error { return f.WritePing(true, [8]byte{}) }))
			}
			return err
		},
		"messages whose length comes in a frame of its own": func(w *wire) (err error) {
			for range 10_000 {
				id := w.open(false)
				err = errors.Join(err, w.client(func(f *http2.Framer) error {
					return errors.Join(f.WriteData(id, false, make([]byte, 5)), f.WriteData(id, false, make([]byte, 80)), f.WriteData(id, true, nil))
				}))
				w.answer(id, 80)
			}
			return err
		},
		"a near-cache for an hour at the shortest staleness": func(w *wire) (err error) {
			id := w.open(false)
			for range 3600 * 30 {
				w.watch.passed += time.Second / 30
				err = errors.Join(err,
					w.client(func(f *http2.Framer) error { return f.WriteData(id, false, make([]byte, 30)) }),
					w.server(func(f *http2.Framer) error { return f.WriteData(id, false, make([]byte, 30)) }))
			}
			return err
		},
		"a minute in which every call ends at its deadline": func(w *wire) (err error) {
			for range 60 {
				var ids []uint32
				for range 1000 {
					ids = append(ids, w.open(true))
				}
				w.watch.passed += time.Second
				for _, id := range ids {
					// Both sides notice, at the same time.
					err = errors.Join(err,
						w.server(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) }),
						w.client(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) }))
				}
			}
			return err
		},
		// The client's resets are read when the server has ended all of them.
		"a minute in which the client sees the deadlines late": func(w *wire) (err error) {
			for range 60 {
				first := w.next
				for range 1000 {
					w.open(true)
				}
				w.watch.passed += time.Second
				for id := first; id < w.next; id += 2 {
					err = errors.Join(err, w.server(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) }))
				}
				for id := first; id < w.next; id += 2 {
					err = errors.Join(err, w.client(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) }))
				}
			}
			return err
		},
		"answers to 1,000 calls that cross their resets, while many fail": func(w *wire) (err error) {
			w.guard.pace = &pace{mostWaiting: 1000, mostFailed: 100}
			w.guard.pace.fail(0, 200)
			for range 1000 {
				w.open(true)
			}
			for id := uint32(1); id < w.next; id += 2 {
				w.answer(id, 80)
			}
			for id := uint32(1); id < w.next; id += 2 {
				err = errors.Join(err, w.client(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) }))
			}
			return err
		},
		"a client that ends 1,000 calls at once": func(w *wire) (err error) {
			for range 1000 {
				w.open(true)
			}
			for id := uint32(1); id < w.next; id += 2 {
				err = errors.Join(err, w.client(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) }))
			}
			return err
		},
		"calls that are refused while their message comes": func(w *wire) (err error) {
			for range 10_000 {
				id := w.open(false)
				err = errors.Join(err, w.server(func(f *http2.Framer) error {
					return errors.Join(
						f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: true}),
						f.WriteRSTStream(id, http2.ErrCodeNo))
				}))
				for range 4 {
					err = errors.Join(err, w.client(func(f *http2.Framer) error { return f.WriteData(id, false, make([]byte, maxFrameLength)) }))
				}
			}
			return err
		},
		"windows that grow to 16 MiB": func(w *wire) (err error) {
			for range 20 {
				err = errors.Join(err,
					w.server(func(f *http2.Framer) error { return f.WriteSettings() }),
					w.client(func(f *http2.Framer) error { return f.WriteSettingsAck() }),
					w.client(func(f *http2.Framer) error { return f.WriteSettings() }))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := act(newWire(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// look looks at the answers once a second, and returns after how many seconds the client was found
// not to read; 0 if it was not.
func (w *wire) look(seconds int, each func(second int)) int {
	w.t.Helper()
	for second := 1; second <= seconds; second++ {
		w.watch.passed += time.Second
		if each != nil {
			each(second)
		}
		if w.guard.unread() {
			return second
		}
	}
	return 0
}

func TestAnswersThatNobodyReadsEndTheConnection(t *testing.T) {
	const limit = unreadLooks
	begin := func(w *wire, id uint32, length int) {
		if err := w.server(func(f *http2.Framer) error {
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true})
			for ; length > 0; length -= 1000 {
				err = errors.Join(err, f.WriteData(id, false, make([]byte, min(1000, length))))
			}
			return err
		}); err != nil {
			w.t.Fatal(err)
		}
	}
	update := func(w *wire, id, by uint32) {
		if err := w.client(func(f *http2.Framer) error { return f.WriteWindowUpdate(id, by) }); err != nil {
			w.t.Fatal(err)
		}
	}
	send := func(w *wire, id uint32, length int) {
		if err := w.server(func(f *http2.Framer) error { return f.WriteData(id, false, make([]byte, length)) }); err != nil {
			w.t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		act func(w *wire) int
		// want is after how many seconds the connection ends; 0 for never.
		want int
	}{
		"the window of the connection stays closed": {func(w *wire) int {
			begin(w, w.open(true), initialWindow)
			return w.look(100, nil)
		}, 1 + limit},
		"the window of a stream was never open": {func(w *wire) int {
			_ = w.client(func(f *http2.Framer) error {
				return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			})
			begin(w, w.open(true), 0)
			return w.look(100, nil)
		}, 1 + limit},
		"the window of a stream opens by a byte at a time": {func(w *wire) int {
			id := w.open(true)
			update(w, 0, 1<<20)
			begin(w, id, initialWindow)
			return w.look(100, func(int) {
				for range 50 {
					update(w, id, 1)
					send(w, id, 1)
				}
			})
		}, 1 + limit},
		"a byte of the window is open when it is looked at": {func(w *wire) int {
			id := w.open(true)
			update(w, 0, 1<<20)
			begin(w, id, initialWindow)
			return w.look(100, func(int) {
				update(w, id, 2)
				send(w, id, 1)
			})
		}, 2 + limit},
		"a slow reader": {func(w *wire) int {
			id := w.open(true)
			begin(w, id, initialWindow)
			return w.look(1000, func(int) {
				update(w, id, 20<<10)
				update(w, 0, 20<<10)
				send(w, id, maxFrameLength)
				send(w, id, 4<<10)
			})
		}, 0},
		"a reader who stops in the middle": {func(w *wire) int {
			id := w.open(true)
			begin(w, id, initialWindow)
			return w.look(1000, func(second int) {
				if second < 100 {
					update(w, id, 40<<10)
					update(w, 0, 40<<10)
					send(w, id, 40<<10)
				}
			})
		}, 100 + 2*limit},
		"a message that fits the window, read late": {func(w *wire) int {
			id := w.open(true)
			begin(w, id, initialWindow)
			return w.look(1000, func(second int) {
				if second == limit-1 {
					update(w, id, 1)
					update(w, 0, 1)
				}
			})
		}, 0},
		"a stream on which nothing is sent": {func(w *wire) int {
			begin(w, w.open(false), 100)
			return w.look(10_000, nil)
		}, 0},
		"a handler that takes its time": {func(w *wire) int {
			_ = w.client(func(f *http2.Framer) error {
				return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			})
			w.open(true)
			return w.look(1000, nil)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := test.act(newWire(t))
			if test.want == 0 && got != 0 || test.want != 0 && (got == 0 || got > test.want) || test.want != 0 && got < limit {
				t.Errorf("ended after %d seconds, want %d", got, test.want)
			}
		})
	}
}

// TestTheGuardKeepsNoStreams looks at the memory of a guard after many calls.
func TestTheGuardKeepsNoStreams(t *testing.T) {
	w := newWire(t)
	for range 1000 {
		w.open(true)
	}
	for id := uint32(1); id < w.next; id += 2 {
		w.answer(id, 10)
	}
	if len(w.guard.streams) != 0 || w.guard.most != 0 {
		t.Errorf("%d streams are left, most %d", len(w.guard.streams), w.guard.most)
	}
}

func TestTheGuardAllocatesNothing(t *testing.T) {
	w := newWire(t)
	w.answer(w.open(true), 60)
	var request, response bytes.Buffer
	id := uint32(3)
	framer := http2.NewFramer(&request, nil)
	answers := http2.NewFramer(&response, nil)
	pass := func() {
		request.Reset()
		response.Reset()
		_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true})
		_ = framer.WriteData(id, true, w.bytes.Bytes()[:0])
		_ = answers.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true})
		_ = answers.WriteData(id, false, nil)
		_ = answers.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: true})
		if w.guard.received(request.Bytes()) != nil || w.guard.sending(response.Bytes()) != nil {
			t.Error("refused")
		}
		id += 2
	}
	if allocated := testing.AllocsPerRun(1000, pass); allocated != 0 {
		t.Errorf("%v allocations", allocated)
	}
}

func BenchmarkGuard(b *testing.B) {
	watch := time.Now()
	guard := newGuard(func() time.Duration { return time.Since(watch) }, 1000, 16<<10)
	var request, response bytes.Buffer
	framer, answers := http2.NewFramer(&request, nil), http2.NewFramer(&response, nil)
	_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 60), EndHeaders: true})
	_ = framer.WriteData(1, true, make([]byte, 120))
	_ = answers.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 10), EndHeaders: true})
	_ = answers.WriteData(1, false, make([]byte, 80))
	_ = answers.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 10), EndHeaders: true, EndStream: true})
	_ = guard.received([]byte(preface))
	b.ReportAllocs()
	for b.Loop() {
		guard.last = 0 // the stream's id is new
		if guard.received(request.Bytes()) != nil || guard.sending(response.Bytes()) != nil {
			b.Fatal("refused")
		}
	}
}
