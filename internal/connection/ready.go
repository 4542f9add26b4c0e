package connection

import (
	"errors"
	"io"
	"net"
	"syscall"

	"google.golang.org/grpc/mem"
)

// ReadOnReady reads once the connection has something to read, into a buffer of the pool. gRPC
// prefers it to Read: 32 KiB less for each connection that is silent. The buffer is nil if there is
// an error.
func (c *Conn) ReadOnReady(size int, pool mem.BufferPool) (buffer *[]byte, n int, err error) {
	if c.ready == nil {
		// TLS reads into a small buffer of the connection. A buffer of the pool has 32 KiB, and would
		// wait with the connection.
		if c.piece == nil {
			c.piece = make([]byte, piece)
		}
		if n, err = c.Read(c.piece[:min(size, piece)]); n > 0 {
			buffer = pool.Get(size)
			copy(*buffer, c.piece[:n])
		}
	} else if err = c.pause(); err == nil {
		if buffer, n, err = c.ready.ReadOnReady(c.set.pace.most(size), pool); n > 0 {
			if bad := c.pass((*buffer)[:n]); bad != nil {
				n, err = 0, bad
			}
		}
	}
	if n == 0 && buffer != nil {
		pool.Put(buffer)
		buffer = nil
	}
	return buffer, n, err
}

// socketReader is a readyReader of a socket.
type socketReader struct {
	socket syscall.RawConn
	// read is the method value of readOnce, made once. The other fields are its arguments and
	// results: as fields they need no allocation.
	read   func(descriptor uintptr) bool
	size   int
	pool   mem.BufferPool
	buffer *[]byte
	n      int
	err    error
}

// newSocketReader returns a readyReader of a socket; nil if raw is not a socket.
func newSocketReader(raw net.Conn) readyReader {
	var socket syscall.Conn
	switch raw := raw.(type) { // other types may hold a socket without being one
	case *net.TCPConn:
		socket = raw
	case *net.UnixConn:
		socket = raw
	default:
		return nil
	}
	descriptor, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	r := &socketReader{socket: descriptor}
	r.read = r.readOnce
	return r
}

// readOnce reads from the socket. It reports false if there is nothing to read yet; then it is
// called again when there is.
func (r *socketReader) readOnce(descriptor uintptr) bool {
	r.buffer = r.pool.Get(r.size)
	for {
		r.n, r.err = syscall.Read(int(descriptor), *r.buffer)
		if !errors.Is(r.err, syscall.EINTR) {
			break
		}
	}
	if r.err != nil {
		r.pool.Put(r.buffer)
		r.buffer, r.n = nil, 0
	}
	return !errors.Is(r.err, syscall.EAGAIN)
}

// ReadOnReady implements readyReader.
func (r *socketReader) ReadOnReady(size int, pool mem.BufferPool) (buffer *[]byte, n int, err error) {
	r.size, r.pool = size, pool
	err = r.socket.Read(r.read)
	buffer, n = r.buffer, r.n
	switch {
	case err != nil:
		// r.err is that of an earlier attempt.
	case r.err != nil:
		err = r.err
	case n == 0:
		err = io.EOF
	}
	r.pool, r.buffer, r.n, r.err = nil, nil, 0, nil
	return buffer, n, err
}
