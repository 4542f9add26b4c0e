package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func (a *app) whoAmICommand() *cobra.Command {
	return a.clientCommand(&cobra.Command{
		Use:   "whoami",
		Short: "Show who the server takes this command for, and what that caller may do",
		Long: `Show the caller that this command is for the server: its name, how it has proved who
it is and with what, until when, its rights with the workspaces that they hold for,
and which line of the server's configuration gives them.

` + jsonHelp + ` With -o name it is the bare name.`,
		Example: `  keysvc whoami
  keysvc whoami --context prod -o name`,
	}, formatsOfThings, func(ctx context.Context, s *session, _ []string) error {
		response, err := s.callers.WhoAmI(ctx, &keysvcv1.WhoAmIRequest{})
		if err != nil {
			return err
		}
		if s.out.format == formatName {
			return s.out.line("%s", response.GetName())
		}
		return s.out.answer(response, func() error { return s.showCaller(response) })
	})
}

// proofs says what the sources of callers mean.
var proofs = map[string]string{
	"loopback": "nothing: a plaintext connection from this machine",
	"unix":     "the user of this process, on a unix socket",
	"spiffe":   "a client certificate with a SPIFFE id",
	"dns":      "a client certificate with a DNS name",
	"oidc":     "a token of an OIDC issuer",
	"token":    "a caller token",
}

func (s *session) showCaller(caller *keysvcv1.WhoAmIResponse) error {
	proof, known := proofs[caller.GetSource()]
	if !known {
		proof = caller.GetSource()
	}
	err := s.out.record(
		field{"Name", caller.GetName()},
		field{"Proved by", proof},
		field{"Credential", caller.GetCredential()},
		field{"Valid until", s.out.deadline(caller.GetNotAfter(), "no end")},
		field{"Server", s.address},
		field{"Because of", caller.GetRule()},
	)
	if err != nil {
		return err
	}
	if len(caller.GetRights()) == 0 {
		return s.out.line("Rights       none")
	}
	rows := newTable([]column{{title: "RIGHT"}, {title: "WORKSPACES"}}, false, s.out.width)
	for _, right := range caller.GetRights() {
		workspaces := strings.Join(right.GetWorkspaceIds(), ", ")
		switch {
		case right.GetAllWorkspaces():
			workspaces = "all"
		case workspaces == "":
			workspaces = "none"
		}
		rows.add(right.GetRight(), workspaces)
	}
	return s.out.write([]byte("\n" + rows.take()))
}
