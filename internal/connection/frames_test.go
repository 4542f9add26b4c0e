package connection

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// seen is what a frameReader has told of.
type seen struct {
	frames []frame
	values []uint32
}

func (s *seen) begins(f frame) error {
	s.frames = append(s.frames, f)
	return nil
}

func (s *seen) value(_ frame, id uint16, value uint32) error {
	s.values = append(s.values, uint32(id), value)
	return nil
}

// framesOf returns what the Framer of x/net finds in bytes, as far as it can read them.
func framesOf(stream []byte) seen {
	var found seen
	framer := http2.NewFramer(io.Discard, bytes.NewReader(stream))
	framer.SetMaxReadFrameSize(1<<24 - 1)
	framer.AllowIllegalReads = true
	reader := bytes.NewReader(stream)
	for reader.Len() >= headerLength {
		header, err := http2.ReadFrameHeader(reader)
		if err != nil {
			return found
		}
		f := frame{length: header.Length, kind: uint8(header.Type), flags: uint8(header.Flags), stream: header.StreamID}
		found.frames = append(found.frames, f)
		payload := make([]byte, min(int(f.length), reader.Len()))
		_, _ = io.ReadFull(reader, payload)
		switch {
		case f.kind == frameData && f.has(flagPadded) && len(payload) > 0:
			found.values = append(found.values, 0, uint32(payload[0]))
		case f.kind == frameReset || f.kind == frameWindowUpdate:
			for ; len(payload) >= 4; payload = payload[4:] {
				found.values = append(found.values, 0, binary.BigEndian.Uint32(payload))
			}
		case f.kind == frameSettings && !f.has(flagAck):
			for ; len(payload) >= 6; payload = payload[6:] {
				found.values = append(found.values, uint32(binary.BigEndian.Uint16(payload)), binary.BigEndian.Uint32(payload[2:]))
			}
		}
	}
	return found
}

// someFrames is a stream with a frame of each type.
func someFrames(tb testing.TB) []byte {
	tb.Helper()
	var stream bytes.Buffer
	framer := http2.NewFramer(&stream, nil)
	framer.AllowIllegalWrites = true
	for _, err := range []error{
		framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 7}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20}),
		framer.WriteSettingsAck(),
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("abc"), PadLength: 3}),
		framer.WriteContinuation(1, true, []byte("def")),
		framer.WriteData(1, false, []byte("some data")),
		framer.WriteDataPadded(1, true, nil, make([]byte, 5)),
		framer.WritePriority(3, http2.PriorityParam{StreamDep: 1}),
		framer.WriteRSTStream(1, http2.ErrCodeCancel),
		framer.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true}),
		framer.WritePing(false, [8]byte{1}),
		framer.WriteGoAway(1, http2.ErrCodeNo, []byte("why")),
		framer.WriteWindowUpdate(0, 99),
		framer.WriteRawFrame(0xfa, 0xff, 1<<31-1, []byte("unknown")),
	} {
		if err != nil {
			tb.Fatal(err)
		}
	}
	return stream.Bytes()
}

// FuzzFrames checks that a frameReader finds the frames that x/net finds, however the stream is cut
// into pieces, and that it knows where a frame ends.
func FuzzFrames(f *testing.F) {
	stream := someFrames(f)
	f.Add(stream, []byte{1})
	f.Add(stream, []byte{255, 9, 1, 200})
	f.Add(stream[:len(stream)-3], []byte{8, 1})
	f.Add([]byte{0, 0, 4, 3, 0, 0x80, 0, 0, 1, 0x80, 0, 0, 8}, []byte{10})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		want, got := framesOf(stream), seen{}
		reader := frameReader{unread: len(preface)}
		rest := append([]byte(preface), stream...)
		for i := 0; len(rest) > 0; i++ {
			n := len(rest)
			if len(cuts) > 0 {
				n = min(n, 1+int(cuts[i%len(cuts)]))
			}
			if err := reader.feed(rest[:n], &got); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if !slices.Equal(got.frames, want.frames) {
			t.Errorf("frames %+v, want %+v", got.frames, want.frames)
		}
		if !slices.Equal(got.values, want.values) {
			t.Errorf("values %v, want %v", got.values, want.values)
		}
		length := 0
		for _, each := range want.frames {
			length += headerLength + int(each.length)
		}
		inBlock := false
		if n := len(want.frames); n > 0 {
			last := want.frames[n-1]
			inBlock = (last.kind == frameHeaders || last.kind == frameContinuation) && !last.has(flagEndHeaders)
		}
		if between := length == len(stream) && !inBlock; reader.between() != between {
			t.Errorf("between frames: %v, want %v", !between, between)
		}
	})
}

// FuzzGuard checks that the guard lets pass what the Framer of x/net, as gRPC sets it, can read, if
// the stream is too short for a flood. So it never ends a connection for a frame that is allowed.
func FuzzGuard(f *testing.F) {
	f.Add(someFrames(f), uint8(3))
	var stream bytes.Buffer
	framer, block := http2.NewFramer(&stream, nil), bytes.Buffer{}
	if err := hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":method", Value: "POST"}); err != nil {
		f.Fatal(err)
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		f.Fatal(err)
	}
	f.Add(stream.Bytes(), uint8(1))
	f.Fuzz(func(t *testing.T, stream []byte, cut uint8) {
		if len(stream) > 4<<10 {
			return // could be a flood
		}
		guard := newTestGuard(&stopwatch{})
		var err error
		for rest := append([]byte(preface), stream...); len(rest) > 0 && err == nil; {
			n := min(len(rest), 1+int(cut))
			err = guard.received(rest[:n])
			rest = rest[n:]
		}
		if err == nil || errors.Is(err, errHeaderBlock) || reasonOf(err) != ClosedProtocol {
			return
		}
		// What the guard has ended, the Framer or gRPC ends as well: the Framer by an error, gRPC for
		// frames of streams that were never opened, which RFC 9113 calls a connection error.
		reader := http2.NewFramer(io.Discard, bytes.NewReader(stream))
		reader.SetMaxReadFrameSize(maxFrameLength)
		reader.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		reader.MaxHeaderListSize = 16 << 10
		last := uint32(0)
		for {
			found, framerErr := reader.ReadFrame()
			if framerErr != nil {
				return
			}
			header := found.Header()
			switch header.Type {
			case http2.FrameHeaders:
				last = max(last, header.StreamID)
			case http2.FrameData, http2.FrameRSTStream, http2.FrameWindowUpdate:
				if header.StreamID > last {
					return
				}
			case http2.FramePushPromise:
				return
			}
		}
	})
}
