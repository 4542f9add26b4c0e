package connection

import (
	"net"
	"runtime"
	"sync"
)

// turns bounds how many handshakes of TLS want a processor at a time: half of the processors. A handshake
// takes about a millisecond of one. If as many went on at a time as clients begin, a call would wait
// until each of them has had its share. The sources take turns, so that one with few handshakes does not
// wait for all those of another.
type turns struct {
	mu   sync.Mutex
	free int
	// waiting are the handshakes that wait, by source, the oldest first, and next are the sources that
	// have any, in the order of their turns.
	waiting map[source][]chan struct{}
	next    []source
}

func newTurns() *turns {
	return &turns{free: max(1, runtime.GOMAXPROCS(0)/2), waiting: make(map[source][]chan struct{})}
}

// begin waits for a turn.
func (t *turns) begin(from source) {
	if turn := t.queue(from); turn != nil {
		<-turn
	}
}

// queue returns a channel that is closed when it is the turn of a handshake; nil if that is now.
func (t *turns) queue(from source) chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.free > 0 {
		t.free--
		return nil
	}
	turn := make(chan struct{})
	if len(t.waiting[from]) == 0 {
		t.next = append(t.next, from)
	}
	t.waiting[from] = append(t.waiting[from], turn)
	return turn
}

// end gives a turn to the next handshake.
func (t *turns) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.next) == 0 {
		t.free++
		return
	}
	from := t.next[0]
	t.next = t.next[1:]
	waiting := t.waiting[from]
	close(waiting[0])
	if len(waiting) == 1 {
		delete(t.waiting, from)
		return
	}
	t.waiting[from] = waiting[1:]
	t.next = append(t.next, from)
}

// inTurn is a connection during its handshake. What the handshake does with what it has read, it does in
// turn. The goroutine that makes the handshake uses it, and nobody else before over is set.
type inTurn struct {
	net.Conn
	from  source
	turns *turns
	// has is set while it is the connection's turn, and over once the handshake has ended.
	has, over bool
}

// Read implements net.Conn.
func (t *inTurn) Read(buffer []byte) (int, error) {
	t.end()
	n, err := t.Conn.Read(buffer)
	if !t.over && err == nil {
		t.turns.begin(t.from)
		t.has = true
	}
	return n, err
}

// Write implements net.Conn. After it comes another Read, or the end.
func (t *inTurn) Write(buffer []byte) (int, error) {
	t.end()
	return t.Conn.Write(buffer)
}

// end ends the connection's turn.
func (t *inTurn) end() {
	if t.has {
		t.has = false
		t.turns.end()
	}
}

// finish ends the last turn: the handshake has ended.
func (t *inTurn) finish() {
	t.end()
	t.over = true
}
