package cli_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
)

func TestPolicyShowPrintsAPolicyFile(t *testing.T) {
	active := policy.Default()
	c := command{addr: start(t, &fake{getPolicy: func(context.Context, *keysvcv1.GetPolicyRequest) (*keysvcv1.GetPolicyResponse, error) {
		return &keysvcv1.GetPolicyResponse{Policy: policyMessage(active), Digest: active.Digest(), RetiredScopes: []string{"old:read"}, Revision: 5, Epoch: "e1"}, nil
	}})}
	r := c.run(t, "policy", "show")
	if r.status != 0 || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	if want := "# " + active.Digest() + " at revision 5 of e1\n# retired scopes: old:read\nversion: 1\n"; !strings.HasPrefix(r.stdout, want) {
		t.Errorf("got\n%s\nwant it to begin with\n%s", r.stdout, want)
	}
	again, err := policy.Parse("policy.yaml", []byte(r.stdout))
	if err != nil {
		t.Fatal(err)
	}
	if again.Digest() != active.Digest() {
		t.Errorf("the shown policy has digest %s, want %s", again.Digest(), active.Digest())
	}
	if r := c.run(t, "policy", "show", "-o", "json"); !strings.Contains(r.stdout, `"retired_scopes": [`) {
		t.Errorf("%+v", r)
	}
}

func TestPolicyCheckNamesFileAndLine(t *testing.T) {
	t.Chdir(t.TempDir())
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("good.yaml", string(policy.Default().Document()))
	write("bad.yaml", "version: 1\ntoken_prefix: a_b\nresources:\n  - name: things\n    actions: [read]\nroles:\n  - name: all\n    scopes: [\"things:write\"]\n")

	r := command{}.run(t, "policy", "check", "good.yaml")
	for _, want := range []string{"good.yaml is valid", "23 of 9 resources", "manager: 22 scopes", "member: 0 scopes", policy.Default().Digest()} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in\n%s", want, r.stdout)
		}
	}
	if r.status != 0 || r.stderr != "" {
		t.Errorf("%+v", r)
	}

	r = command{}.run(t, "policy", "check", "bad.yaml")
	lines := strings.Split(r.stderr, "\n")
	if r.status != 1 || r.stdout != "" || len(lines) != 4 || !strings.HasPrefix(lines[0], "bad.yaml:2:15: token_prefix: ") ||
		!strings.HasPrefix(lines[1], "bad.yaml:8:14: roles[0].scopes[0]: ") || lines[2] != "error: bad.yaml is not a valid policy" {
		t.Errorf("%+v", r)
	}

	missing := filepath.Join("none", "policy.yaml")
	command{}.run(t, "policy", "check", missing).want(t, 1, "", "error: open "+missing+": no such file or directory\n")
}
