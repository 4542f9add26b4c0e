package connection

import "encoding/binary"

// The types of frames of HTTP/2 (RFC 9113, section 6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameReset        = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9
)

// The flags of frames of HTTP/2.
const (
	flagEndStream  = 0x1 // of DATA and HEADERS
	flagAck        = 0x1 // of SETTINGS and PING
	flagEndHeaders = 0x4 // of HEADERS and CONTINUATION
	flagPadded     = 0x8 // of DATA and HEADERS
)

const (
	// headerLength is the length of a frame's header.
	headerLength = 9
	// settingLength is the length of one setting in a SETTINGS frame.
	settingLength = 6
	// preface is what a client sends before its first frame (RFC 9113, section 3.4).
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// frame is the header of a frame of HTTP/2 (RFC 9113, section 4.1).
type frame struct {
	length uint32
	kind   uint8
	flags  uint8
	stream uint32
}

func (f frame) has(flag uint8) bool { return f.flags&flag != 0 }

// frameSink is told of the frames that a frameReader finds.
type frameSink interface {
	// begins is called with the header of each frame, before its payload. After an error the
	// reader must not be used any more.
	begins(frame) error
	// value is called with the payload of RST_STREAM (the error code) and WINDOW_UPDATE (the
	// increment), with and without their reserved bit, with the length of the padding of a DATA
	// frame that has the flag PADDED, and with each pair of a SETTINGS frame without ACK. id is 0
	// for all but the last.
	value(of frame, id uint16, value uint32) error
}

// frameReader finds the frames in a stream of bytes that comes in pieces. It looks at the headers
// of frames and at a few short payloads, and copies nothing else.
type frameReader struct {
	// unread is how many bytes of the preface are still to come.
	unread int
	// head has the first headRead bytes of the next frame's header.
	head     [headerLength]byte
	headRead int
	// current is the frame whose payload has left bytes to come.
	current frame
	left    uint32
	// word has the first wordRead bytes of a value in the payload.
	word     [settingLength]byte
	wordRead int
}

// feed reads the next piece of the stream.
func (r *frameReader) feed(piece []byte, sink frameSink) error {
	if r.unread > 0 {
		n := min(r.unread, len(piece))
		start := len(preface) - r.unread
		if string(piece[:n]) != preface[start:start+n] {
			return errNotHTTP2
		}
		r.unread -= n
		piece = piece[n:]
	}
	for len(piece) > 0 {
		if r.left > 0 {
			n := min(int64(r.left), int64(len(piece)))
			if err := r.payload(piece[:n], sink); err != nil {
				return err
			}
			piece = piece[n:]
			continue
		}
		header := piece
		if r.headRead > 0 || len(piece) < headerLength {
			n := copy(r.head[r.headRead:], piece)
			r.headRead += n
			piece = piece[n:]
			if r.headRead < headerLength {
				return nil
			}
			header, r.headRead = r.head[:], 0
		} else {
			piece = piece[headerLength:]
		}
		r.current = frame{
			length: uint32(header[0])<<16 | uint32(header[1])<<8 | uint32(header[2]),
			kind:   header[3],
			flags:  header[4],
			stream: binary.BigEndian.Uint32(header[5:]) &^ (1 << 31),
		}
		r.left, r.wordRead = r.current.length, 0
		if err := sink.begins(r.current); err != nil {
			return err
		}
	}
	return nil
}

// payload reads a piece of the current frame's payload.
func (r *frameReader) payload(piece []byte, sink frameSink) error {
	first := r.left == r.current.length
	r.left -= uint32(len(piece)) //nolint:gosec // at most left, which is one
	if r.current.kind == frameData {
		if !first || !r.current.has(flagPadded) {
			return nil
		}
		return sink.value(r.current, 0, uint32(piece[0])) // the length of the padding
	}
	length := r.wordLength()
	if length == 0 {
		return nil
	}
	for len(piece) > 0 {
		n := copy(r.word[r.wordRead:length], piece)
		r.wordRead += n
		piece = piece[n:]
		if r.wordRead < length {
			return nil
		}
		r.wordRead = 0
		var id uint16
		word := r.word[:length]
		if length == settingLength {
			id, word = binary.BigEndian.Uint16(word), word[2:]
		}
		if err := sink.value(r.current, id, binary.BigEndian.Uint32(word)); err != nil {
			return err
		}
	}
	return nil
}

// wordLength returns how long a value in the current frame's payload is; 0 if the values do not
// matter.
func (r *frameReader) wordLength() int {
	switch r.current.kind {
	case frameReset, frameWindowUpdate:
		return 4
	case frameSettings:
		if !r.current.has(flagAck) {
			return settingLength
		}
	}
	return 0
}

// between reports whether the stream is between two frames, where another frame may be put: not
// in a frame, and not in a header block of several frames.
func (r *frameReader) between() bool {
	inBlock := (r.current.kind == frameHeaders || r.current.kind == frameContinuation) && !r.current.has(flagEndHeaders)
	return r.unread == 0 && r.headRead == 0 && r.left == 0 && !inBlock
}
