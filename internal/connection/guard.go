package connection

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// The errors that end a connection. Their texts are for the log.
var (
	errNotHTTP2      = errors.New("the client does not begin with HTTP/2")
	errFrameTooLarge = fmt.Errorf("a frame has more than %d bytes", maxFrameLength)
	errHeaderBlock   = errors.New("a header block is too large, or has too many CONTINUATION frames")
	errProtocol      = errors.New("a frame that HTTP/2 does not allow there")
	errStreams       = errors.New("more streams are open than allowed, twice over")
)

// floodError says that a connection has sent too many frames of a kind.
type floodError struct{ kind floodKind }

// Error implements error.
func (e floodError) Error() string { return "too many " + floods[e.kind].name }

// Bounds of every connection that no operator needs to set.
const (
	// maxFrameLength is the max. length of a frame's payload: what SETTINGS_MAX_FRAME_SIZE is
	// until somebody changes it, which gRPC does not do.
	maxFrameLength = 16384
	// maxContinuations is the max. number of CONTINUATION frames of a header block. With frames
	// of 16 KiB, two hold the headers that max-header-bytes allows by default.
	maxContinuations = 16
	// headerSlack is how much longer than max-header-bytes a header block may be.
	headerSlack = 4 << 10
	// smallData is the length, without padding, below which a DATA frame that does not end its
	// stream is small. Each costs gRPC some hundred bytes, however small it is.
	smallData = 256
	// initialWindow is the flow-control window of connections and streams at the start
	// (RFC 9113, section 6.9.2).
	initialWindow = 65535
	// prematureAge is the age below which a stream that is reset is premature. Older ones cost
	// the server no more than calls do, because max-streams bounds how many are open at a time.
	prematureAge = 250 * time.Millisecond
	// unreadLooks is for how many looks, one each second, an answer may wait for the client to open
	// its window or to read from the socket, if less than streamProgress or connectionProgress is
	// sent, in bytes for each look.
	unreadLooks        = 30
	streamProgress     = 4 << 10
	connectionProgress = 16 << 10
	// smallWindow is the room in a window that is used, and below which the window may be closed.
	smallWindow = 1 << 10
)

// floodKind is a kind of frames that are counted.
type floodKind uint8

// The kinds.
const (
	// floodResets are premature resets of streams, and resets of streams that have ended, without
	// those that may have crossed the end on its way. Each stream that was answered allows one.
	floodResets floodKind = iota
	// floodFaults are streams that the server resets for a mistake of the client, or because too
	// many are open.
	floodFaults
	// floodPings are PING frames. A client that measures the bandwidth pings once for each round
	// trip in which it gets data, so each DATA frame of the server allows one; so does each PING
	// of the server, for its answer.
	floodPings
	// floodSettings are SETTINGS frames. Those of the server allow their acknowledgements.
	floodSettings
	// floodWindows are WINDOW_UPDATE frames. Each DATA frame of the server allows four.
	floodWindows
	// floodSmall are DATA frames that are small or empty and do not end their stream. Each DATA
	// frame of the server, and each stream that was answered, allows one.
	floodSmall
	// floodStray are DATA frames of streams that have ended. Each stream that was answered allows
	// eight: a client whose call is refused early has sent up to 64 KiB before it knows.
	floodStray
	// floodPriorities are PRIORITY frames, which are obsolete.
	floodPriorities
	// floodUnknown are frames of unknown types, and GOAWAY.
	floodUnknown

	floodKinds
)

// floods are the names and limits of the kinds.
var floods = [floodKinds]struct {
	name  string
	limit limit
}{
	floodResets:     {"streams were reset before they were answered", limit{2000, 200}},
	floodFaults:     {"streams were faulty", limit{1000, 50}},
	floodPings:      {"PING frames", limit{500, 10}},
	floodSettings:   {"SETTINGS frames", limit{100, 2}},
	floodWindows:    {"WINDOW_UPDATE frames", limit{2000, 100}},
	floodSmall:      {"small or empty DATA frames", limit{2000, 100}},
	floodStray:      {"DATA frames of streams that have ended", limit{2000, 100}},
	floodPriorities: {"PRIORITY frames", limit{200, 10}},
	floodUnknown:    {"frames of unknown types", limit{200, 10}},
}

// guard looks at the frames of a connection, in both directions, and says when the connection must
// end: because the client floods the server with frames that cost more than they say, or because
// it does not read its answers. It never changes a byte.
type guard struct {
	// elapsed returns the time that has passed since some moment; it never goes back.
	elapsed func() time.Duration
	// maxStreams and maxHeaderBytes are the settings.
	maxStreams, maxHeaderBytes int

	// total counts the open streams of all connections, and open those of this one. Both are
	// changed under mu.
	total, open *atomic.Int64
	// pace counts the streams of all connections that wait, and that fail.
	pace *pace

	mu sync.Mutex
	// over is set once the connection has ended, and counts no more.
	over bool
	// now is the time of the piece that is looked at, and nowRead is set if it was read.
	now     time.Duration
	nowRead bool
	in, out frameReader
	floods  [floodKinds]bucket
	// settled is set once the client has sent its first SETTINGS.
	settled bool
	// block is the length of the header block that the client sends, and continuations the number
	// of its frames but the first.
	block         int
	continuations int
	inBlock       bool
	// last is the highest id of a stream that the client has opened, and streams those that are
	// open.
	last    uint32
	streams map[uint32]stream
	// crossing is how many streams the server has ended and the client may still reset, because it had
	// not seen the end: maxStreams at most, as the client had no more open at a time.
	crossing int
	// most is the largest number of streams since the map was made.
	most int
	// waiting is how many streams wait for an answer, and failed counts those that have failed.
	waiting int64
	failed  bucket
	// answers is how many streams were answered.
	answers int64
	// initial is the client's SETTINGS_INITIAL_WINDOW_SIZE.
	initial int64
	// whole is the flow control of the connection.
	whole flow
}

// stream is a stream that the client has opened, and that neither side has ended.
type stream struct {
	opened time.Duration
	// answering is set once the server has sent headers.
	answering bool
	// answered is set once the server has sent data.
	answered bool
	flow     flow
}

// flow is the flow control of what the server sends on a stream, or on a connection.
type flow struct {
	// credit is the sum of the client's WINDOW_UPDATE frames, and sent that of the lengths of the
	// server's DATA frames.
	credit, sent int64
	// closed is for how many looks the window has been closed; 0 if it is open. sentThen is what
	// sent was at the first of them.
	closed   int64
	sentThen int64
	// sentLast is what sent was at the last look.
	sentLast int64
}

func newGuard(elapsed func() time.Duration, maxStreams, maxHeaderBytes int) *guard {
	return &guard{
		elapsed: elapsed, maxStreams: maxStreams, maxHeaderBytes: maxHeaderBytes,
		in: frameReader{unread: len(preface)}, streams: make(map[uint32]stream), initial: initialWindow,
		whole: flow{credit: initialWindow}, total: new(atomic.Int64), open: new(atomic.Int64), pace: new(pace),
	}
}

// received looks at bytes of the client, before gRPC gets them.
func (g *guard) received(piece []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nowRead = false
	return g.in.feed(piece, (*clientFrames)(g))
}

// sending looks at bytes of the server, before the client gets them.
func (g *guard) sending(piece []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nowRead = false
	return g.out.feed(piece, (*serverFrames)(g))
}

// isSettled reports whether the client has sent its first SETTINGS.
func (g *guard) isSettled() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.settled
}

// betweenFrames reports whether the next byte of the server begins a frame that need not follow the
// one before.
func (g *guard) betweenFrames() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.out.between()
}

// time returns the time, and reads the clock at most once for each piece.
func (g *guard) time() time.Duration {
	if !g.nowRead {
		g.now, g.nowRead = g.elapsed(), true
	}
	return g.now
}

// count counts frames of a kind.
func (g *guard) count(kind floodKind, cost int64) error {
	if !g.floods[kind].take(floods[kind].limit, g.time(), cost) {
		return floodError{kind}
	}
	return nil
}

// end takes the streams of a connection that has ended out of the count of all.
func (g *guard) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		g.addOpen(-g.open.Load())
		g.addWaiting(-g.waiting)
		g.over = true
	}
}

// addApart changes how many streams are counted.
func (g *guard) addApart(streams int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		g.addOpen(streams)
	}
}

func (g *guard) addOpen(streams int64) {
	g.open.Add(streams)
	g.total.Add(streams)
}

// addWaiting changes how many streams wait for an answer.
func (g *guard) addWaiting(streams int64) {
	if !g.over {
		g.waiting += streams
		g.pace.waiting.Add(streams)
	}
}

// answered returns how many streams were answered.
func (g *guard) answered() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.answers
}

// addApartWaiting changes how many streams count among those that wait for an answer.
func (g *guard) addApartWaiting(streams int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.addWaiting(streams)
}

// fail counts a stream that has failed.
func (g *guard) fail() {
	if g.pace.mostFailed > 0 {
		g.failed.take(g.pace.shares().failed, g.time(), 1)
		g.pace.fail(g.time(), 1)
	}
}

// countStream counts a stream that is one of a flood. There is less patience with floods while too many
// streams fail, because connections are read so slowly then that each would go on for long.
func (g *guard) countStream(kind floodKind) error {
	g.fail()
	limit := floods[kind].limit
	if _, failed := g.pace.tooMany(g.time()); failed {
		limit.burst, limit.perSecond = limit.burst/impatience, limit.perSecond/impatience
	}
	if !g.floods[kind].take(limit, g.time(), 1) {
		return floodError{kind}
	}
	return nil
}

// ahead returns how long the client must wait until no more of its streams count than its share; 0 or
// less if it need not wait. waiting and failed report which of them count. An answer may make the
// time shorter.
func (g *guard) ahead(share shares, waiting, failed bool) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if waiting && g.waiting > share.waiting {
		return longestPause
	}
	if failed {
		g.failed.refill(share.failed, g.elapsed())
		const most = int64(time.Hour / time.Second) // so that nothing overflows
		surplus := min(g.failed.spent/times-share.failed.burst, most)
		return time.Duration(surplus) * time.Second / time.Duration(share.failed.perSecond)
	}
	return 0
}

// ended forgets a stream. It reports whether the stream was open and without an answer.
func (g *guard) ended(id uint32) (failed bool) {
	each, open := g.streams[id]
	if !open {
		return false
	}
	delete(g.streams, id)
	if !each.answered {
		g.addWaiting(-1)
	}
	if !g.over {
		g.addOpen(-1)
	}
	// A map never shrinks. A connection that had many streams once should not keep the room.
	const worthShrinking = 128
	if len(g.streams) == 0 && g.most > worthShrinking {
		g.streams, g.most = make(map[uint32]stream), 0
	}
	return !each.answered
}

// endedHere forgets a stream that the server has ended. It reports what ended does.
func (g *guard) endedHere(id uint32) (failed bool) {
	if _, open := g.streams[id]; open {
		g.crossing = min(g.crossing+1, g.maxStreams)
	}
	return g.ended(id)
}

// unread reports whether the client has not read its answers for unreadLooks. It must be called once
// a second. It counts its calls, and not the time that passes: while the whole process stands still,
// no client is to blame.
func (g *guard) unread() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.whole.stuck(g.whole.credit, connectionProgress) {
		return true
	}
	for id, each := range g.streams {
		if !each.answering {
			continue
		}
		if each.flow.stuck(g.initial+each.flow.credit, streamProgress) {
			return true
		}
		g.streams[id] = each
	}
	return false
}

// stuck reports whether the window has been closed for unreadLooks with less progress than progress
// bytes a look. It opens again once there is room that the server does not use: then nothing waits.
// So a window that opens by a few bytes at a time stays closed.
func (f *flow) stuck(window, progress int64) bool {
	used := f.sent != f.sentLast
	f.sentLast = f.sent
	switch room := window - f.sent; {
	case room > 0 && !used:
		f.closed = 0
	case f.closed == 0 && room >= smallWindow:
	case f.closed == 0:
		f.closed, f.sentThen = 1, f.sent
	case f.closed < unreadLooks:
		f.closed++
	case f.sent-f.sentThen < progress*f.closed:
		return true
	default: // the progress counts anew, or a fast start would allow a long pause
		f.closed, f.sentThen = 1, f.sent
	}
	return false
}

// clientFrames is a guard that looks at the frames of the client.
type clientFrames guard

// begins implements frameSink.
func (c *clientFrames) begins(f frame) error {
	g := (*guard)(c)
	if f.length > maxFrameLength {
		return errFrameTooLarge
	}
	if g.inBlock != (f.kind == frameContinuation) {
		return errProtocol
	}
	switch f.kind {
	case frameData:
		return g.clientData(f)
	case frameHeaders, frameContinuation:
		return g.clientHeaders(f)
	case frameReset:
		return g.clientReset(f)
	case frameSettings:
		// A frame with many settings costs as much as many frames.
		g.settled = true
		return g.count(floodSettings, 1+int64(f.length)/(16*settingLength))
	case framePing:
		return g.count(floodPings, 1)
	case frameWindowUpdate:
		if f.stream > g.last {
			return errProtocol
		}
		return g.count(floodWindows, 1)
	case framePriority:
		return g.count(floodPriorities, 1)
	case framePushPromise:
		return errProtocol
	}
	return g.count(floodUnknown, 1)
}

// clientData looks at a DATA frame of the client.
func (g *guard) clientData(f frame) error {
	if f.stream > g.last {
		return errProtocol
	}
	if _, open := g.streams[f.stream]; !open {
		return g.count(floodStray, 1)
	}
	if f.has(flagPadded) && f.length > 0 {
		return nil // value gets the length of the padding
	}
	return g.countSmall(f, f.length)
}

// countSmall counts a DATA frame of the client, which has so many bytes of data, if it is small.
func (g *guard) countSmall(f frame, data uint32) error {
	if data < smallData && !f.has(flagEndStream) {
		return g.count(floodSmall, 1)
	}
	return nil
}

// clientHeaders looks at a HEADERS or CONTINUATION frame of the client.
func (g *guard) clientHeaders(f frame) error {
	if f.kind == frameHeaders {
		g.block, g.continuations = 0, 0
		if f.stream%2 == 1 && f.stream > g.last { // others are mistakes, for which gRPC ends the connection
			g.last = f.stream
			g.streams[f.stream] = stream{opened: g.time()}
			g.most = max(g.most, len(g.streams))
			if !g.over {
				g.addOpen(1)
				g.addWaiting(1)
			}
			// Streams that gRPC has refused are open until its refusal is sent.
			if len(g.streams) > 2*g.maxStreams+maxContinuations {
				return errStreams
			}
		}
	} else {
		g.continuations++
	}
	g.block += int(f.length)
	g.inBlock = !f.has(flagEndHeaders)
	if g.block > g.maxHeaderBytes+headerSlack || g.continuations > maxContinuations {
		return errHeaderBlock
	}
	return nil
}

// clientReset looks at an RST_STREAM frame of the client.
func (g *guard) clientReset(f frame) error {
	if f.stream > g.last {
		return errProtocol
	}
	reset, open := g.streams[f.stream]
	switch {
	case open:
		g.ended(f.stream)
		if g.time()-reset.opened >= prematureAge {
			return nil
		}
	case g.crossing > 0:
		g.crossing--
		return nil
	}
	return g.countStream(floodResets)
}

// value implements frameSink.
func (c *clientFrames) value(f frame, id uint16, value uint32) error {
	g := (*guard)(c)
	const initialWindowSize = 4 // SETTINGS_INITIAL_WINDOW_SIZE
	switch {
	case f.kind == frameData:
		if _, open := g.streams[f.stream]; open {
			return g.countSmall(f, f.length-min(f.length, 1+value))
		}
	case f.kind == frameSettings && id == initialWindowSize:
		g.initial = int64(value)
	case f.kind != frameWindowUpdate:
	case f.stream == 0:
		g.whole.credit += int64(value &^ (1 << 31))
	default:
		if each, open := g.streams[f.stream]; open {
			each.flow.credit += int64(value &^ (1 << 31))
			g.streams[f.stream] = each
		}
	}
	return nil
}

// serverFrames is a guard that looks at the frames of the server.
type serverFrames guard

// begins implements frameSink.
func (s *serverFrames) begins(f frame) error {
	g := (*guard)(s)
	switch f.kind {
	case frameData:
		g.floods[floodPings].give(1)
		g.floods[floodWindows].give(4)
		g.floods[floodSmall].give(1)
		g.whole.sent += int64(f.length)
		if each, open := g.streams[f.stream]; open {
			each.flow.sent += int64(f.length)
			if !each.answered {
				each.answered = true
				g.answers++
				g.addWaiting(-1)
			}
			g.streams[f.stream] = each
		}
	case frameHeaders:
		if !f.has(flagEndStream) {
			if each, open := g.streams[f.stream]; open {
				each.answering = true
				g.streams[f.stream] = each
			}
		}
	case framePing:
		g.floods[floodPings].give(1)
	case frameSettings:
		if !f.has(flagAck) {
			g.floods[floodSettings].give(1)
		}
	}
	if (f.kind == frameData || f.kind == frameHeaders) && f.has(flagEndStream) {
		g.floods[floodResets].give(1)
		g.floods[floodSmall].give(1)
		g.floods[floodStray].give(8)
		if g.endedHere(f.stream) {
			g.fail()
		}
	}
	return nil
}

// value implements frameSink.
func (s *serverFrames) value(f frame, _ uint16, code uint32) error {
	if f.kind != frameReset {
		return nil
	}
	g := (*guard)(s)
	reset, open := g.streams[f.stream]
	failed := g.endedHere(f.stream)
	const noError, cancel = 0x0, 0x8
	switch {
	case code != noError && code != cancel:
		return g.countStream(floodFaults)
	case open && g.time()-reset.opened < prematureAge:
		// The deadline of the call has passed. A short deadline costs the server what a reset does.
		return g.countStream(floodResets)
	case failed:
		g.fail()
	}
	return nil
}
