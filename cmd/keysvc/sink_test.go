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

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
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
	token := createSunk(t, s).GetToken() // into the renamed file
	s.signal(t, syscall.SIGHUP)
	if _, err := s.stderr.await(s.ended, regexp.MustCompile("(the audit sink was opened again)")); err != nil {
		t.Fatal(err)
	}
	// It is after the rotation, because the log has said so.
	last := createSunk(t, s)
	s.kill()
	if strings.Contains(s.stderr.String(), "the audit sink cannot be written") {
		t.Skip("the disk took more than a second, so changes were answered without the sink")
	}

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

// createSunk creates a key, and waits as long as the sink is too slow for that.
func createSunk(t *testing.T, s *serving) *keysvcv1.CreateKeyResponse {
	t.Helper()
	ctx := testContext(t)
	for {
		created, err := s.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"signatures:read"},
		})
		if err == nil {
			return created
		}
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}
