package cli_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
)

// policyServer is a server with an active policy. The test chooses the differences that it reports.
type policyServer struct {
	active  *policy.Policy
	answer  *keysvcv1.ApplyPolicyResponse
	asked   []*keysvcv1.ApplyPolicyRequest // with validate_only
	applied []*keysvcv1.ApplyPolicyRequest
	// failure is the error of applying.
	failure error
}

func newPolicyServer() *policyServer {
	return &policyServer{active: policy.Default(), answer: &keysvcv1.ApplyPolicyResponse{
		Digest: "sha256:new", AddedScopes: []string{"contacts:read", "contacts:write"}, RemovedScopes: []string{"emails:delete"},
		RoleChanges: []*keysvcv1.RoleChange{
			{Role: "auditor", Kind: keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_ADDED, AddedScopes: []string{"contacts:read", "emails:read"}},
			{Role: "guest", Kind: keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_ADDED},
			{Role: "manager", Kind: keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_CHANGED, AddedScopes: []string{"contacts:read"}, RemovedScopes: []string{"emails:delete", "teammates:delete"}},
			{Role: "member", Kind: keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_REMOVED},
			{Role: "owner", Kind: keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_CHANGED, AddedScopes: []string{"contacts:read", "contacts:write"}},
			{Role: "support", Kind: keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_REMOVED, RemovedScopes: []string{"emails:read"}},
		},
		NarrowedKeys: 12, WidenedKeys: 1, Revision: 5, Epoch: "e1",
	}}
}

func (p *policyServer) fake() *fake {
	return &fake{
		getPolicy: func(context.Context, *keysvcv1.GetPolicyRequest) (*keysvcv1.GetPolicyResponse, error) {
			return &keysvcv1.GetPolicyResponse{Policy: policyMessage(p.active), Digest: p.active.Digest(), Revision: 5, Epoch: "e1"}, nil
		},
		applyPolicy: func(_ context.Context, r *keysvcv1.ApplyPolicyRequest) (*keysvcv1.ApplyPolicyResponse, error) {
			if r.GetValidateOnly() {
				p.asked = append(p.asked, r)
				return p.answer, nil
			}
			if p.failure != nil {
				return nil, p.failure
			}
			p.applied = append(p.applied, r)
			return p.answer, nil
		},
	}
}

func policyMessage(p *policy.Policy) *keysvcv1.Policy {
	message := &keysvcv1.Policy{
		TokenPrefix: p.TokenPrefix,
		Limits: &keysvcv1.PolicyLimits{
			LiveKeysPerWorkspace: int32(p.Limits.LiveKeysPerWorkspace),
			ScopesPerKey:         int32(p.Limits.ScopesPerKey),
			KeyNameCharacters:    int32(p.Limits.KeyNameCharacters),
		},
		Retention: durationpb.New(p.Retention),
	}
	for _, resource := range p.Resources {
		message.Resources = append(message.Resources, &keysvcv1.PolicyResource{
			Name: resource.Name, Actions: resource.Actions, Title: resource.Title, Description: resource.Description,
		})
	}
	for _, action := range p.Actions {
		message.Actions = append(message.Actions, &keysvcv1.PolicyAction{Name: action.Name, Title: action.Title, Description: action.Description})
	}
	for _, role := range p.Roles {
		message.Roles = append(message.Roles, &keysvcv1.PolicyRole{Name: role.Name, Scopes: role.Scopes})
	}
	return message
}

// writePolicy writes a policy file into a new folder and makes that the working directory.
func writePolicy(t *testing.T, p *policy.Policy) string {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.WriteFile("policy.yaml", p.Document(), 0o600); err != nil {
		t.Fatal(err)
	}
	return "policy.yaml"
}

func changedPolicy() *policy.Policy {
	p := policy.Default()
	p.TokenPrefix, p.Retention = "acme", 30*policy.Day
	p.Limits = policy.Limits{LiveKeysPerWorkspace: 500, ScopesPerKey: 10, KeyNameCharacters: 64}
	return p
}

func writeChangedPolicy(t *testing.T) string {
	t.Helper()
	return writePolicy(t, changedPolicy())
}

func TestPolicyApplyShowsItsPlanFirst(t *testing.T) {
	p := newPolicyServer()
	c := command{addr: start(t, p.fake())}
	goldenFile := func(name string) string {
		path, err := filepath.Abs(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	planFile, jsonFile := goldenFile("policy_plan.txt"), goldenFile("policy_apply.json")
	file := writeChangedPolicy(t)
	want := &keysvcv1.ApplyPolicyRequest{Policy: policyMessage(changedPolicy()), ReplacesDigest: p.active.Digest(), ValidateOnly: true}

	r := c.run(t, "policy", "apply", file, "--dry-run")
	goldenAt(t, planFile, r.stdout)
	plan := r.stdout
	if r.status != 0 || r.stderr != "" || len(p.asked) != 1 || len(p.applied) != 0 || !proto.Equal(p.asked[0], want) {
		t.Errorf("%+v, requests %v", r, p.asked)
	}

	// The content of a pipe is no answer.
	c.stdin = strings.NewReader("yes\n")
	c.run(t, "policy", "apply", file).want(t, 7, plan, "error: nothing was changed: there is no terminal to ask at; give --yes to go on without the question\n")
	if len(p.applied) != 0 {
		t.Error("applied without a question")
	}

	want.ActorMemberId = new("bob")
	c.run(t, "policy", "apply", file, "--yes", "--actor", "bob").want(t, 0,
		plan+"Applied: the active policy is sha256:new. 12 live keys can do less, 1 can do more.\n", "")
	want.ValidateOnly = false
	if len(p.applied) != 1 || !proto.Equal(p.applied[0], want) {
		t.Errorf("requests %v", p.applied)
	}

	r = c.run(t, "policy", "apply", file, "--yes", "-o", "json")
	goldenAt(t, jsonFile, r.stdout)
	if r.status != 0 || r.stderr != plan || len(p.applied) != 2 {
		t.Errorf("%+v", r)
	}
	r = c.run(t, "policy", "apply", file, "--dry-run", "-o", "json")
	goldenAt(t, jsonFile, r.stdout)
	if r.status != 0 || r.stderr != plan || len(p.applied) != 2 {
		t.Errorf("%+v", r)
	}

	p.failure = failure(t, codes.Aborted, "another digest", &errdetails.ErrorInfo{Reason: "POLICY_CHANGED", Domain: "keysvc"})
	c.run(t, "policy", "apply", file, "--yes").want(t, 7, plan, "error: ABORTED (POLICY_CHANGED): another digest\n"+
		"  somebody else changed the policy meanwhile, so nothing was applied: see keysvc policy show, bring the file up to date, and run the command again for a new plan\n")

	p.failure = failure(t, codes.Unknown, "the store failed", &errdetails.ErrorInfo{Reason: "OUTCOME_UNKNOWN", Domain: "keysvc"})
	c.run(t, "policy", "apply", file, "--yes").want(t, 1, plan, "error: UNKNOWN (OUTCOME_UNKNOWN): the store failed\n  keysvc policy show says which policy is active\n")

	if r := c.run(t, "policy", "apply", file, "--yes", "--dry-run"); r.status != 2 || r.stdout != "" {
		t.Errorf("%+v", r)
	}
}

func TestPolicyApplyWithoutChangesAsksNothing(t *testing.T) {
	p := newPolicyServer()
	c := command{addr: start(t, p.fake())}
	file := writePolicy(t, p.active)
	// Without a change there is no question.
	p.answer = &keysvcv1.ApplyPolicyResponse{Digest: p.active.Digest(), Revision: 5, Epoch: "e1"}
	const nothing = "policy.yaml: nothing to change, this is the active policy\n"
	c.run(t, "policy", "apply", file).want(t, 0, nothing, "")
	c.run(t, "policy", "apply", file, "--yes").want(t, 0, nothing, "")
	if r := c.run(t, "policy", "apply", file, "-o", "json"); r.status != 0 || r.stderr != nothing || !strings.Contains(r.stdout, p.active.Digest()) {
		t.Errorf("%+v", r)
	}
	if len(p.applied) != 0 {
		t.Errorf("requests %v", p.applied)
	}

	p.answer = &keysvcv1.ApplyPolicyResponse{Digest: "sha256:new"}
	c.run(t, "policy", "apply", file, "--dry-run").want(t, 0, "policy.yaml in place of the active policy, "+p.active.Digest()+":\n\n"+
		"  ~ only the order of the lists, or how roles are written\n\nNo live key is affected.\n", "")
	for effect, answer := range map[string]*keysvcv1.ApplyPolicyResponse{
		"1 live key can do less.":                      {Digest: "sha256:new", NarrowedKeys: 1},
		"2 live keys can do more.":                     {Digest: "sha256:new", WidenedKeys: 2},
		"1 live key can do less, 1000000 can do more.": {Digest: "sha256:new", NarrowedKeys: 1, WidenedKeys: 1e6},
	} {
		p.answer = answer
		if r := c.run(t, "policy", "apply", file, "--dry-run"); !strings.HasSuffix(r.stdout, "\n"+effect+"\n") {
			t.Errorf("%+v", r)
		}
	}
}

func TestPolicyApplySendsNoInvalidFile(t *testing.T) {
	p := newPolicyServer()
	c := command{addr: start(t, p.fake())}
	t.Chdir(t.TempDir())
	if err := os.WriteFile("bad.yaml", []byte("version: 1\ntoken_prefix: a_b\nresources: []\nroles: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := c.run(t, "policy", "apply", "bad.yaml", "--yes")
	if r.status != 1 || r.stdout != "" || !strings.HasPrefix(r.stderr, "bad.yaml:2:15: token_prefix: ") || !strings.HasSuffix(r.stderr, "\nerror: bad.yaml is not a valid policy\n") {
		t.Errorf("%+v", r)
	}
	c.run(t, "policy", "apply", "missing.yaml").want(t, 1, "", "error: open missing.yaml: no such file or directory\n")
	if len(p.asked) != 0 {
		t.Errorf("requests %v", p.asked)
	}
}

// TestPolicyPlanThatTimesOutHasChangedNothing: the error of a plan does not say that a change may
// have been made.
func TestPolicyPlanThatTimesOutHasChangedNothing(t *testing.T) {
	p := newPolicyServer()
	f := p.fake()
	f.applyPolicy = func(ctx context.Context, _ *keysvcv1.ApplyPolicyRequest) (*keysvcv1.ApplyPolicyResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	addr := start(t, f)
	command{addr: addr}.run(t, "policy", "apply", writeChangedPolicy(t), "--dry-run", "--timeout", "50ms").want(t, 8, "",
		"error: DEADLINE_EXCEEDED: no answer from "+addr+" within 50ms\n")
}
