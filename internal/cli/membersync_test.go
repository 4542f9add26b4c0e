package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/cli"
)

// directory is a server whose members can be changed. The members of a workspace come in pages of 2.
type directory struct {
	mutex   sync.Mutex
	present []*keysvcv1.Member
	// calls are the changes, in order, and fail decides about each.
	calls []string
	fail  func(call string) error
}

func (d *directory) fake() *fake {
	return &fake{
		getPolicy: func(context.Context, *keysvcv1.GetPolicyRequest) (*keysvcv1.GetPolicyResponse, error) {
			roles := []*keysvcv1.PolicyRole{{Name: "owner"}, {Name: "manager"}}
			return &keysvcv1.GetPolicyResponse{Policy: &keysvcv1.Policy{Roles: roles}}, nil
		},
		listMembers: func(_ context.Context, r *keysvcv1.ListMembersRequest) (*keysvcv1.ListMembersResponse, error) {
			switch {
			case len(d.present) <= 2:
				return &keysvcv1.ListMembersResponse{Members: d.present}, nil
			case r.GetPageToken() == "":
				return &keysvcv1.ListMembersResponse{Members: d.present[:2], NextPageToken: "more"}, nil
			}
			return &keysvcv1.ListMembersResponse{Members: d.present[2:]}, nil
		},
		putMember: func(_ context.Context, r *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error) {
			return &keysvcv1.PutMemberResponse{}, d.note("put " + r.GetMemberId())
		},
		remove: func(_ context.Context, r *keysvcv1.RemoveMemberRequest) (*keysvcv1.RemoveMemberResponse, error) {
			return &keysvcv1.RemoveMemberResponse{}, d.note("remove " + r.GetMemberId())
		},
	}
}

func (d *directory) note(call string) error {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.calls = append(d.calls, call)
	if d.fail != nil {
		return d.fail(call)
	}
	return nil
}

// memberFile writes a file with members of acme, all of them owners.
func memberFile(t *testing.T, ids ...string) string {
	t.Helper()
	text := "workspace,member,role\n"
	for _, id := range ids {
		text += "acme," + id + ",owner\n"
	}
	file := filepath.Join(t.TempDir(), "members.csv")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestMemberSyncTakesAwayFirst(t *testing.T) {
	t.Parallel()
	d := &directory{present: []*keysvcv1.Member{testMember("a1"), testMember("a2"), testMember("a3")}}
	r := command{addr: start(t, d.fake())}.run(t, "member", "sync", memberFile(t, "b1", "b2", "b3", "b4"), "--yes")
	if r.status != 0 || r.stderr != "" || !strings.HasSuffix(r.stdout, "4 to add, 0 to change, 3 to remove, 0 unchanged.\nDone: 7 changes made.\n") {
		t.Errorf("%+v", r)
	}
	if len(d.calls) != 7 {
		t.Fatalf("got %q", d.calls)
	}
	for index, call := range d.calls {
		if removes := strings.HasPrefix(call, "remove "); removes != (index < 3) {
			t.Errorf("got %q", d.calls)
			break
		}
	}
}

func TestMemberSyncStopsIfTheServerDoesNotAnswer(t *testing.T) {
	t.Parallel()
	var ids []string
	for number := range 200 {
		ids = append(ids, fmt.Sprintf("m%03d", number))
	}
	d := &directory{fail: func(string) error { return failure(t, codes.Unavailable, "gone") }}
	r := command{addr: start(t, d.fake())}.run(t, "member", "sync", memberFile(t, ids...), "--yes")
	if r.status != cli.ExitUnreachable || !strings.Contains(r.stderr, "0 of 200 changes were made; repeat the command for the rest") || len(d.calls) > 50 {
		t.Errorf("%d calls, %d: %s", len(d.calls), r.status, r.stderr)
	}
}

func TestMemberSyncShowsTheFirstFailures(t *testing.T) {
	t.Parallel()
	var ids []string
	for number := range 30 {
		ids = append(ids, fmt.Sprintf("m%03d", number))
	}
	d := &directory{fail: func(call string) error {
		if call == "put m007" {
			return nil
		}
		return failure(t, codes.InvalidArgument, "bad")
	}}
	file := memberFile(t, ids...)
	r := command{addr: start(t, d.fake())}.run(t, "member", "sync", file, "--yes")
	lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
	if r.status != cli.ExitFailure || len(lines) != 22 || lines[0] != file+":2: member m000 of workspace acme: INVALID_ARGUMENT: bad" ||
		lines[20] != "and 9 more" || lines[21] != "error: 1 of 30 changes were made; repeat the command for the rest" {
		t.Errorf("%+v", r)
	}
}

func TestMemberSyncCanBeInterrupted(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	d := &directory{fail: func(string) error { interrupt(); return nil }}
	var ids []string
	for number := range 200 {
		ids = append(ids, fmt.Sprintf("m%03d", number))
	}
	var stdout, stderr bytes.Buffer
	status := command{addr: start(t, d.fake())}.runTo(ctx, &stdout, &stderr, "member", "sync", memberFile(t, ids...), "--yes")
	if status != cli.ExitFailure || !strings.HasPrefix(stderr.String(), "error: interrupted: ") || !strings.Contains(stderr.String(), "of 200 changes were made") {
		t.Errorf("%d: %s", status, &stderr)
	}
}

func TestMemberSyncOnNothingAsksNothing(t *testing.T) {
	t.Parallel()
	d := &directory{present: []*keysvcv1.Member{testMember("a1")}}
	file := filepath.Join(t.TempDir(), "members.jsonl")
	if err := os.WriteFile(file, []byte(`{"workspace":"acme","member":"a1","role":"manager"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c := command{addr: start(t, d.fake())}
	c.run(t, "member", "sync", file).want(t, 0, "0 to add, 0 to change, 0 to remove, 1 unchanged.\n", "")
	c.run(t, "member", "sync", file, "--dry-run", "--yes").want(t, cli.ExitUsage, "",
		"error: if any flags in the group [yes dry-run] are set none of the others can be; [dry-run yes] were all set (see keysvc member sync --help)\n")
	if r := c.run(t, "member", "sync", filepath.Join(t.TempDir(), "absent")); r.status != cli.ExitFailure || !strings.Contains(r.stderr, "no such file") {
		t.Errorf("%+v", r)
	}
	if len(d.calls) != 0 {
		t.Errorf("got %q", d.calls)
	}
}

func TestMemberSyncTellsAnOlderVersionFromTheSameOne(t *testing.T) {
	t.Parallel()
	newer, equal := testMember("a1"), testMember("a2")
	newer.SourceVersion, equal.SourceVersion = 8, 7
	d := &directory{present: []*keysvcv1.Member{newer, equal}}
	file := filepath.Join(t.TempDir(), "members.csv")
	if err := os.WriteFile(file, []byte("workspace,member,role,source_version\nacme,a1,owner,7\nacme,a2,owner,7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Neither is sent: the server would refuse both.
	command{addr: start(t, d.fake())}.run(t, "member", "sync", file).want(t, 0, `  !  acme  a1  line 2 has source_version 7, and keysvc has 8
  !  acme  a2  line 3 has source_version 7 as keysvc has, with other content: manager, active → owner, active
0 to add, 0 to change, 0 to remove, 0 unchanged, 1 outdated, 1 of the same version with other content.
`, "")
	if len(d.calls) != 0 {
		t.Errorf("got %q", d.calls)
	}
}

func TestMemberSyncForPrograms(t *testing.T) {
	t.Parallel()
	behind, stays := testMember("a1"), testMember("a2")
	behind.SourceVersion = 8
	d := &directory{present: []*keysvcv1.Member{behind, stays, testMember("a3")}}
	d.fail = func(call string) error {
		if call == "put b1" {
			return failure(t, codes.InvalidArgument, "bad")
		}
		return nil
	}
	file := filepath.Join(t.TempDir(), "members.csv")
	if err := os.WriteFile(file, []byte("workspace,member,role,source_version\nacme,a1,owner,7\nacme,a2,manager,\nacme,b1,owner,4000000000000000000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const steps = `{
  "steps": [
    {
      "action": "remove",
      "workspace_id": "acme",
      "member_id": "a3",
      "before": {
        "role": "manager",
        "state": "active",
        "source_version": "4"
      }
    },
    {
      "action": "add",
      "line": 4,
      "workspace_id": "acme",
      "member_id": "b1",
      "after": {
        "role": "owner",
        "state": "active",
        "source_version": "4000000000000000000"
      }%s
    },
    {
      "action": "none_outdated",
      "line": 2,
      "workspace_id": "acme",
      "member_id": "a1",
      "before": {
        "role": "manager",
        "state": "active",
        "source_version": "8"
      },
      "after": {
        "role": "owner",
        "state": "active",
        "source_version": "7"
      }
    }
  ],
  "unchanged": 1,
  "made": %d
}
`
	c := command{addr: start(t, d.fake())}
	c.run(t, "member", "sync", file, "--dry-run", "-o", "json").want(t, 0, fmt.Sprintf(steps, "", 0), "")
	if len(d.calls) != 0 {
		t.Errorf("got %q", d.calls)
	}
	c.run(t, "member", "sync", file, "--yes", "-o", "json").want(t, cli.ExitFailure, fmt.Sprintf(steps, `,
      "error": "INVALID_ARGUMENT: bad"`, 1),
		file+":4: member b1 of workspace acme: INVALID_ARGUMENT: bad\nerror: 1 of 2 changes were made; repeat the command for the rest\n")
}
