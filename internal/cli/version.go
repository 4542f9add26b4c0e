package cli

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/version"
)

func (a *app) versionCommand() *cobra.Command {
	return a.clientCommand(&cobra.Command{
		Use:   "version",
		Short: "Print the version of this command, and of the server",
		Long: `Print the version of this command, and of the server if it can be reached. If it
cannot, the exit status is 0 all the same.`,
		Example: `  keysvc version`,
	}, nil, func(ctx context.Context, s *session, _ []string) error {
		if err := s.out.line("keysvc %s", version.Text()); err != nil {
			return err
		}
		var header metadata.MD
		_, err := s.policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{}, grpc.Header(&header))
		told := first(header.Get(version.Header))
		switch {
		case told != "":
			return s.out.line("server %s, at %s", told, s.address)
		case err != nil:
			return s.note("the version of the server is not known: %s", err)
		}
		return s.out.line("server of an unknown version, at %s", s.address)
	})
}
