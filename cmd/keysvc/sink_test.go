package main_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

// TestSinkIsRotatedAndFollowsAKill: SIGHUP begins a new file, a kill loses no line, a start without
// the sink is refused, and the sink has no token.
func TestSinkIsRotatedAndFollowsAKill(t *testing.T) {
	t.Parallel()
	data, file := t.TempDir(), filepath.Join(t.TempDir(), "audit.jsonl")
	s := serve(t, data, "--audit-sink", file)
	s.putMember(t, "acme", "ann", "owner")
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	token := s.create(t, "acme", "ann", "signatures:read").GetToken() // into the renamed file
	s.signal(t, syscall.SIGHUP)
	if _, err := s.stderr.await(s.ended, regexp.MustCompile("(the audit sink was opened again)")); err != nil {
		t.Fatal(err)
	}
	last := s.create(t, "acme", "ann", "signatures:read")
	s.kill()

	reader := sink.NewReader(file+".1", file)
	defer reader.Close()
	var newest int64
	for {
		line, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if line.Event != nil && line.Mark.Revision != newest+1 {
			t.Errorf("revision %d follows on %d", line.Mark.Revision, newest)
		}
		newest = line.Mark.Revision
	}
	if newest != last.GetRevision() {
		t.Errorf("the sink is at revision %d, and %d was acknowledged", newest, last.GetRevision())
	}
	if text := read(t, file+".1") + read(t, file); strings.Contains(text, token) {
		t.Error("the token is in the sink")
	}
	if checked := command(t, "", "check", s.file, "--audit-sink", file); checked.status != 0 || !strings.Contains(checked.stdout, "audit sink    agrees, at revision") {
		t.Errorf("check: %+v", checked)
	}
	refused := launch(t, serveOn(data)...)
	if status := refused.wait(t); status == 0 || !strings.Contains(refused.stderr.String(), "the store has an audit sink, "+file) {
		t.Errorf("a start without the sink: exit status %d\n%s", status, refused.stderr)
	}
	serve(t, data, "--audit-sink", file).stop(t)
	serve(t, data, "--audit-sink", "off").stop(t)
	serve(t, data).stop(t)
}
