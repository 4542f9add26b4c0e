package cli

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func (a *app) healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health [SERVICE]",
		Short: "Ask whether the server serves: the check of a container or a service manager",
		Long: `Ask whether the server, or one of its services, serves. It is the check of the
standard health service of gRPC, which answers without a caller's identity on every
listener. "serve --listener health=ADDRESS" is a listener for health alone, in
plaintext.

The exit status is 0 if the answer is SERVING, and 1 for everything else: another
answer, no answer, or a wrong command line. It is never 2, which Docker reserves.
"keysvc status" says what is wrong with a server that serves.

` + jsonHelp,
		Example: `  keysvc health
  keysvc health keysvc.v1.ValidationService --timeout 2s
  keysvc health --addr 127.0.0.1:7481`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError(cmd, "takes at most one argument, the name of a service")
			}
			return nil
		},
	}
	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, args []string) error {
		request := &grpc_health_v1.HealthCheckRequest{}
		if len(args) > 0 {
			request.Service = args[0]
		}
		response, err := s.health.Check(ctx, request)
		if err != nil {
			return err
		}
		if err := s.out.answer(response, func() error { return s.out.line("%s", response.GetStatus()) }); err != nil {
			return err
		}
		if response.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			return statusError(ExitFailure)
		}
		return nil
	})
}
