package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// openConnections is over how many connections an open loop asks.
const openConnections = 4

// wirePending is the most calls at a time on one connection of wires. The rest wait, and their time
// counts.
const wirePending = openCallers / openConnections

// wires asks ValidateKey in an open loop, with frames of HTTP/2 that were written beforehand. A client of
// grpc-go takes more of the processor than the server, and an open loop of 30 % of the capacity with it
// leaves nothing of two cores: then the tail is that of the generator.
type wires struct {
	connections []*wire
	// bodies are the questions as gRPC frames them.
	bodies [][]byte
}

// wire is a connection of wires.
type wire struct {
	net.Conn
	// head is the block of header fields that every call begins with.
	head []byte

	mutex sync.Mutex
	// stream is the number of the last stream, and due when the call of each open stream was due.
	stream  uint32
	due     map[uint32]time.Time
	waiting []waitingCall
	took    histogram
	out     bytes.Buffer
	framer  *http2.Framer
	failed  error
	// answered counts the calls that have ended.
	answered atomic.Int64
}

// waitingCall is a call that is due, and that wirePending others keep from being sent.
type waitingCall struct {
	at   time.Time
	body []byte
}

// dialWires connects to a server that speaks HTTP/2 over TCP in plaintext.
func dialWires(address string, questions []*keysvcv1.ValidateKeyRequest) (*wires, error) {
	w := &wires{}
	for _, question := range questions {
		message, err := proto.Marshal(question)
		if err != nil {
			return nil, err
		}
		w.bodies = append(w.bodies, append([]byte{0, 0, 0, byte(len(message) >> 8), byte(len(message))}, message...))
	}
	for range openConnections {
		connection, err := dialWire(address)
		if err != nil {
			w.close()
			return nil, err
		}
		w.connections = append(w.connections, connection)
	}
	return w, nil
}

func dialWire(address string) (*wire, error) {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: connection, due: make(map[uint32]time.Time), stream: ^uint32(0)}
	w.framer = http2.NewFramer(&w.out, bufio.NewReaderSize(connection, 1<<16))
	w.framer.SetReuseFrames()
	var head bytes.Buffer
	encoder := hpack.NewEncoder(&head)
	encoder.SetMaxDynamicTableSize(0) // every block stands for itself
	for _, field := range [][2]string{
		{":method", "POST"},
		{":scheme", "http"},
		{":path", keysvcv1.ValidationService_ValidateKey_FullMethodName},
		{":authority", address},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
		{"user-agent", "keysvc-bench"},
	} {
		if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			return nil, err
		}
	}
	w.head = head.Bytes()
	w.out.WriteString(http2.ClientPreface)
	const window = 1<<31 - 1
	err = errors.Join(w.framer.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 4096}),
		w.framer.WriteWindowUpdate(0, window-65_535), w.flush())
	if err != nil {
		return nil, err
	}
	go w.read()
	return w, nil
}

// flush writes the frames that were made. mutex is held, or there is no other goroutine yet.
func (w *wire) flush() error {
	_, err := w.Write(w.out.Bytes())
	w.out.Reset()
	return err
}

// ask makes the frames of a call, or lets it wait. mutex is held.
func (w *wire) ask(call waitingCall) {
	if len(w.due) >= wirePending {
		w.waiting = append(w.waiting, call)
		return
	}
	w.stream += 2
	w.due[w.stream] = call.at
	_ = w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: w.stream, BlockFragment: w.head, EndHeaders: true})
	_ = w.framer.WriteData(w.stream, true, call.body) // a buffer takes everything
}

// read takes answers until the connection ends.
func (w *wire) read() {
	var refused string
	fields := hpack.NewDecoder(4096, func(field hpack.HeaderField) {
		if field.Name == "grpc-status" && field.Value != "0" || field.Name == ":status" && field.Value != "200" {
			refused = field.Name + " " + field.Value
		}
	})
	var consumed uint32
	answer := &keysvcv1.ValidateKeyResponse{}
	for {
		frame, err := w.framer.ReadFrame()
		w.mutex.Lock()
		now := time.Now()
		switch frame := frame.(type) {
		case *http2.HeadersFrame:
			if _, err = fields.Write(frame.HeaderBlockFragment()); refused != "" {
				err = errors.New(refused)
			}
			if frame.StreamEnded() && err == nil {
				w.took.add(now.Sub(w.due[frame.StreamID]))
				delete(w.due, frame.StreamID)
				w.answered.Add(1)
				if len(w.waiting) > 0 {
					w.ask(w.waiting[0])
					w.waiting = w.waiting[1:]
				}
			}
		case *http2.DataFrame:
			consumed += frame.Length
			if w.answered.Load()%64 == 0 && len(frame.Data()) > 5 { // the generator is not what is measured
				if err = proto.Unmarshal(frame.Data()[5:], answer); err == nil {
					err = allowed(answer, nil)
				}
			}
			if consumed > 1<<24 && err == nil {
				err, consumed = w.framer.WriteWindowUpdate(0, consumed), 0
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				err = w.framer.WritePing(true, frame.Data)
			}
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = w.framer.WriteSettingsAck()
			}
		case *http2.GoAwayFrame, *http2.RSTStreamFrame:
			err = fmt.Errorf("the server sent %v", frame)
		}
		if w.out.Len() > 0 && err == nil {
			err = w.flush()
		}
		if err != nil && w.failed == nil {
			w.failed = err
		}
		w.mutex.Unlock()
		if err != nil {
			return
		}
	}
}

// run makes calls when they are due, whether or not the earlier ones have ended. The times between two
// calls are random (exponential) and the same in every round. How long a call takes counts from when
// it was due, so a server that stalls cannot hide the calls that it delays.
func (w *wires) run(rate float64, duration time.Duration) (*histogram, error) {
	runtime.LockOSThread() // for sleepExactly
	defer runtime.UnlockOSThread()
	answered := int64(0)
	for _, each := range w.connections {
		each.mutex.Lock()
		each.took = histogram{}
		answered -= each.answered.Load()
		each.mutex.Unlock()
	}
	random := mathrand.New(mathrand.NewPCG(3, 4))
	began, offset, sent := time.Now(), time.Duration(0), int64(0)
	for number := 0; ; number++ {
		offset += time.Duration(random.ExpFloat64() / rate * float64(time.Second))
		if offset >= duration && number > 0 {
			break
		}
		at := began.Add(offset)
		if left := time.Until(at); left > 0 {
			sleepExactly(left)
		}
		to := w.connections[number%len(w.connections)]
		to.mutex.Lock()
		to.ask(waitingCall{at, w.bodies[number%len(w.bodies)]})
		err := to.failed
		if to.out.Len() > 0 && err == nil {
			err = to.flush()
		}
		to.mutex.Unlock()
		if err != nil {
			return nil, err
		}
		sent++
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		all := answered
		for _, each := range w.connections {
			all += each.answered.Load()
			each.mutex.Lock()
			err := each.failed
			each.mutex.Unlock()
			if err != nil {
				return nil, err
			}
		}
		if all == sent {
			break
		}
		if time.Now().After(deadline) {
			return nil, errors.New("calls are not answered")
		}
	}
	took := &histogram{}
	for _, each := range w.connections {
		each.mutex.Lock()
		took.merge(&each.took)
		each.mutex.Unlock()
	}
	return took, nil
}

func (w *wires) close() {
	for _, each := range w.connections {
		_ = each.Close()
	}
}
