package sink

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// ErrTorn is the error for the end of a file that is not a whole line. A server that is being
// killed leaves such an end, and repairs it at its next start. A server may also be writing the
// file.
var ErrTorn = errors.New("sink: the file ends in the middle of a line")

// LineError is the error of one line. errors.Is finds ErrLine or ErrTorn in it.
type LineError struct {
	// File is the name of the file. Number is that of the line; the first is 1.
	File   string
	Number int64
	// Err is what is wrong.
	Err error
}

// Error implements error.
func (e *LineError) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Number, e.Err) }

// Unwrap returns what is wrong.
func (e *LineError) Unwrap() error { return e.Err }

// Reader reads the lines of several files in the order of the files, as one sink. It holds one
// line in memory.
type Reader struct {
	files   []string
	file    io.Closer
	lines   *bufio.Reader
	name    string
	number  int64
	pending []byte
}

// NewReader returns a reader of files, which are read in the given order; see Order. The name of a
// compressed file ends with ".gz".
func NewReader(files ...string) *Reader { return &Reader{files: files} }

// Where returns the file and the number of the line that Next returned last.
func (r *Reader) Where() (file string, number int64) { return r.name, r.number }

// Close closes the file that is being read.
func (r *Reader) Close() error {
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file, r.lines = nil, nil
	return err
}

// Next returns the next line. The error is io.EOF after the last line of the last file; a
// LineError, after which Next can be called again and returns the line after it; or one of the
// file system, which ends the reading.
func (r *Reader) Next() (Line, error) {
	for {
		if r.lines == nil {
			if len(r.files) == 0 {
				return Line{}, io.EOF
			}
			if err := r.open(); err != nil {
				return Line{}, err
			}
		}
		text, err := r.text()
		switch {
		case errors.Is(err, io.EOF) && len(text) == 0:
			if err := r.Close(); err != nil {
				return Line{}, err
			}
			continue
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			r.number++
			return Line{}, errors.Join(&LineError{r.name, r.number, ErrTorn}, r.Close())
		case errors.Is(err, bufio.ErrBufferFull):
			r.number++
			return Line{}, &LineError{r.name, r.number, fmt.Errorf("%w: longer than %d bytes", ErrLine, maxLine)}
		case err != nil:
			return Line{}, fmt.Errorf("%s: %w", r.name, err)
		}
		r.number++
		line, err := Parse(text)
		if err != nil {
			return Line{}, &LineError{r.name, r.number, err}
		}
		return line, nil
	}
}

// open opens the next file.
func (r *Reader) open() error {
	r.name, r.number = r.files[0], 0
	r.files = r.files[1:]
	file, err := os.Open(r.name)
	if err != nil {
		return err
	}
	r.file, r.lines = file, bufio.NewReaderSize(file, 64<<10)
	if !strings.HasSuffix(r.name, ".gz") {
		return nil
	}
	unpacked, err := gzip.NewReader(r.lines)
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", r.name, err), r.Close())
	}
	r.lines = bufio.NewReaderSize(unpacked, 64<<10)
	return nil
}

// text reads a line with its line feed. It skips a line that is longer than maxLine, and returns
// bufio.ErrBufferFull for it. The text is valid until the next call.
func (r *Reader) text() ([]byte, error) {
	r.pending = r.pending[:0]
	tooLong := false
	for {
		part, err := r.lines.ReadSlice('\n')
		if len(r.pending)+len(part) > maxLine {
			tooLong = true
			r.pending = r.pending[:0]
		}
		if !tooLong {
			r.pending = append(r.pending, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if tooLong && err == nil {
			return nil, bufio.ErrBufferFull
		}
		return r.pending, err
	}
}

// Order returns files in the order in which they were written: by the time, and then by the
// revision, of their first readable lines. Files without one come last, in the given order.
// Errors: those of the file system.
func Order(files []string) ([]string, error) {
	all, err := dated(files)
	if err != nil {
		return nil, err
	}
	ordered := make([]string, 0, len(all))
	for _, each := range all {
		ordered = append(ordered, each.name)
	}
	return ordered, nil
}

// datedFile is a file with the time and the revision of its first readable line, if it has one.
type datedFile struct {
	name     string
	known    bool
	at       time.Time
	revision int64
}

// dated returns files in the order of Order.
func dated(files []string) ([]datedFile, error) {
	all := make([]datedFile, 0, len(files))
	for _, name := range files {
		reader := NewReader(name)
		line, err := reader.Next()
		broken := (*LineError)(nil)
		for errors.As(err, &broken) {
			line, err = reader.Next()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, errors.Join(err, reader.Close())
		}
		all = append(all, datedFile{name, err == nil, line.Time, line.Mark.Revision})
		if err := reader.Close(); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(all, func(a, b datedFile) int {
		switch {
		case a.known != b.known && a.known:
			return -1
		case a.known != b.known:
			return 1
		}
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.revision, b.revision))
	})
	return all, nil
}

// Expired returns those of the files that the sink at path was renamed to whose lines are all older
// than a time: the file after it begins before that time. Neither the file at path nor the newest one
// is among them. Errors: those of the file system.
func Expired(path string, before time.Time) ([]string, error) {
	files, err := Files(path)
	if err != nil {
		return nil, err
	}
	all, err := dated(files)
	if err != nil {
		return nil, err
	}
	var expired []string
	for index, each := range all[:max(0, len(all)-1)] {
		if next := all[index+1]; each.name != path && each.known && next.known && next.at.Before(before) {
			expired = append(expired, each.name)
		}
	}
	return expired, nil
}
