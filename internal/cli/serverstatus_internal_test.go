package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// answers gives one answer after the other, and ends the context with the last.
type answers struct {
	list []*keysvcv1.GetStatusResponse // nil for an error
	end  func()
}

// GetStatus implements keysvcv1.StatusServiceClient.
func (a *answers) GetStatus(context.Context, *keysvcv1.GetStatusRequest, ...grpc.CallOption) (*keysvcv1.GetStatusResponse, error) {
	next := a.list[0]
	if a.list = a.list[1:]; len(a.list) == 0 {
		a.end()
	}
	if next == nil {
		return nil, errors.New("no answer")
	}
	return next, nil
}

var statusTime = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

// watching runs status --watch with answers, of which the last is not shown: with it comes Ctrl-C.
func watching(t *testing.T, format outputFormat, width int, list ...*keysvcv1.GetStatusResponse) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var out, failures bytes.Buffer
	now := func() time.Time { return statusTime }
	s := &session{
		app: &app{Process: Process{Stderr: &failures, Now: now}}, address: "here",
		out:      &printer{out: &out, format: format, width: width, now: now},
		statuses: &answers{list: append(list, nil), end: cancel},
	}
	ticks := make(chan time.Time, len(list))
	for range list {
		ticks <- statusTime
	}
	err = s.watchStatus(ctx, ticks)
	return out.String(), failures.String(), err
}

func TestWatchedStatusEndsWithTheLastAnswer(t *testing.T) {
	t.Parallel()
	well := &keysvcv1.GetStatusResponse{Epoch: "of-the-well", Clock: &keysvcv1.ClockStatus{Purges: true}}
	wrong := &keysvcv1.GetStatusResponse{Epoch: "of-the-wrong", Problems: []*keysvcv1.StatusProblem{{
		ProblemId: "disk-full", Severity: keysvcv1.ProblemSeverity_PROBLEM_SEVERITY_ERROR, Description: "It is full.\x1b[31m", Action: "Make room.",
	}}}
	out, failed, err := watching(t, formatTable, 0, wrong, nil, well)
	if err != nil || strings.Count(out, "Epoch") != 2 || !strings.Contains(out, "ERROR disk-full\n  It is full.\\x1b[31m\n  Make room.\n") ||
		!strings.Contains(out, "All is well.") || failed != "error: no answer\n" {
		t.Errorf("got %v\n%s\n%s", err, out, failed)
	}
	if _, _, err := watching(t, formatTable, 0, well, wrong); !errors.Is(err, statusError(ExitFailure)) {
		t.Errorf("got %v", err)
	}
	if _, _, err := watching(t, formatTable, 0, well, nil); err == nil || err.Error() != "no answer" {
		t.Errorf("got %v", err)
	}
	out, _, _ = watching(t, formatJSON, 0, well, wrong)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[1], `{"problems":[{"problem_id":"disk-full"`) {
		t.Errorf("got %s", out)
	}
	if out, _, _ = watching(t, formatYAML, 0, well, wrong); strings.Count(out, "---\n") != 2 {
		t.Errorf("got %s", out)
	}
}

func TestTerminalIsRedrawnWithoutFlicker(t *testing.T) {
	t.Parallel()
	well := &keysvcv1.GetStatusResponse{Epoch: "e"}
	out, failed, _ := watching(t, formatTable, 80, well, nil, well)
	if strings.Count(out, "\x1b[2J") != 1 || strings.Count(out, "\x1b[H") != 3 || strings.Count(out, "\x1b[J") != 3 ||
		strings.Contains(strings.ReplaceAll(out, "\x1b[K\n", ""), "\n") || !strings.Contains(out, "no answer\x1b[K\n") || failed != "" {
		t.Errorf("got %q, %q", out, failed)
	}
}

func TestStatusIsShownInWords(t *testing.T) {
	t.Parallel()
	s := &session{app: &app{}, address: "unix:///run/keysvc.sock", out: &printer{now: func() time.Time { return statusTime }}}
	got := s.statusText(&keysvcv1.GetStatusResponse{
		Version: "v1", StartTime: timestamppb.New(statusTime.Add(-5 * time.Hour)), ServerTime: timestamppb.New(statusTime.Add(3 * time.Second)),
		Epoch: "epoch", Revision: 18234, Schema: 2, NewestSchema: 3, StoreKind: "etcd", LastCommitTime: timestamppb.New(statusTime.Add(-2 * time.Minute)),
		Keys: &keysvcv1.KeyCounts{Total: 3, States: []*keysvcv1.KeyStateCount{
			{State: keysvcv1.KeyState_KEY_STATE_ACTIVE, Count: 2}, {State: keysvcv1.KeyState_KEY_STATE_REVOKED, Count: 1},
		}, ExpiringWithin_7Days: new(int64(1)), ExpiringWithin_30Days: new(int64(2))},
		MemberCount: 8, WorkspaceCount: 1,
		Sessions: &keysvcv1.SessionStatus{
			Open: 14, Limit: 1500, Leased: 9, Behind: 2, UnconfirmedChanges: 1, Lag: durationpb.New(340 * time.Millisecond), Staleness: durationpb.New(time.Second),
		},
		Store: &keysvcv1.StoreStatus{
			State: keysvcv1.StoreState_STORE_STATE_FULL, FileBytes: 1 << 30, FreeBytes: 1023, ReserveBytes: 64 << 20, DiskFreeBytes: 1 << 19, DiskBytes: 5 << 40,
		},
		AuditSink: &keysvcv1.FollowerStatus{State: keysvcv1.FollowerState_FOLLOWER_STATE_FAILING, Revision: 7},
		Anchor:    &keysvcv1.FollowerStatus{State: keysvcv1.FollowerState_FOLLOWER_STATE_OFF},
		Clock:     &keysvcv1.ClockStatus{State: keysvcv1.ClockState_CLOCK_STATE_JUMPED},
		Certificates: []*keysvcv1.CertificateStatus{{
			Use: keysvcv1.CertificateUse_CERTIFICATE_USE_SERVER, ExpireTime: timestamppb.New(statusTime.AddDate(0, 0, 83)),
		}},
	})
	const want = `All is well.

Server         unix:///run/keysvc.sock
Version        v1
Running since  2027-03-01 07:00 UTC, 5 hours ago
Epoch          epoch
Revision       18234
Schema         2; this server knows up to 3 (keysvc upgrade status)
Last change    2027-03-01 11:58 UTC, 2 minutes ago
Last backup    not known here
Keys           3
  active       2
  revoked      1
  expire soon  1 within 7 days, 2 within 30
Members        8 in 1 workspace
Near-caches    14 of at most 1500, 9 in use, 2 behind by up to 1 change and 340ms
Staleness      1s at most
Store          full, file of 1.0 GiB, 1023 bytes of it free
Reserve        64.0 MiB, for changes that take something away
Disk           512.0 KiB of 5.0 TiB free
Audit sink     failing, has revision 7
Anchor         off
Clock          jumped, 2027-03-01 12:00:03 UTC, 3s from the clock here, purges nothing
Certificate    ends 2027-05-23 12:00 UTC, in 83 days
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	cluster := s.statusText(&keysvcv1.GetStatusResponse{Store: &keysvcv1.StoreStatus{
		State: keysvcv1.StoreState_STORE_STATE_EXHAUSTED,
		Members: []*keysvcv1.StoreMember{
			{Number: 1, State: keysvcv1.StoreMemberState_STORE_MEMBER_STATE_LEADS, DatabaseBytes: 3 << 20, FreeBytes: 1 << 20, QuotaBytes: 4 << 20},
			{Number: 2, State: keysvcv1.StoreMemberState_STORE_MEMBER_STATE_SILENT},
		},
	}})
	for _, line := range []string{
		"Store          exhausted, in etcd with 2 members\n",
		"etcd member 1  leads, database of 3.0 MiB, 1.0 MiB of it free, 75 % of its quota\n",
		"etcd member 2  silent, database of 0 bytes, 0 bytes of it free\n",
	} {
		if !strings.Contains(cluster, line) {
			t.Errorf("got\n%s\nwithout\n%s", cluster, line)
		}
	}
	// A server that says less, or what this command does not know.
	for _, response := range []*keysvcv1.GetStatusResponse{{}, {Store: &keysvcv1.StoreStatus{State: keysvcv1.StoreState_STORE_STATE_SILENT}}, {Store: &keysvcv1.StoreStatus{State: 99}}} {
		if text := s.statusText(response); !strings.Contains(text, "\nStore ") {
			t.Errorf("got %s", text)
		}
	}
}

func TestSchemaIsShownInWords(t *testing.T) {
	t.Parallel()
	for want, response := range map[string]*keysvcv1.GetStatusResponse{
		"":                                     {},
		"not known; this server knows up to 3": {NewestSchema: 3, StoreKind: "etcd"},
		"3":                                    {Schema: 3, NewestSchema: 3, StoreKind: "etcd"},
		"2":                                    {Schema: 2, NewestSchema: 3, StoreKind: "bbolt"}, // a restore that holds keys makes schema 3
	} {
		if got := schemaText(response); got != want {
			t.Errorf("%v: %q, want %q", response, got, want)
		}
	}
}
