package sink_test

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

var at = time.Date(2026, 11, 26, 12, 0, 0, 123456789, time.UTC)

// event returns an event of a workspace.
func event(t testing.TB, sequence int64) storage.AuditEvent {
	t.Helper()
	record := &storagev1.AuditRecord{
		WorkspaceId: "acme", Sequence: sequence, Time: timestamppb.New(at),
		Action: storagev1.AuditAction_AUDIT_ACTION_KEY_UPDATED, Caller: "api", CallerCredential: "uid 1000",
		ActorMemberId: "ann", RequestId: "r<1>", KeyId: "Key0000000000001", MemberId: "ann",
		Fields:  []*storagev1.FieldChange{{Field: "name", Before: []string{"a"}, After: []string{"b \"\u2028"}}},
		Details: map[string]string{"b": "2", "a": "1"},
		Changes: []*storagev1.RecordChange{{Kind: storagev1.RecordKind_RECORD_KIND_KEY, Name: "Key0000000000001", After: make([]byte, 32)}},
	}
	if sequence > 1 {
		record.PreviousHash = bytes.Repeat([]byte{7}, 32)
	}
	encoded, err := storage.Encode(record)
	if err != nil {
		t.Fatal(err)
	}
	return storage.AuditEvent{Record: record, Encoded: encoded}
}

func textOf(t testing.TB, line sink.Line) []byte {
	t.Helper()
	text, err := line.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// eventText returns the line of the event of a revision.
func eventText(t testing.TB, revision int64) []byte {
	t.Helper()
	return textOf(t, sink.EventLine("e1", revision, event(t, revision), false))
}

func markOf(t testing.TB, revision int64) anchor.Mark {
	t.Helper()
	return sink.EventLine("e1", revision, event(t, revision), false).Mark
}

// TestLineIsReadable pins the format: other programs read it.
func TestLineIsReadable(t *testing.T) {
	line := sink.EventLine("e1", 12, event(t, 2), true)
	want := `{"type":"event","format":1,"epoch":"e1","revision":12,"workspace_id":"acme","sequence":2,` +
		`"hash":"` + hex.EncodeToString(line.Mark.Hash[:]) + `","previous_hash":"` + strings.Repeat("07", 32) + `","time":"2026-11-26T12:00:00.123456789Z",` +
		`"action":"KEY_UPDATED","caller":"api","caller_credential":"uid 1000","actor_member_id":"ann","request_id":"r<1>",` +
		`"key_id":"Key0000000000001","member_id":"ann","fields":[{"field":"name","before":["a"],"after":["b \"\u2028"]}],` +
		`"details":{"a":"1","b":"2"},"late":true,"encoded":"`
	if got := string(textOf(t, line)); !strings.HasPrefix(got, want) || strings.Count(got, "\n") != 1 {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	got := string(textOf(t, sink.AnchorLine(anchor.Mark{Epoch: "e1", Revision: 3, Hash: [32]byte{1}}, at)))
	want = `{"type":"anchor","format":1,"epoch":"e1","revision":3,"hash":"01` + strings.Repeat("00", 31) + `","time":"2026-11-26T12:00:00.123456789Z"}` + "\n"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestParseRefusesEveryAlteredByte flips each byte of a line.
func TestParseRefusesEveryAlteredByte(t *testing.T) {
	for _, line := range []sink.Line{sink.EventLine("e1", 12, event(t, 2), true), sink.AnchorLine(markOf(t, 4), at)} {
		text := textOf(t, line)
		got, err := sink.Parse(text)
		if err != nil || got.Mark != line.Mark || got.Late != line.Late || !got.Time.Equal(line.Time) {
			t.Fatalf("Parse: %+v, %v; want %+v", got, err, line)
		}
		for index := range len(text) - 1 {
			altered := bytes.Clone(text)
			altered[index] ^= 1
			if parsed, err := sink.Parse(altered); err == nil && parsed.Mark == line.Mark && parsed.Time.Equal(line.Time) {
				t.Errorf("byte %d (%q): accepted %s", index, text[index], altered)
			}
		}
	}
}

// TestReaderReadsFilesInOrder reads a compressed file, one whose end is torn, and one with a bad
// line.
func TestReaderReadsFilesInOrder(t *testing.T) {
	folder := t.TempDir()
	first, second, third := filepath.Join(folder, "audit.2.gz"), filepath.Join(folder, "audit.1"), filepath.Join(folder, "audit")
	var packed bytes.Buffer
	packer := gzip.NewWriter(&packed)
	_, _ = packer.Write(append(textOf(t, sink.AnchorLine(anchor.Mark{Epoch: "e1"}, at)), eventText(t, 1)...))
	_ = packer.Close()
	write(t, first, packed.Bytes())
	write(t, second, textOf(t, sink.AnchorLine(markOf(t, 1), at.Add(1))), eventText(t, 2), eventText(t, 3)[:40])
	bad := bytes.Replace(eventText(t, 3), []byte("ann"), []byte("bob"), 1)
	write(t, third, textOf(t, sink.AnchorLine(markOf(t, 2), at.Add(2))), bad, eventText(t, 4))

	ordered, err := sink.Order([]string{third, second, first})
	if err != nil || strings.Join(ordered, " ") != strings.Join([]string{first, second, third}, " ") {
		t.Fatalf("Order: %q, %v", ordered, err)
	}
	reader := sink.NewReader(ordered...)
	var revisions []int64
	var problems []string
	for {
		line, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if broken := (*sink.LineError)(nil); errors.As(err, &broken) {
			problems = append(problems, filepath.Base(broken.File)+":"+string(rune('0'+broken.Number)))
			if want := map[bool]error{true: sink.ErrTorn, false: sink.ErrLine}[broken.File == second]; !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		revisions = append(revisions, line.Mark.Revision)
	}
	if want := []int64{0, 1, 1, 2, 2, 4}; !slices.Equal(revisions, want) {
		t.Errorf("revisions %v, want %v", revisions, want)
	}
	if got := strings.Join(problems, " "); got != "audit.1:3 audit:2" {
		t.Errorf("problems: %s", got)
	}
}

func write(t *testing.T, path string, parts ...[]byte) {
	t.Helper()
	if err := os.WriteFile(path, bytes.Join(parts, nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTailFindsWhatACrashLeft: a torn line and blocks that never reached the disk are cut, and an
// altered line, which no crash makes, stays.
func TestTailFindsWhatACrashLeft(t *testing.T) {
	first := textOf(t, sink.AnchorLine(anchor.Mark{Epoch: "e1"}, at))
	altered := bytes.Replace(eventText(t, 2), []byte("ann"), []byte("bob"), 1)
	for name, test := range map[string]struct {
		parts        [][]byte
		last, newest int64
		cut, altered int
	}{
		"whole":          {parts: [][]byte{first, eventText(t, 1)}, last: 1, newest: 1},
		"torn line":      {parts: [][]byte{first, eventText(t, 1), eventText(t, 2)[:99]}, last: 1, newest: 1, cut: 99},
		"zeros":          {parts: [][]byte{first, eventText(t, 1), make([]byte, 500)}, last: 1, newest: 1, cut: 500},
		"hole":           {parts: [][]byte{first, make([]byte, 500), eventText(t, 1)[9:], eventText(t, 2)}, last: 0, newest: 2, cut: 500 + len(eventText(t, 1)) - 9 + len(eventText(t, 2))},
		"altered":        {parts: [][]byte{first, eventText(t, 1), altered, eventText(t, 3)}, last: 3, newest: 3, altered: 1},
		"only an anchor": {parts: [][]byte{first}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit")
			write(t, path, test.parts...)
			tail, err := sink.ReadTail(path)
			if err != nil || tail.Last.Revision != test.last || tail.Newest.Revision != test.newest ||
				tail.Size-tail.End != int64(test.cut) || tail.Altered != test.altered {
				t.Errorf("ReadTail: %+v, %v; want %+v", tail, err, test)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "audit")
	for _, text := range []string{"root:x:0:0\n", "{\"type\":\"anchor\"\n{}\n", "words"} {
		write(t, path, []byte(text))
		if tail, err := sink.ReadTail(path); !errors.Is(err, sink.ErrLine) {
			t.Errorf("%q: %+v, %v; want ErrLine", text, tail, err)
		}
	}
	for _, text := range [][]byte{nil, first[:30], make([]byte, 4096)} {
		write(t, path, text)
		if tail, err := sink.ReadTail(path); err != nil || tail.Last.Epoch != "" || tail.End != 0 {
			t.Errorf("%q: %+v, %v; want an empty tail", text, tail, err)
		}
	}
}

// open opens the sink at path as a start does.
func open(t *testing.T, path string, options sink.Options) *sink.File {
	t.Helper()
	tail, err := sink.ReadTail(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	mark := tail.Last
	if mark.Epoch == "" {
		mark.Epoch = "e1"
	}
	file, err := sink.Open(path, tail, mark, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return file
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// TestRotateBeginsWithThePosition: the file that was renamed is written until Rotate, and the next
// begins where it ends.
func TestRotateBeginsWithThePosition(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	file := open(t, path, sink.Options{Now: func() time.Time { return at }})
	for revision := int64(1); revision <= 3; revision++ {
		if revision == 2 {
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
		}
		if err := file.Append(eventText(t, revision), markOf(t, revision), nil); err != nil {
			t.Fatal(err)
		}
		if revision == 2 {
			if err := errors.Join(file.Rotate(), file.Rotate()); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := string(textOf(t, sink.AnchorLine(anchor.Mark{Epoch: "e1"}, at))) + string(eventText(t, 1)) + string(eventText(t, 2))
	if got := read(t, path+".1"); got != want {
		t.Errorf("the renamed file has %s, want %s", got, want)
	}
	want = string(textOf(t, sink.AnchorLine(markOf(t, 2), at))) + string(eventText(t, 3))
	if got := read(t, path); got != want {
		t.Errorf("the file has %s, want %s", got, want)
	}
	if info, err := os.Stat(path + ".1"); err != nil || info.Sys().(*syscall.Stat_t).Blocks*512 > 64<<10 {
		t.Errorf("the renamed file keeps its reserve: %+v, %v", info, err)
	}
	if name, tail, err := sink.Newest(path); err != nil || name != path || tail.Newest != markOf(t, 3) {
		t.Errorf("Newest: %s, %+v, %v", name, tail, err)
	}
	write(t, path)
	if name, tail, err := sink.Newest(path); err != nil || name != path+".1" || tail.Newest != markOf(t, 2) {
		t.Errorf("Newest of an empty file: %s, %+v, %v", name, tail, err)
	}
}

// TestFailedRotateLeavesNoNewestLine: if the next file cannot be used after its first line was
// written, the present file goes on, and what is left of the next one is not taken for the newest.
func TestFailedRotateLeavesNoNewestLine(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "sink")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	path, rotating := filepath.Join(folder, "audit"), false
	file := open(t, path, sink.Options{Reserve: -1, Disk: sink.Disk{Sync: func(*os.File) error {
		if rotating { // the folder is renamed while the next file is being made
			return os.Rename(folder, folder+"-away")
		}
		return nil
	}}})
	if err := errors.Join(file.Append(eventText(t, 1), markOf(t, 1), nil), os.Rename(path, path+".1")); err != nil {
		t.Fatal(err)
	}
	rotating = true
	if err := file.Rotate(); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("Rotate: %v, want ErrNotExist", err)
	}
	rotating = false
	if err := errors.Join(file.Append(eventText(t, 2), markOf(t, 2), nil), os.Rename(folder+"-away", folder)); err != nil {
		t.Fatal(err)
	}
	if name, tail, err := sink.Newest(path); err != nil || name != path+".1" || tail.Newest != markOf(t, 2) {
		t.Errorf("Newest: %s, %+v, %v; want the line of revision 2", name, tail, err)
	}
	if err := file.Rotate(); err != nil {
		t.Fatal(err)
	}
	if tail, err := sink.ReadTail(path); err != nil || tail.Last != markOf(t, 2) {
		t.Errorf("ReadTail: %+v, %v", tail, err)
	}
}

// TestReopenCutsWhatFailed: after a failed write or sync, what may have been written is cut.
func TestReopenCutsWhatFailed(t *testing.T) {
	broken := errors.New("the disk is broken")
	for name, disk := range map[string]sink.Disk{
		"short write": {Write: func(file *os.File, data []byte, offset int64) (int, error) {
			return file.WriteAt(data[:len(data)-5], offset)
		}},
		"failed sync": {Sync: func(*os.File) error { return broken }},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit")
			failing := false
			file := open(t, path, sink.Options{Reserve: -1, Disk: sink.Disk{
				Write: func(file *os.File, data []byte, offset int64) (int, error) {
					if failing && disk.Write != nil {
						return disk.Write(file, data, offset)
					}
					return file.WriteAt(data, offset)
				},
				Sync: func(file *os.File) error {
					if failing && disk.Sync != nil {
						return disk.Sync(file)
					}
					return file.Sync()
				},
			}})
			failing = true
			if err := file.Append(eventText(t, 1), markOf(t, 1), nil); err == nil {
				t.Fatal("Append: no error")
			}
			failing = false
			if err := file.Reopen(); err != nil {
				t.Fatal(err)
			}
			for revision := int64(1); revision <= 2; revision++ {
				if err := file.Append(eventText(t, revision), markOf(t, revision), nil); err != nil {
					t.Fatal(err)
				}
			}
			_, rest, _ := strings.Cut(read(t, path), "\n")
			if rest != string(eventText(t, 1))+string(eventText(t, 2)) {
				t.Errorf("the file has %s", rest)
			}
		})
	}
}

// TestReserveIsKept: disk space for narrowing changes is allocated behind the last line, and the
// file says when that failed.
func TestReserveIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	disk := int64(1 << 20)
	file := open(t, path, sink.Options{Reserve: 64 << 10, Disk: sink.Disk{Allocate: func(_ *os.File, _, to int64) error {
		if to > disk {
			return syscall.ENOSPC
		}
		return nil
	}}})
	if file.Full() { // the step of 4 MiB does not fit, but the reserve does
		t.Error("full although the reserve is allocated")
	}
	disk = 1 << 40
	for revision := int64(1); revision <= 100; revision++ { // past the step
		if err := file.Append(bytes.Repeat([]byte("x"), 100<<10), markOf(t, revision), nil); err != nil || file.Full() {
			t.Fatalf("Append: %v; full %t, want false", err, file.Full())
		}
	}
	disk = 0
	large := bytes.Repeat([]byte("x"), 5<<20)
	if err := file.Append(large, markOf(t, 1), nil); err != nil || !file.Full() {
		t.Errorf("Append: %v; full %t, want true", err, file.Full())
	}
	disk = 1 << 40
	file.Reserve()
	if file.Full() {
		t.Error("still full after space was freed")
	}
}

// TestDeletedFileIsNoticed: lines in a file that no name leads to are lost.
func TestDeletedFileIsNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	file := open(t, path, sink.Options{Reserve: -1})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := file.Append(eventText(t, 1), markOf(t, 1), nil); !errors.Is(err, sink.ErrReplaced) {
		t.Fatalf("Append: %v, want ErrReplaced", err)
	}
	if err := file.Reopen(); err != nil {
		t.Fatal(err)
	}
	if err := file.Append(eventText(t, 1), markOf(t, 1), nil); err != nil {
		t.Fatal(err)
	}
	if tail, err := sink.ReadTail(path); err != nil || tail.Last != markOf(t, 1) {
		t.Errorf("ReadTail: %+v, %v", tail, err)
	}
}

// FuzzParse: what Parse accepts is what Append makes.
func FuzzParse(f *testing.F) {
	f.Add(textOf(f, sink.EventLine("e1", 12, event(f, 2), true)))
	f.Add(textOf(f, sink.AnchorLine(anchor.Mark{Epoch: "e1", Revision: 3}, at)))
	f.Fuzz(func(t *testing.T, text []byte) {
		line, err := sink.Parse(text)
		if err != nil {
			if !errors.Is(err, sink.ErrLine) {
				t.Errorf("Parse: %v, want ErrLine", err)
			}
			return
		}
		again, err := line.Append(nil)
		if err != nil || !bytes.Equal(bytes.TrimSuffix(again, []byte("\n")), bytes.TrimSuffix(text, []byte("\n"))) {
			t.Errorf("accepted %q, which Append makes %q, %v", text, again, err)
		}
	})
}
