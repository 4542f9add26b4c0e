package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func (a *app) keyExplainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain KEY_ID {--scope SCOPE | --identity-only}",
		Short: "Say what a request with a key's token is answered, and why",
		Long: `Say what a request with a key's token is answered, and why: each check in its order,
what would have to change, and what changed last and by whom. No token is needed,
and the question does not count as a use of the key.

That the token is the key's newest one is assumed: keysvc validate says whether a
token is. A key that is limited to networks is refused without --address.

The exit status is 0 if there is an answer, whatever it is.

` + jsonHelp,
		Example: `  keysvc key explain 9fQ2mXc7Lr0TzB4w --scope signatures:read
  keysvc key explain 9fQ2mXc7Lr0TzB4w --scope signatures:read --address 203.0.113.7`,
		Args: positional("KEY_ID"),
	}
	request := &keysvcv1.ExplainKeyRequest{}
	flags := cmd.Flags()
	workspace := a.workspaceFlag(cmd, "the key's workspace; empty means any")
	flags.StringVar(&request.RequiredScope, "scope", "", "the scope that the request needs, as in signatures:read")
	flags.BoolVar(&request.IdentityOnly, "identity-only", false, "the request needs no scope")
	flags.StringVar(&request.ClientAddress, "address", "", "the address of whoever presents the token, without a port")
	a.complete(cmd, "scope", completeScopes)
	a.completeArgument(cmd, completeKeys)
	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, args []string) error {
		if (request.GetRequiredScope() != "") == request.GetIdentityOnly() {
			return usageError(cmd, "exactly one of --scope and --identity-only is needed")
		}
		request.KeyId, request.WorkspaceId = args[0], *workspace
		response, err := s.audit.ExplainKey(ctx, request)
		if err != nil {
			return err
		}
		return s.out.answer(response, func() error { return s.out.explanation(request, response) })
	})
}

// outcomes are the outcomes of checks as people see them.
var outcomes = map[keysvcv1.KeyCheckOutcome]string{
	keysvcv1.KeyCheckOutcome_KEY_CHECK_OUTCOME_PASSED:         "yes",
	keysvcv1.KeyCheckOutcome_KEY_CHECK_OUTCOME_FAILED:         "NO",
	keysvcv1.KeyCheckOutcome_KEY_CHECK_OUTCOME_NOT_APPLICABLE: "-",
}

// explanation shows an explanation on one screen.
func (p *printer) explanation(request *keysvcv1.ExplainKeyRequest, response *keysvcv1.ExplainKeyResponse) error {
	key := response.GetKey()
	what := request.GetRequiredScope()
	if what == "" {
		what = "a request that needs no scope"
	}
	text := fmt.Sprintf("ALLOWED: key %s may use %s", key.GetKeyId(), what)
	if response.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
		text = fmt.Sprintf("%s: %s, %s",
			strings.TrimPrefix(response.GetDecision().String(), "DECISION_"),
			strings.TrimPrefix(response.GetReason().String(), "REASON_"),
			strings.ReplaceAll(inWords(response.GetReason(), "key "+key.GetKeyId(), request.GetRequiredScope()), "--client-address", "--address"))
	}
	if err := p.line("%s", text); err != nil {
		return err
	}
	var checks table
	for _, check := range response.GetChecks() {
		outcome, known := outcomes[check.GetOutcome()]
		if !known {
			outcome = "NO"
		}
		checks.add("  "+outcome, check.GetDescription())
	}
	var screen strings.Builder
	screen.WriteString("\n" + checks.take() + "\n")
	if len(response.GetRemedies()) > 0 {
		screen.WriteString("What would have to change:\n")
		for _, remedy := range response.GetRemedies() {
			screen.WriteString("  " + printable(remedy) + "\n")
		}
		screen.WriteString("\n")
	}
	role := response.GetRole()
	if role == "" {
		role = "none: the member was removed"
	}
	screen.WriteString(record(
		field{"Key", key.GetKeyId() + ", " + key.GetName()},
		field{"Member", key.GetMemberId() + " of workspace " + key.GetWorkspaceId() + ", " + enumWord(response.GetMemberState(), "MEMBER_STATE_")},
		field{"Granted", values(key.GetScopes())},
		field{"Role", role},
		field{"Effective", values(response.GetEffectiveScopes())},
	))
	if len(response.GetChanges()) > 0 {
		screen.WriteString("\nWhat changed last, newest first (times in UTC):\n")
		var changes table
		for _, event := range response.GetChanges() {
			changes.add("  "+second(event.GetTime()), auditAction(event), auditSubject(event), "by "+who(event), auditBrief(event))
		}
		screen.WriteString(changes.take())
	}
	return p.write([]byte(screen.String()))
}

// who returns who made a change: the caller, and the member for whom it said that it acted.
func who(event *keysvcv1.AuditEvent) string {
	if actor := event.GetActorMemberId(); actor != "" {
		return orDash(event.GetCaller()) + ", for " + actor
	}
	return orDash(event.GetCaller())
}
