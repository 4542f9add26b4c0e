package attack

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
)

// maxWindow is the largest window that HTTP/2 allows: RFC 9113, section 6.9.1.
const maxWindow = 1<<31 - 1

// manner is how a connection behaves.
type manner struct {
	// window is the window of each stream for the server's answers; 0 is closed. The window of
	// the connection is always open.
	window uint32
	// deaf connections do not read what the server writes.
	deaf bool
	// rude connections read, and neither acknowledge settings nor answer pings.
	rude bool
	// generous connections give back the window of what they read.
	generous bool
	// ended is called for each stream that the server ends, if it is not nil.
	ended func(stream uint32)
}

// conn is a connection that speaks HTTP/2.
type conn struct {
	net.Conn
	run    *Run
	manner manner
	// writing guards what follows: attacks write, and so does the reader.
	writing sync.Mutex
	out     *bufio.Writer
	framer  *http2.Framer
	next    uint32
	// gone is closed when the server ended the connection, or the context ended.
	gone  chan struct{}
	ready atomic.Bool
	// over reports whether it was this side that ended the connection, or the attack is over.
	over func() bool
	shut atomic.Bool
}

// Close ends the connection.
func (c *conn) Close() error {
	c.shut.Store(true)
	return c.Conn.Close()
}

// counted counts what is written.
type counted struct {
	io.Writer
	run *Run
}

func (c counted) Write(text []byte) (int, error) {
	n, err := c.Writer.Write(text)
	c.run.Counted.Written.Add(int64(n))
	return n, err
}

// connect opens a connection, and sends the preface and the settings. The connection ends
// with the context.
func (r *Run) connect(ctx context.Context, random *rand.Rand, manner manner) (*conn, error) {
	raw, err := r.dial(ctx, random)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, run: r, manner: manner, out: bufio.NewWriterSize(counted{raw, r}, 64<<10), next: 1, gone: make(chan struct{})}
	c.over = func() bool { return c.shut.Load() || ctx.Err() != nil }
	c.framer = http2.NewFramer(c.out, bufio.NewReaderSize(raw, 16<<10))
	c.framer.AllowIllegalWrites = true
	c.framer.AllowIllegalReads = true
	c.framer.SetMaxReadFrameSize(1 << 20)
	context.AfterFunc(ctx, func() { _ = raw.Close() })
	if manner.deaf {
		if tcp, ok := raw.(*net.TCPConn); ok {
			_ = tcp.SetReadBuffer(4 << 10)
		}
		go func() { <-ctx.Done(); close(c.gone) }()
	} else {
		go c.read()
	}
	err = c.write(func() error {
		_, _ = c.out.WriteString(http2.ClientPreface)
		if err := c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: manner.window}); err != nil {
			return err
		}
		return c.framer.WriteWindowUpdate(0, maxWindow-65535)
	})
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

// write calls a function that writes frames, and sends them.
func (c *conn) write(frames func() error) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := frames(); err != nil {
		return err
	}
	return c.out.Flush()
}

// read reads frames until the connection ends.
func (c *conn) read() {
	defer close(c.gone)
	away := false
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			switch {
			case c.over():
			case !c.ready.Load():
				c.run.Counted.Refused.Add(1)
			default:
				c.run.Counted.Ended.Add(1)
			}
			_ = c.Close()
			return
		}
		c.ready.Store(true)
		switch frame := frame.(type) {
		case *http2.GoAwayFrame:
			if !away {
				c.run.Counted.GoneAway.Add(1)
			}
			away = true
		case *http2.RSTStreamFrame:
			c.run.Counted.Reset.Add(1)
			c.end(frame.StreamID)
		case *http2.HeadersFrame:
			if frame.StreamEnded() {
				c.run.Counted.Answered.Add(1)
				c.end(frame.StreamID)
			}
		case *http2.DataFrame:
			if n := uint32(len(frame.Data())); c.manner.generous && n > 0 {
				id := frame.StreamID
				_ = c.write(func() error {
					_ = c.framer.WriteWindowUpdate(0, n)
					return c.framer.WriteWindowUpdate(id, n)
				})
			}
		case *http2.SettingsFrame:
			if !frame.IsAck() && !c.manner.rude {
				_ = c.write(c.framer.WriteSettingsAck)
			}
		case *http2.PingFrame:
			if !frame.IsAck() && !c.manner.rude {
				data := frame.Data
				_ = c.write(func() error { return c.framer.WritePing(true, data) })
			}
		}
	}
}

func (c *conn) end(stream uint32) {
	if c.manner.ended != nil {
		c.manner.ended(stream)
	}
}

// wait waits until the connection has ended.
func (c *conn) wait(ctx context.Context) {
	select {
	case <-c.gone:
	case <-ctx.Done():
	}
}

// isGone reports whether the connection has ended.
func (c *conn) isGone() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// open writes the headers of a call without sending them, and returns the stream. The caller
// holds writing.
func (c *conn) open(headers []byte, end bool) (uint32, error) {
	id := c.next
	c.next += 2
	c.run.Counted.Streams.Add(1)
	return id, c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headers, EndStream: end, EndHeaders: true})
}

// data writes data in frames of the size that every server takes. The caller holds writing.
func (c *conn) data(stream uint32, data []byte, end bool) error {
	const size = 16 << 10
	for len(data) > size {
		if err := c.framer.WriteData(stream, false, data[:size]); err != nil {
			return err
		}
		data = data[size:]
	}
	return c.framer.WriteData(stream, end, data)
}

// call opens a stream, and sends a request.
func (c *conn) call(headers, message []byte, end bool) (stream uint32, err error) {
	err = c.write(func() error {
		if stream, err = c.open(headers, false); err != nil {
			return err
		}
		return c.data(stream, message, end)
	})
	return stream, err
}

// headers returns the header block of a call, with further fields: name, value, name, ….
// Nothing in it goes into the dynamic table, so it can be sent many times.
func (r *Run) headers(method string, further ...string) []byte {
	fields := []string{":method", "POST", ":scheme", "http", ":path", method, ":authority", "keysvc", "content-type", "application/grpc", "te", "trailers"}
	if r.target.Authorization != "" {
		fields = append(fields, "authorization", r.target.Authorization)
	}
	fields = append(fields, further...)
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSize(0)
	for i := 0; i+1 < len(fields); i += 2 {
		_ = encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true})
	}
	return block.Bytes()
}

// message returns a message as gRPC sends it: a byte for the compression, the length, the
// message.
func message(m proto.Message) []byte {
	encoded, err := proto.Marshal(m)
	if err != nil {
		panic(err) // messages of our own
	}
	return framed(encoded)
}

// framed puts the five bytes before a message.
func framed(encoded []byte) []byte {
	return append(announced(len(encoded)), encoded...)
}

// announced returns the five bytes before a message of a length.
func announced(length int) []byte {
	return binary.BigEndian.AppendUint32([]byte{0}, uint32(length))
}
