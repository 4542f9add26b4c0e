// Package logging writes a process's log so that its reader cannot hold up the process: a
// Writer never waits for a reader, Repeats counts lines that are repeated, and Text writes
// lines for people.
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
	// lineOverhead is about how many bytes a waiting line takes besides its text.
	lineOverhead = 64
)

// Config configures a Writer. The zero value is useful.
type Config struct {
	// Limit is how many bytes may wait for the reader; lines beyond it are dropped.
	// Default: 1 MiB.
	Limit int
	// Patience is the longest time that Close waits for lines to be written.
	// Default: 500 ms.
	Patience time.Duration
	// Notice returns the line that says how many lines were dropped. The notice is written
	// before the next line that can be written. nil writes no notice.
	Notice func(dropped int64) []byte
}

// Writer is an io.Writer that never blocks and never fails. A goroutine writes each line
// to another writer, usually standard error. While that writer blocks, as a pipe that
// nobody reads does, lines wait up to a limit. Lines beyond the limit are dropped and
// counted. A line that cannot be written, for example because a pipe's reader has died, is
// counted as well. Its methods may be called from many goroutines.
type Writer struct {
	out    io.Writer
	config Config

	mutex   sync.Mutex
	waiting []line
	size    int   // bytes of the waiting lines, lineOverhead included
	dropped int64 // lines dropped since the last waiting line was taken
	closed  bool

	wake  chan struct{} // has one element when the goroutine has something to do
	ended chan struct{} // closed when the goroutine has ended
}

// line is a waiting line; without text, it is a number of dropped lines.
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

// Write takes one line. It always returns len(text) and no error: a caller could do nothing
// about an error.
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

// Close waits until the waiting lines are written, for Patience at most, and reports
// whether all were. Later lines are dropped. If the write of a line never returns, its
// goroutine stays behind.
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

// run writes lines until the Writer is closed and no line waits.
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

// next takes the line that has waited longest. found is false if no line waits.
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

// sink writes lines. It counts lost lines until a notice of them can be written.
type sink struct {
	out    io.Writer
	notice func(dropped int64) []byte
	lost   int64
	// torn is set after a line was written in part.
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

// write writes one line and reports whether it was written whole.
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
