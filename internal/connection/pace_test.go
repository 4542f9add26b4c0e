package connection

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// paced returns ends of connections that share a pace.
func paced(t *testing.T, pace *pace, connections int) []*wire {
	t.Helper()
	watch := &stopwatch{}
	wires := make([]*wire, connections)
	for index := range wires {
		wires[index] = newWire(t)
		wires[index].watch = watch
		wires[index].guard.elapsed, wires[index].guard.pace = watch.elapsed, pace
		pace.connections.Add(1)
	}
	return wires
}

// begin sends the first data of an answer.
func (w *wire) begin(id uint32) {
	w.t.Helper()
	if err := w.server(func(f *http2.Framer) error {
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true}); err != nil {
			return err
		}
		return f.WriteData(id, false, []byte("answer"))
	}); err != nil {
		w.t.Fatal(err)
	}
}

// refuse ends a stream with an error.
func (w *wire) refuse(id uint32) {
	w.t.Helper()
	if err := w.server(func(f *http2.Framer) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: true})
	}); err != nil {
		w.t.Fatal(err)
	}
}

// ahead returns what the pause of a connection would be.
func (w *wire) ahead() time.Duration {
	waiting, failed := w.guard.pace.tooMany(w.watch.elapsed())
	return w.guard.ahead(w.guard.pace.shares(), waiting, failed)
}

func TestStreamsWaitUntilTheirFirstData(t *testing.T) {
	p := &pace{mostWaiting: 100, mostFailed: 100}
	w := paced(t, p, 1)[0]
	expect := func(what string, waiting, failed int64) {
		t.Helper()
		if w.guard.waiting != waiting || p.waiting.Load() != waiting || p.failed.Load() != failed || w.guard.failed.spent/times != failed {
			t.Errorf("%s: %d wait and %d have failed, of all %d and %d; want %d and %d",
				what, w.guard.waiting, w.guard.failed.spent/times, p.waiting.Load(), p.failed.Load(), waiting, failed)
		}
	}
	answered, refused, reset, left := w.open(true), w.open(true), w.open(true), w.open(false)
	expect("four calls", 4, 0)
	w.begin(answered)
	expect("one is answered", 3, 0)
	w.refuse(answered) // its end
	expect("the answer has ended", 3, 0)
	w.refuse(refused)
	expect("one is refused", 2, 1)
	if err := w.client(func(f *http2.Framer) error { return f.WriteRSTStream(reset, http2.ErrCodeCancel) }); err != nil {
		t.Fatal(err)
	}
	expect("one is reset", 1, 2)
	w.guard.addApartWaiting(-1)
	expect("one waits for the disk", 0, 2)
	w.guard.addApartWaiting(1)
	w.begin(left)
	expect("it is answered", 0, 2)
	w.open(true)
	w.guard.end()
	expect("the connection has ended", 0, 2)
	w.guard.addApartWaiting(1)
	expect("a call goes on after that", 0, 2)
}

func TestOnlyConnectionsAboveTheirShareWait(t *testing.T) {
	p := &pace{mostWaiting: 80, mostFailed: 1000}
	all := paced(t, p, 4)
	crowd, fair := all[0], all[1]
	var calls []uint32
	for range 70 {
		calls = append(calls, crowd.open(true))
	}
	if wait := crowd.ahead(); wait != 0 {
		t.Errorf("below the limit: %s", wait)
	}
	for range 20 { // that is the share of each connection
		fair.open(true)
	}
	if crowd.ahead() <= 0 || fair.ahead() > 0 || all[2].ahead() > 0 {
		t.Errorf("above the limit: %s, %s and %s", crowd.ahead(), fair.ahead(), all[2].ahead())
	}
	for _, id := range calls[:10] {
		crowd.begin(id)
	}
	if wait := crowd.ahead(); wait != 0 {
		t.Errorf("after answers: %s", wait)
	}
}

func TestFailedStreamsAreForgotten(t *testing.T) {
	p := &pace{mostWaiting: 1000, mostFailed: 100}
	all := paced(t, p, 2)
	storm, fair := all[0], all[1]
	for range 150 {
		storm.refuse(storm.open(true))
	}
	for range 50 { // that is its share
		fair.refuse(fair.open(true))
	}
	// 100 beyond its share, 25 of which are forgotten each second.
	if wait := storm.ahead(); wait != 4*time.Second || fair.ahead() > 0 {
		t.Errorf("got %s and %s", wait, fair.ahead())
	}
	storm.watch.passed += 2 * time.Second // all together have failed 200 times, and 50 are forgotten each second
	if wait := storm.ahead(); wait != 0 {
		t.Errorf("100 have failed lately, and the wait is %s", wait)
	}
	// A storm is not felt for long, however large it was.
	for range 10000 {
		p.fail(storm.watch.elapsed(), 1)
	}
	storm.watch.passed += 2 * time.Second
	if _, failed := p.tooMany(storm.watch.elapsed()); failed {
		t.Errorf("%d have failed lately", p.failed.Load())
	}
}

func TestFloodsOfStreamsEndSoonerWhileManyFail(t *testing.T) {
	resets := func(w *wire) (taken int) {
		for ; taken < 10000; taken++ {
			id := w.open(true)
			if w.client(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) }) != nil {
				break
			}
		}
		return taken
	}
	all := paced(t, &pace{mostWaiting: 1000, mostFailed: 3000}, 2)
	if taken := resets(all[0]); taken != 2000 {
		t.Errorf("while few fail, %d resets were taken", taken)
	}
	all[0].guard.pace.fail(0, 2000)
	if taken := resets(all[1]); taken != 250 {
		t.Errorf("while many fail, %d resets were taken", taken)
	}
}

func TestPiecesAreSmallNearTheLimits(t *testing.T) {
	p := &pace{mostWaiting: 100, mostFailed: 100}
	for _, test := range []struct {
		waiting, failed int64
		bytes           int
	}{{50, 50, piece}, {51, 0, smallPiece}, {0, 51, smallPiece}} {
		p.waiting.Store(test.waiting)
		p.failed.Store(test.failed)
		if bytes := p.most(32 << 10); bytes != test.bytes {
			t.Errorf("%+v: %d bytes", test, bytes)
		}
	}
	p.waiting.Store(1000)
	if bytes := p.most(10); bytes != 10 {
		t.Errorf("%d bytes of 10", bytes)
	}
	if bytes := (&pace{}).most(32 << 10); bytes != 32<<10 {
		t.Errorf("without a bound: %d bytes", bytes)
	}
}
