package sink

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/scribe-mail/keysvc/internal/storage/anchor"
)

// tailWindow is how much of a file's end ReadTail reads, in bytes. It is more than what a File
// writes between two syncs (MaxBatch and a line), so that everything that a crash can have damaged
// is in it.
const tailWindow = 2 * maxLine

// Tail is the end of a sink's file.
type Tail struct {
	// Last is the position of the last line before End. Its epoch is empty if there is no line.
	Last anchor.Mark
	// End is the length of the file without what a crash has torn: the last line that is not whole,
	// or everything from the first line with NUL bytes, which stand for blocks that never reached the
	// disk. In bytes.
	End int64
	// Newest is the position of the last whole line, which may be after End.
	Newest anchor.Mark
	// Altered is the number of lines before End that Parse refuses. No crash makes such lines.
	Altered int
	// Size is the length of the file, in bytes.
	Size int64
}

// ReadTail reads the end of a file. Errors: ErrLine if there is no line in it, though it is not
// empty; those of the file system.
func ReadTail(path string) (Tail, error) {
	file, err := os.Open(path)
	if err != nil {
		return Tail{}, err
	}
	defer file.Close() //nolint:errcheck // only read
	return readTail(file)
}

func readTail(file *os.File) (Tail, error) {
	info, err := file.Stat()
	if err != nil {
		return Tail{}, err
	}
	if !info.Mode().IsRegular() {
		return Tail{}, fmt.Errorf("sink: %s is not a regular file", file.Name())
	}
	tail := Tail{Size: info.Size()}
	from := max(0, tail.Size-tailWindow)
	text := make([]byte, tail.Size-from)
	if _, err := file.ReadAt(text, from); err != nil && !errors.Is(err, io.EOF) {
		return Tail{}, err
	}
	if from > 0 { // begin with a whole line
		first := bytes.IndexByte(text, '\n') + 1
		text, from = text[first:], from+int64(first)
	}
	tail.scan(text, from)
	if from > 0 && tail.Last.Epoch == "" {
		return Tail{}, fmt.Errorf("%w: the last %d bytes of %s", ErrLine, tailWindow, file.Name())
	}
	if tail.Last.Epoch == "" && tail.Newest.Epoch == "" && !isBeginning(text) {
		return Tail{}, fmt.Errorf("%w: %s is another file", ErrLine, file.Name())
	}
	return tail, nil
}

// scan reads the lines in text, which begins at an offset of the file.
func (t *Tail) scan(text []byte, offset int64) {
	t.End = offset
	hole, bad := false, 0
	for len(text) > 0 {
		length := bytes.IndexByte(text, '\n') + 1
		if length == 0 {
			break
		}
		line, err := Parse(text[:length])
		offset += int64(length)
		switch {
		case err != nil:
			hole = hole || bytes.IndexByte(text[:length], 0) >= 0
			bad++
		case hole:
			t.Newest = line.Mark
		default:
			t.Last, t.Newest, t.End = line.Mark, line.Mark, offset
			t.Altered, bad = t.Altered+bad, 0
		}
		text = text[length:]
	}
}

// isBeginning reports whether text can be what is left of the first line of a sink after a crash.
// Other files must not be cut.
func isBeginning(text []byte) bool {
	const first = `{"type":"anchor"`
	text = bytes.TrimRight(text, "\x00")
	return bytes.HasPrefix([]byte(first), text) || bytes.HasPrefix(text, []byte(first)) && bytes.Count(text, []byte("\n")) <= 1
}

// rotatedName matches what a rotation appends to the name of a file.
var rotatedName = regexp.MustCompile(`^[.-][0-9][0-9A-Za-z:.-]*$`)

// Newest returns the position of the newest line of a sink: of the file at path or, if that is
// absent or has no line, of the newest file that it was renamed to. These lie in the same folder,
// and their names are that of the file and "." or "-", a digit and perhaps more. Newest returns the
// name of the file that it found the line in. Errors: fs.ErrNotExist if there is no line; ErrLine; those of the file system.
func Newest(path string) (name string, tail Tail, err error) {
	tail, err = ReadTail(path)
	if err == nil && tail.Newest.Epoch != "" || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return path, tail, err
	}
	files, err := rotated(path)
	if err != nil {
		return "", Tail{}, err
	}
	files = slices.DeleteFunc(files, func(name string) bool { return strings.HasSuffix(name, ".gz") })
	if files, err = Order(files); err != nil {
		return "", Tail{}, err
	}
	for _, file := range slices.Backward(files) {
		each, err := ReadTail(file)
		if err == nil && each.Newest.Epoch != "" {
			return file, each, nil
		}
	}
	return "", Tail{}, fmt.Errorf("%w: no line in %s", fs.ErrNotExist, path)
}

// Files returns the files of the sink that is written at path, as far as they lie in its folder: the
// file of this name, and those that it was renamed to, compressed ones included. It returns none if
// there are none. Errors: those of the file system.
func Files(path string) ([]string, error) {
	files, err := rotated(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
		files = append(files, path)
	}
	return files, nil
}

// rotated returns the files that the file at path was renamed to.
func rotated(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var files []string
	for _, entry := range entries {
		rest, found := strings.CutPrefix(entry.Name(), filepath.Base(path))
		if found && rotatedName.MatchString(rest) && entry.Type().IsRegular() {
			files = append(files, filepath.Join(filepath.Dir(path), entry.Name()))
		}
	}
	return files, nil
}
