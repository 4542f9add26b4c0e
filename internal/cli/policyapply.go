package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
)

func (a *app) policyApplyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "apply FILE",
		Short: "Make a policy file the active policy, after a look at the plan",
		Long: `Make a policy file the active policy. Mistakes in it go to standard error, each with
file and line. Then comes a plan: which scopes and roles change, and how many live
keys can do less or more. At a terminal it must be confirmed; elsewhere --yes is
needed, unless there is nothing to change.

A scope that the file leaves out is retired: it does nothing on the keys that have
it, and no later policy can bring its name back.

If somebody else changes the active policy between plan and change, nothing is
applied (POLICY_CHANGED).

The plan goes to standard output or, with -o json, to standard error.

` + waitHelp + "\n\n" + jsonHelp + `
With --dry-run it says what would change.`,
		Example: `  keysvc policy show >policy.yaml
  keysvc policy apply policy.yaml --dry-run
  keysvc policy apply policy.yaml --yes --actor bob`,
		Args: positional("FILE"),
	}
	yes := yesFlag(cmd)
	dryRun := cmd.Flags().Bool("dry-run", false, "show the plan and change nothing")
	wait := waitFlag(cmd)
	actor := a.actorFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("yes", "dry-run")
	cmd.MarkFlagsMutuallyExclusive("wait", "dry-run")
	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, args []string) error {
		file := args[0]
		wanted, err := a.readPolicyFile(file)
		if err != nil {
			return err
		}
		active, err := s.policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
		if err != nil {
			return err
		}
		request := &keysvcv1.ApplyPolicyRequest{
			Policy:         policyMessage(wanted),
			ReplacesDigest: active.GetDigest(),
			ValidateOnly:   true,
			ActorMemberId:  optional(cmd, "actor", actor),
		}
		plan, err := s.applyPolicy(ctx, request)
		if err != nil {
			return err
		}
		nothing := plan.GetDigest() == active.GetDigest()
		if err := s.showPlan(file, active, wanted, plan); err != nil {
			return err
		}
		if nothing || *dryRun {
			return s.out.answer(plan, func() error { return nil })
		}
		if !*yes {
			if err := s.confirm(ctx, "Apply it? Type yes to confirm:", "yes"); err != nil {
				return err
			}
		}
		request.ValidateOnly = false
		response, err := s.applyPolicy(ctx, request)
		if err != nil {
			return err
		}
		return s.changed(ctx, *wait, response, func() error {
			return s.out.line("Applied: the active policy is %s. %s", response.GetDigest(), keyEffect(response))
		})
	})
}

func (s *session) applyPolicy(ctx context.Context, request *keysvcv1.ApplyPolicyRequest) (*keysvcv1.ApplyPolicyResponse, error) {
	response, err := s.policies.ApplyPolicy(ctx, request)
	return response, advise(err, func(call *callError) string {
		switch {
		case call.has(keysvcv1.ErrorReason_ERROR_REASON_POLICY_CHANGED):
			return "somebody else changed the policy meanwhile, so nothing was applied: see keysvc policy show, bring the file up to date, and run the command again for a new plan"
		case call.maybeDone():
			return "keysvc policy show says which policy is active"
		}
		return ""
	})
}

// showPlan writes the plan: the changes that applying the policy would make.
func (s *session) showPlan(file string, active *keysvcv1.GetPolicyResponse, wanted *policy.Policy, plan *keysvcv1.ApplyPolicyResponse) error {
	out := s.Stdout
	if s.out.format == formatJSON {
		out = s.Stderr
	}
	text := printable(file) + ": nothing to change, this is the active policy\n"
	if plan.GetDigest() != active.GetDigest() {
		text = printable(fmt.Sprintf("%s in place of the active policy, %s:", file, active.GetDigest())) + "\n\n" +
			planTable(policyFrom(active.GetPolicy()), wanted, plan) + "\n" + keyEffect(plan) + "\n"
	}
	if _, err := io.WriteString(out, text); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	return nil
}

// planTable lists the differences: + for new, - for removed, ~ for changed.
func planTable(active, wanted *policy.Policy, plan *keysvcv1.ApplyPolicyResponse) string {
	var t table
	for _, scope := range plan.GetAddedScopes() {
		t.add("  + scope", scope)
	}
	for _, scope := range plan.GetRemovedScopes() {
		t.add("  - scope", scope, "retired for good")
	}
	for _, change := range plan.GetRoleChanges() {
		roleRows(&t, change)
	}
	setting := func(name, before, after, note string) {
		if before != after {
			t.add("  ~ "+name, before+" → "+after, note)
		}
	}
	setting("token prefix", active.TokenPrefix, wanted.TokenPrefix, "of new tokens")
	setting("live keys per workspace", fmt.Sprint(active.Limits.LiveKeysPerWorkspace), fmt.Sprint(wanted.Limits.LiveKeysPerWorkspace), "")
	setting("scopes per key", fmt.Sprint(active.Limits.ScopesPerKey), fmt.Sprint(wanted.Limits.ScopesPerKey), "")
	setting("characters of a name", fmt.Sprint(active.Limits.KeyNameCharacters), fmt.Sprint(wanted.Limits.KeyNameCharacters), "")
	setting("retention", retentionDays(active), retentionDays(wanted), "then revoked and expired keys are purged")
	if active.TitlesDigest() != wanted.TitlesDigest() {
		t.add("  ~ titles and descriptions", "", "for people; they decide nothing")
	}
	if len(t.rows) == 0 {
		t.add("  ~ only the order of the lists, or how roles are written")
	}
	return t.take()
}

func roleRows(t *table, change *keysvcv1.RoleChange) {
	name := change.GetRole()
	gains := strings.Join(change.GetAddedScopes(), ", ")
	loses := strings.Join(change.GetRemovedScopes(), ", ")
	switch change.GetKind() {
	case keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_ADDED:
		if gains == "" {
			gains = "nothing"
		}
		t.add("  + role", name, "may do "+gains)
		return
	case keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_REMOVED:
		t.add("  - role", name, "members with this role may do nothing any more")
		name = ""
	case keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_CHANGED, keysvcv1.RoleChangeKind_ROLE_CHANGE_KIND_UNSPECIFIED:
	}
	for _, line := range []struct{ verb, scopes string }{{"gains ", gains}, {"loses ", loses}} {
		if line.scopes == "" {
			continue
		}
		first := "  ~ role"
		if name == "" {
			first = ""
		}
		t.add(first, name, line.verb+line.scopes)
		name = ""
	}
}

func retentionDays(p *policy.Policy) string {
	return count(int64(p.Retention/policy.Day), "day")
}

// keyEffect returns in words how many live keys a policy narrows and widens.
func keyEffect(response *keysvcv1.ApplyPolicyResponse) string {
	narrowed, widened := response.GetNarrowedKeys(), response.GetWidenedKeys()
	switch {
	case narrowed == 0 && widened == 0:
		return "No live key is affected."
	case widened == 0:
		return count(narrowed, "live key") + " can do less."
	case narrowed == 0:
		return count(widened, "live key") + " can do more."
	}
	return count(narrowed, "live key") + " can do less, " + fmt.Sprint(widened) + " can do more."
}

// policyMessage returns a valid policy as a message of the API.
func policyMessage(p *policy.Policy) *keysvcv1.Policy {
	message := &keysvcv1.Policy{
		TokenPrefix: p.TokenPrefix,
		Retention:   durationpb.New(p.Retention),
		Limits: &keysvcv1.PolicyLimits{
			LiveKeysPerWorkspace: int32(p.Limits.LiveKeysPerWorkspace), //nolint:gosec // at most 1,000,000
			ScopesPerKey:         int32(p.Limits.ScopesPerKey),         //nolint:gosec // at most 1,000
			KeyNameCharacters:    int32(p.Limits.KeyNameCharacters),    //nolint:gosec // at most 1,024
		},
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
