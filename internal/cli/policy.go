package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
)

func (a *app) policyCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "policy",
		Short:   "Look at the active policy, check a policy file, and apply it",
		Example: `  keysvc policy show`,
	},
		a.policyShowCommand(),
		a.policyCheckCommand(),
		a.policyApplyCommand(),
	)
}

func (a *app) policyShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the active policy",
		Long: `Show the active policy: the stored one that the server decides with. The answer is
itself a policy file.

` + jsonHelp,
		Example: `  keysvc policy show >policy.yaml`,
	}
	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, _ []string) error {
		response, err := s.policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
		if err != nil {
			return err
		}
		return s.out.answer(response, func() error { return s.out.policy(response) })
	})
}

// policy writes the policy as YAML, with digest, revision and retired scopes as comments.
func (p *printer) policy(response *keysvcv1.GetPolicyResponse) error {
	var text bytes.Buffer
	fmt.Fprintf(&text, "# %s at revision %d of %s\n", printable(response.GetDigest()), response.GetRevision(), printable(response.GetEpoch()))
	if retired := response.GetRetiredScopes(); len(retired) > 0 {
		fmt.Fprintf(&text, "# retired scopes: %s\n", printable(strings.Join(retired, ", ")))
	}
	text.Write(policyFrom(response.GetPolicy()).Document())
	return p.write(text.Bytes())
}

func policyFrom(message *keysvcv1.Policy) *policy.Policy {
	p := &policy.Policy{
		TokenPrefix: message.GetTokenPrefix(),
		Limits: policy.Limits{
			LiveKeysPerWorkspace: int(message.GetLimits().GetLiveKeysPerWorkspace()),
			ScopesPerKey:         int(message.GetLimits().GetScopesPerKey()),
			KeyNameCharacters:    int(message.GetLimits().GetKeyNameCharacters()),
		},
		Retention: message.GetRetention().AsDuration(),
	}
	for _, resource := range message.GetResources() {
		p.Resources = append(p.Resources, policy.Resource{
			Name: resource.GetName(), Actions: resource.GetActions(), Title: resource.GetTitle(), Description: resource.GetDescription(),
		})
	}
	for _, action := range message.GetActions() {
		p.Actions = append(p.Actions, policy.Action{Name: action.GetName(), Title: action.GetTitle(), Description: action.GetDescription()})
	}
	for _, role := range message.GetRoles() {
		p.Roles = append(p.Roles, policy.Role{Name: role.GetName(), Scopes: role.GetScopes()})
	}
	return p
}

func (a *app) policyCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a policy file, without a server",
		Long: `Check a policy file, without a server, and say what is in it. Mistakes go to
standard error, each with file and line.`,
		Example: `  keysvc policy check policy.yaml`,
		Args:    positional("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			file := args[0]
			p, err := a.readPolicyFile(file)
			if err != nil {
				return err
			}
			return a.policySummary(file, p)
		},
	}
}

// readPolicyFile reads a policy. Its mistakes are written to standard error.
func (a *app) readPolicyFile(file string) (*policy.Policy, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p, err := policy.Parse(file, data)
	if err != nil {
		return nil, a.listMistakes(err, file+" is not a valid policy")
	}
	return p, nil
}

func (a *app) policySummary(file string, p *policy.Policy) error {
	fields := []field{
		{"Policy", file + " is valid"},
		{"Scopes", fmt.Sprintf("%d of %s", len(p.Scopes()), count(int64(len(p.Resources)), "resource"))},
	}
	for _, role := range p.Roles {
		scopes, _ := p.RoleScopes(role.Name)
		fields = append(fields, field{"Role", role.Name + ": " + count(int64(len(scopes)), "scope")})
	}
	out := &printer{out: a.Stdout}
	return out.record(append(
		fields,
		field{"Token prefix", p.TokenPrefix},
		field{"Digest", p.Digest()},
	)...)
}
