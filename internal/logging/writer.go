// Package logging writes a process's log so that whoever reads it cannot decide over
// the process: a Writer makes nobody wait for a reader, and Repeats counts lines that
// come again and again.
package logging

import (
	"io"
	"sync"
	"time"
)

// Defaults of a Writer.
const (
	defaultLimit    = 1 << 20
	defaultPatience = 500 * time.Millisecond
	// lineOverhead is about what a line that waits costs besides its text.
	lineOverhead = 64
)

// Config says how a Writer writes. The zero value is useful.
type Config struct {
	// Limit is how many bytes may wait for the reader; lines beyond it are dropped.
	// Default: 1 MiB.
	Limit int
	// Patience is how long Close waits for what is still to be written.
	// Default: 500 ms.
	Patience time.Duration
	// Notice returns the line that says how many lines were dropped. It is written when
	// lines can be written again, before the first of them. nil writes none.
	Notice func(dropped int64) []byte
}

// Writer is an io.Writer that never blocks and never fails. A goroutine hands each
// line on to another writer, usually standard error. While that one takes nothing, as
// a pipe that nobody reads, lines wait up to a limit; what goes beyond is dropped and
// counted, and so is a line that cannot be written, as to a pipe whose reader has died.
// Its methods may be called from many goroutines.
type Writer struct {
	out    io.Writer
	config Config

	mutex   sync.Mutex
	waiting []line
	size    int   // of what waits
	dropped int64 // after the last line that waits
	closed  bool

	wake  chan struct{} // holds one token when there is something to do
	ended chan struct{} // closed when the goroutine has ended
}

// line is one that waits, or, without text, a number of lines that were dropped.
type line struct {
	text    []byte
	dropped int64 // immediately before this line
}

// NewWriter returns a Writer that writes to out until it is closed.
func NewWriter(out io.Writer, config Config) *Writer {
	if config.Limit == 0 {
		config.Limit = defaultLimit
	}
	if config.Patience == 0 {
		config.Patience = defaultPatience
	}
	w := &Writer{out: out, config: config, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	go w.run()
	return w
}

// Write takes one line. It always returns len(text) and no error: whoever logs has
// nothing better to do than to go on.
func (w *Writer) Write(text []byte) (int, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if cost := len(text) + lineOverhead; w.closed || w.size+cost > w.config.Limit {
		w.dropped++
	} else {
		w.waiting = append(w.waiting, line{append([]byte(nil), text...), w.dropped})
		w.dropped = 0
		w.size += cost
	}
	w.signal()
	return len(text), nil
}

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Close writes what waits, for as long as Patience at most, and reports whether all of
// it was handed on. Lines that come later are dropped. When the reader never takes the
// line that is being written, one goroutine stays behind.
func (w *Writer) Close() bool {
	w.mutex.Lock()
	w.closed = true
	w.signal()
	w.mutex.Unlock()
	patience := time.NewTimer(w.config.Patience)
	defer patience.Stop()
	select {
	case <-w.ended:
		return true
	case <-patience.C:
		return false
	}
}

// run hands lines on until the Writer is closed and nothing waits.
func (w *Writer) run() {
	defer close(w.ended)
	sink := sink{out: w.out, notice: w.config.Notice}
	for {
		next, found, closed := w.next()
		switch {
		case found:
			sink.put(next)
		case closed:
			return
		default:
			<-w.wake
		}
	}
}

// next takes the line that has waited longest.
func (w *Writer) next() (next line, found, closed bool) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if len(w.waiting) == 0 {
		next.dropped, w.dropped = w.dropped, 0
		w.waiting = nil // a burst is over: give its memory back
		return next, next.dropped > 0, w.closed
	}
	next = w.waiting[0]
	w.waiting[0] = line{}
	w.waiting = w.waiting[1:]
	w.size -= len(next.text) + lineOverhead
	return next, true, w.closed
}

// sink writes lines and counts those that were lost until it can say so.
type sink struct {
	out    io.Writer
	notice func(dropped int64) []byte
	lost   int64
	// torn is set after a line that was written in part.
	torn bool
}

func (s *sink) put(next line) {
	s.lost += next.dropped
	if s.lost > 0 && s.notice != nil {
		if !s.write(s.notice(s.lost)) {
			if next.text != nil {
				s.lost++
			}
			return
		}
		s.lost = 0
	}
	if next.text != nil && !s.write(next.text) {
		s.lost++
	}
}

// write writes one line and reports whether the whole of it was taken.
func (s *sink) write(text []byte) bool {
	if s.torn {
		text = append([]byte("\n"), text...)
	}
	count, err := s.out.Write(text)
	if count > 0 {
		s.torn = count < len(text) && text[count-1] != '\n'
	}
	return err == nil
}
