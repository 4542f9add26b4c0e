package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/mattn/go-runewidth"
	"golang.org/x/sys/unix"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/cli"
	"github.com/scribe-mail/keysvc/internal/server"
)

// openTerminal returns both ends of a new terminal: one for the person, one for the command.
func openTerminal(t *testing.T) (person, terminal *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { _ = person.Close() })
	var number, unlocked int32
	for request, argument := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlocked, syscall.TIOCGPTN: &number} {
		_, _, failed := syscall.Syscall(syscall.SYS_IOCTL, person.Fd(), request, uintptr(unsafe.Pointer(argument)))
		if failed != 0 {
			t.Fatal(failed)
		}
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = terminal.Close() })
	silence(t, terminal)
	return person, terminal
}

// silence turns off the echo. The kernel echoes typed text at any time, even in the middle of the
// output of the command.
func silence(t *testing.T, terminal *os.File) {
	t.Helper()
	settings, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	settings.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(terminal.Fd()), unix.TCSETS, settings); err != nil {
		t.Fatal(err)
	}
}

// runAtTerminal runs a command with what a person types, and returns what the terminal
// shows beside the answer.
func (c command) runAtTerminal(t *testing.T, typed string, args ...string) result {
	t.Helper()
	person, terminal := openTerminal(t)
	if _, err := io.WriteString(person, typed); err != nil {
		t.Fatal(err)
	}
	at := c
	at.stdin = terminal
	var stdout bytes.Buffer
	status := at.runTo(t.Context(), &stdout, terminal, args...)
	closeIt(t, terminal)
	shown, err := io.ReadAll(person)
	if err != nil && !errors.Is(err, syscall.EIO) { // the other end was closed
		t.Error(err)
	}
	return result{status, stdout.String(), strings.ReplaceAll(string(shown), "\r\n", "\n")}
}

// TestKeyRevokeAsksWithWhatItIsAbout: the key is looked up and named in the question.
func TestKeyRevokeAsksWithWhatItIsAbout(t *testing.T) {
	var revoked []string
	key := testKey()
	f := &fake{
		getKey: func(_ context.Context, r *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
			if r.GetKeyId() != testID || r.GetWorkspaceId() != "" {
				t.Errorf("request %v", r)
			}
			return &keysvcv1.GetKeyResponse{Key: key}, nil
		},
		revokeKey: func(_ context.Context, r *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
			revoked = append(revoked, r.GetWorkspaceId()+"/"+r.GetKeyId())
			return &keysvcv1.RevokeKeyResponse{Key: key}, nil
		},
	}
	c := command{addr: start(t, f)}
	const question = "Revoke key " + testID + " (\"deploy\" of member ann in workspace acme, last used 2026-11-23 03:02 UTC) for good? Type yes to confirm: "
	c.runAtTerminal(t, "no\n", "key", "revoke", testID).want(t, cli.ExitRefused, "", question+"error: nothing was changed: the answer was not \"yes\"\n")
	if len(revoked) != 0 {
		t.Errorf("revoked %q", revoked)
	}
	if r := c.runAtTerminal(t, "yes\n", "key", "revoke", testID); r.status != 0 || r.stderr != question || len(revoked) != 1 || revoked[0] != "acme/"+testID {
		t.Errorf("%+v, revoked %q", r, revoked)
	}
	// For a key that is revoked already there is no question.
	key.State = keysvcv1.KeyState_KEY_STATE_REVOKED
	if r := c.runAtTerminal(t, "", "key", "revoke", testID); r.status != 0 || r.stderr != "" || len(revoked) != 2 {
		t.Errorf("%+v, revoked %q", r, revoked)
	}
}

func TestKeyRotateAsksBeforeItEndsTokens(t *testing.T) {
	rotated := 0
	c := command{addr: start(t, &fake{
		getKey: func(context.Context, *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
			return &keysvcv1.GetKeyResponse{Key: testKey()}, nil
		},
		rotateKey: func(context.Context, *keysvcv1.RotateKeyRequest) (*keysvcv1.RotateKeyResponse, error) {
			rotated++
			return &keysvcv1.RotateKeyResponse{Key: testKey(), Token: testToken}, nil
		},
	})}
	args := []string{"key", "rotate", testID, "--workspace", "acme", "--overlap"}
	r := c.runAtTerminal(t, "\n", append(args, "0")...)
	if r.status != cli.ExitRefused || !strings.HasPrefix(r.stderr, "End all tokens of key "+testID+" (\"deploy\"") || rotated != 0 {
		t.Errorf("%+v, %d rotations", r, rotated)
	}
	if r := c.runAtTerminal(t, "yes\n", append(args, "0")...); r.status != 0 || r.stdout != testToken+"\n" || rotated != 1 {
		t.Errorf("%+v, %d rotations", r, rotated)
	}
	if r := c.runAtTerminal(t, "", append(args, "1h")...); r.status != 0 || strings.Contains(r.stderr, "?") || rotated != 2 {
		t.Errorf("with an overlap: %+v, %d rotations", r, rotated)
	}
}

func TestMemberRemoveAsksWithHowManyKeysEnd(t *testing.T) {
	removed := 0
	f := &fake{
		getMember: func(_ context.Context, r *keysvcv1.GetMemberRequest) (*keysvcv1.GetMemberResponse, error) {
			return &keysvcv1.GetMemberResponse{Member: testMember(r.GetMemberId())}, nil
		},
		listKeys: func(_ context.Context, r *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
			if r.GetMemberId() != "ann" || r.GetWorkspaceId() != "acme" || len(r.GetStates()) != 2 {
				t.Errorf("request %v", r)
			}
			return &keysvcv1.ListKeysResponse{Keys: []*keysvcv1.Key{testKey(), testKey()}}, nil
		},
		remove: func(context.Context, *keysvcv1.RemoveMemberRequest) (*keysvcv1.RemoveMemberResponse, error) {
			removed++
			return &keysvcv1.RemoveMemberResponse{}, nil
		},
	}
	c := command{addr: start(t, f)}
	args := []string{"member", "remove", "ann", "--workspace", "acme"}
	const question = "Remove member ann of workspace acme and end 2 live keys for good? Type yes to confirm: "
	c.runAtTerminal(t, "y\n", args...).want(t, cli.ExitRefused, "", question+"error: nothing was changed: the answer was not \"yes\"\n")
	if r := c.runAtTerminal(t, "yes\n", args...); r.status != 0 || r.stderr != question || removed != 1 {
		t.Errorf("%+v, %d removals", r, removed)
	}
}

// TestListFitsTheTerminal: no line is longer than the terminal is wide, and -o wide is not cut.
func TestListFitsTheTerminal(t *testing.T) {
	long := rotatingKey()
	long.Name, long.MemberId, long.State = "a name that is far too long for a narrow terminal 配置する", "somebody@example.com", keysvcv1.KeyState_KEY_STATE_SUSPENDED
	c := command{addr: start(t, &fake{listKeys: func(context.Context, *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
		return &keysvcv1.ListKeysResponse{Keys: []*keysvcv1.Key{testKey(), long}}, nil
	}})}
	for _, width := range []uint16{40, 80, 100, 200} {
		for _, format := range []string{"table", "wide"} {
			person, terminal := openTerminal(t)
			if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: width}); err != nil {
				t.Fatal(err)
			}
			status := c.runTo(t.Context(), terminal, io.Discard, "key", "list", "--workspace", "acme", "-o", format)
			closeIt(t, terminal)
			shown, err := io.ReadAll(person)
			if err != nil && !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSuffix(string(shown), "\r\n"), "\r\n")
			if status != 0 || len(lines) != 3 || !strings.HasPrefix(lines[2], testID+"  ") {
				t.Errorf("width %d: status %d, %q", width, status, lines)
			}
			for _, line := range lines {
				if got := runewidth.StringWidth(line); format == "table" && got > int(width) {
					t.Errorf("width %d: a line of %d: %q", width, got, line)
				}
			}
			if whole := strings.Contains(string(shown), long.GetName()); whole != (format == "wide" || width == 200) {
				t.Errorf("width %d, -o %s:\n%s", width, format, shown)
			}
		}
	}
}

func TestWorkspaceRemoveAsksForTheID(t *testing.T) {
	removed := 0
	f := emptyingWorkspace(t, &removed)
	c := command{addr: start(t, f)}
	r := c.runAtTerminal(t, "acme\n", "workspace", "remove", "acme")
	r.want(t, 0, "Workspace acme is removed: none of its keys works any more.\n",
		"workspace acme has 2 members and at least 1 live key\nType its id to remove it for good: ")
	if removed != 1 {
		t.Errorf("%d calls", removed)
	}
	for _, typed := range []string{"\n", "yes\n", "ACME\n", "acme2\n", "acme\x04\x04", "\x04"} {
		r := c.runAtTerminal(t, typed, "workspace", "remove", "acme")
		if r.status != cli.ExitRefused || r.stdout != "" || !strings.HasSuffix(r.stderr, "error: nothing was changed: the answer was not \"acme\"\n") || removed != 1 {
			t.Errorf("%q: %+v, %d calls", typed, r, removed)
		}
	}
	f.listMembers = func(context.Context, *keysvcv1.ListMembersRequest) (*keysvcv1.ListMembersResponse, error) {
		gone := testMember("ann")
		gone.State = keysvcv1.MemberState_MEMBER_STATE_REMOVED
		return &keysvcv1.ListMembersResponse{Members: []*keysvcv1.Member{gone}}, nil
	}
	r = c.runAtTerminal(t, "\n", "workspace", "remove", "acme")
	if r.status != cli.ExitRefused || !strings.Contains(r.stderr, "workspace acme has no members: there may be no such workspace, or it was removed before\n") {
		t.Errorf("%+v", r)
	}
}

func TestPolicyApplyAsksForYes(t *testing.T) {
	p := newPolicyServer()
	c := command{addr: start(t, p.fake())}
	file := writeChangedPolicy(t)
	r := c.runAtTerminal(t, "y\n", "policy", "apply", file)
	if r.status != cli.ExitRefused || len(p.applied) != 0 || !strings.HasSuffix(r.stderr, "Apply it? Type yes to confirm: error: nothing was changed: the answer was not \"yes\"\n") {
		t.Errorf("%+v", r)
	}
	r = c.runAtTerminal(t, "yes\n", "policy", "apply", file)
	if r.status != 0 || len(p.applied) != 1 || !strings.Contains(r.stdout, "\nApplied: the active policy is sha256:") {
		t.Errorf("%+v", r)
	}
	// If standard error goes to a file, nobody sees the question.
	_, terminal := openTerminal(t)
	c.stdin = terminal
	if r := c.run(t, "policy", "apply", file); r.status != cli.ExitRefused || len(p.applied) != 1 || !strings.Contains(r.stderr, "no terminal to ask at") {
		t.Errorf("%+v", r)
	}
}

func TestInterruptWhileAskedChangesNothing(t *testing.T) {
	removed := 0
	person, terminal := openTerminal(t)
	c := command{addr: start(t, emptyingWorkspace(t, &removed)), stdin: terminal}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	status := make(chan int, 1)
	go func() { status <- c.runTo(ctx, io.Discard, terminal, "workspace", "remove", "acme") }()
	var shown string
	for buffer := make([]byte, 4096); !strings.HasSuffix(shown, "error: interrupted\r\n"); {
		n, err := person.Read(buffer)
		if err != nil {
			t.Fatalf("%q, %v", shown, err)
		}
		shown += string(buffer[:n])
		if strings.HasSuffix(shown, " for good: ") {
			interrupt()
		}
	}
	if status := <-status; status != 1 || !strings.HasSuffix(shown, " for good: \r\nerror: interrupted\r\n") || removed != 0 {
		t.Errorf("status %d, %q, %d calls", status, shown, removed)
	}
}

// TestAuditVerifyShowsItsProgressAtATerminal: what is shown is removed at the end, and programs get
// none of it.
func TestAuditVerifyShowsItsProgressAtATerminal(t *testing.T) {
	c := command{hooks: cli.Hooks{VerifyAudit: func(_ context.Context, _ string, options server.VerifyOptions) (server.Verification, error) {
		if options.Progress != nil {
			options.Progress(10_000)
		}
		return server.Verification{Epoch: "e1", Revision: 7, AuditEvents: 7}, nil
	}}}
	const answer = "store       a.db, epoch e1, revision 7, 7 audit events\naudit sink  none\nresult      the store is right; there is no audit sink to compare it with\n"
	c.runAtTerminal(t, "", "audit", "verify", "a.db").want(t, cli.ExitOK, answer, "\r10000 lines of the audit sink read\r\x1b[K")
	c.run(t, "audit", "verify", "a.db").want(t, cli.ExitOK, answer, "")
}

// TestBackupShowsItsProgressAtATerminal, within the width of the terminal.
func TestBackupShowsItsProgressAtATerminal(t *testing.T) {
	person, terminal := openTerminal(t)
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 60}); err != nil {
		t.Fatal(err)
	}
	c := backupsOf(t, nil, nil, backupHeader(len(copied)), backupChunk(copied[:5000]), backupChunk(copied[5000:]), backupTrailer(copied))
	if status := c.runTo(t.Context(), io.Discard, terminal, "backup", t.TempDir()+"/copy.db"); status != 0 {
		t.Errorf("status %d", status)
	}
	text, shown := "", make([]byte, 4096)
	for !strings.HasSuffix(text, "\n") {
		read, err := person.Read(shown)
		if err != nil {
			t.Fatal(err)
		}
		text += string(shown[:read])
	}
	if !strings.Contains(text, "\r[====================] 100 %  0.0 of 0.0 MiB") {
		t.Errorf("the terminal shows %q", text)
	}
	for line := range strings.SplitSeq(strings.ReplaceAll(text, "\x1b[K", ""), "\r") {
		if runewidth.StringWidth(line) > 59 {
			t.Errorf("%q is too wide", line)
		}
	}
}

// TestUpgradeFinishAsksForYes: a person sees the servers before the question, also if the answer is JSON.
func TestUpgradeFinishAsksForYes(t *testing.T) {
	first, a := startReplica(t, "v2", 4)
	for _, format := range []string{"table", "json"} {
		for typed, want := range map[string]int{"no\n": cli.ExitRefused, "yes\n": cli.ExitOK} {
			first.finished.Store(nil)
			result := command{addr: a}.runAtTerminal(t, typed, "upgrade", "finish", "-o", format)
			if called := first.finished.Load() != nil; result.status != want || called != (want == cli.ExitOK) {
				t.Errorf("%s, %q: %+v, FinishUpgrade was called: %t", format, typed, result, called)
			}
			if seen := result.stdout + result.stderr; !strings.Contains(seen, "SERVER") || !strings.Contains(result.stderr, "Raise its schema from 3 to 4 for good?") {
				t.Errorf("%s: the person sees %q", format, seen)
			}
		}
	}
}
