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
	// the connection is open, unless the manner is narrow.
	window uint32
	narrow bool
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
	// room guards the windows that the server gives: that of the connection, the first one of each
	// stream, and what differs from it. It is signalled when one grows, and when the connection ends.
	room       sync.Cond
	connection int64
	initial    int64
	differs    map[uint32]int64
	// over reports whether it was this side that ended the connection, or the attack is over.
	over func() bool
	shut atomic.Bool
	// losing makes lost count once.
	losing sync.Once
	// forget makes the context forget the connection.
	forget func() bool
}

// Close ends the connection.
func (c *conn) Close() error {
	c.forget()
	c.cut()
	return nil
}

// cut ends the connection when the context ends.
func (c *conn) cut() {
	c.shut.Store(true)
	_ = c.Conn.Close()
	c.wake()
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
	raw, err := r.secure(ctx, random)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, run: r, manner: manner, out: bufio.NewWriterSize(counted{raw, r}, 8<<10), next: 1, gone: make(chan struct{})}
	c.room.L, c.connection, c.initial, c.differs = new(sync.Mutex), 65535, 65535, make(map[uint32]int64)
	c.over = func() bool { return c.shut.Load() || ctx.Err() != nil }
	c.framer = http2.NewFramer(c.out, bufio.NewReaderSize(raw, 4<<10))
	c.framer.AllowIllegalWrites = true
	c.framer.AllowIllegalReads = true
	c.framer.SetMaxReadFrameSize(1 << 20)
	c.forget = context.AfterFunc(ctx, c.cut)
	if tcp, ok := raw.(*net.TCPConn); ok && manner.deaf {
		_ = tcp.SetReadBuffer(4 << 10)
	}
	err = c.write(func() error {
		_, _ = c.out.WriteString(http2.ClientPreface)
		if err := c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: manner.window}); err != nil {
			return err
		}
		if manner.narrow {
			return nil
		}
		return c.framer.WriteWindowUpdate(0, maxWindow-65535)
	})
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	// Only now: the reader acknowledges the server's settings, and nothing may go before the preface.
	if manner.deaf {
		go func() {
			<-ctx.Done()
			close(c.gone)
		}()
	} else {
		go c.read()
	}
	return c, nil
}

// write calls a function that writes frames, and sends them.
func (c *conn) write(frames func() error) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	err := frames()
	if err == nil {
		err = c.out.Flush()
	}
	if err != nil {
		c.lost()
	}
	return err
}

// lost counts the connection as one that the server has ended, unless this side did.
func (c *conn) lost() {
	c.losing.Do(func() {
		switch {
		case c.over():
		case !c.ready.Load():
			c.run.Counted.Refused.Add(1)
		default:
			c.run.Counted.Ended.Add(1)
		}
	})
}

// read reads frames until the connection ends.
func (c *conn) read() {
	defer c.wake()
	defer close(c.gone)
	away := false
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			c.lost()
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
		case *http2.WindowUpdateFrame:
			c.grow(frame.StreamID, int64(frame.Increment))
		case *http2.SettingsFrame:
			if size, found := frame.Value(http2.SettingInitialWindowSize); found {
				c.room.L.Lock()
				c.initial = int64(size)
				c.room.L.Unlock()
				c.wake()
			}
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
	c.room.L.Lock()
	delete(c.differs, stream)
	c.room.L.Unlock()
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

// grow makes the window of a stream larger, or that of the connection if the stream is 0.
func (c *conn) grow(stream uint32, increment int64) {
	c.room.L.Lock()
	if stream == 0 {
		c.connection += increment
	} else {
		c.differs[stream] += increment
	}
	c.room.L.Unlock()
	c.wake()
}

// wake lets those that wait for room look again.
func (c *conn) wake() {
	c.room.L.Lock()
	defer c.room.L.Unlock()
	c.room.Broadcast()
}

// take takes up to so many bytes of the windows of a stream and of the connection. It waits until
// there is room for one byte at least, if it may wait. It returns 0 if there is no room, or if the
// connection has ended.
func (c *conn) take(stream uint32, want int, wait bool) int {
	c.room.L.Lock()
	defer c.room.L.Unlock()
	for {
		n := min(int64(want), c.connection, c.initial+c.differs[stream])
		if n > 0 {
			c.connection -= n
			c.differs[stream] -= n
			return int(n)
		}
		if !wait || c.isGone() || c.over() {
			return 0
		}
		c.room.Wait()
	}
}

// await waits until so many bytes of the connection's window can be taken, and takes them, for
// attacks that send small messages in bursts. It reports whether the connection goes on.
func (c *conn) await(want int) bool {
	c.room.L.Lock()
	defer c.room.L.Unlock()
	for c.connection < int64(want) && !c.isGone() && !c.over() {
		c.room.Wait()
	}
	c.connection -= int64(want)
	return !c.isGone()
}

// data writes data that is known to fit into the windows. The caller holds writing.
func (c *conn) data(stream uint32, data []byte, end bool) error {
	return c.framer.WriteData(stream, end, data)
}

// trickle writes data if it fits into the windows. The caller holds writing.
func (c *conn) trickle(stream uint32, data []byte) error {
	n := c.take(stream, len(data), false)
	if n == 0 {
		return nil
	}
	return c.framer.WriteData(stream, false, data[:n])
}

// send sends data as fast as the windows allow.
func (c *conn) send(stream uint32, data []byte, end bool) error {
	const frame = 16 << 10 // the size that every server takes
	for len(data) > 0 {
		n := c.take(stream, min(frame, len(data)), true)
		if n == 0 {
			return errEnded
		}
		part := data[:n]
		data = data[n:]
		if err := c.write(func() error { return c.framer.WriteData(stream, end && len(data) == 0, part) }); err != nil {
			return err
		}
	}
	return nil
}

// large is the size from which a message has a goroutine of its own that sends it.
const large = 16 << 10

// call opens a stream, and sends a request. An empty message without an end is not sent.
func (c *conn) call(headers, message []byte, end bool) (stream uint32, err error) {
	bare := len(message) == 0
	err = c.write(func() error {
		stream, err = c.open(headers, bare && end)
		return err
	})
	switch {
	case err != nil || bare:
		return stream, err
	case len(message) >= large:
		id := stream
		go func() { _ = c.send(id, message, end) }()
		return stream, nil
	}
	return stream, c.send(stream, message, end)
}

// headers returns the header block of a call, with further fields: name, value, name, ….
// Nothing in it goes into the dynamic table, so it can be sent many times.
func (r *Run) headers(method string, further ...string) []byte {
	scheme := "http"
	if r.target.TLS != nil {
		scheme = "https"
	}
	fields := []string{":method", "POST", ":scheme", scheme, ":path", method, ":authority", "keysvc", "content-type", "application/grpc", "te", "trailers"}
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
