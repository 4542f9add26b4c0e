package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func (a *app) stalenessCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "staleness",
		Short:   "Look at the bound for how long a near-cache can miss a change, and set it",
		Example: `  keysvc staleness show`,
	},
		a.stalenessShowCommand(),
		a.stalenessSetCommand(),
	)
}

func (a *app) stalenessShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the staleness bound",
		Long: `Show the staleness bound: for how long a near-cache may answer without hearing from
a server. Servers over one store in etcd share it. The server of a store in a file
has its own, --staleness.

` + jsonHelp,
		Example: `  keysvc staleness show`,
	}
	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, _ []string) error {
		response, err := s.settings.GetSettings(ctx, &keysvcv1.GetSettingsRequest{})
		if err != nil {
			return err
		}
		return s.out.answer(response, func() error { return s.out.staleness(response) })
	})
}

// staleness shows the bound and where it comes from.
func (p *printer) staleness(settings *keysvcv1.GetSettingsResponse) error {
	source := "the server's setting staleness"
	if settings.GetStored() {
		source = "the store, for all servers over it"
	}
	fields := []field{{"Staleness", settings.GetStaleness().AsDuration().String()}, {"Set by", source}}
	if at := settings.GetChangeTime(); at != nil {
		fields = append(fields, field{"Since", at.AsTime().Format(time.RFC3339)})
	}
	if previous := settings.GetPreviousStaleness(); previous != nil {
		fields = append(fields, field{"Before that", previous.AsDuration().String()})
	}
	return p.record(fields...)
}

func (a *app) stalenessSetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set DURATION",
		Short: "Set the staleness bound of all servers over one store",
		Long: `Set the staleness bound of all servers over one store in etcd: 100ms to 1m. A
larger bound holds at once. With a smaller one, --wait and AwaitRevision still wait
for the larger one until that has passed. Near-caches connect again, and keep what
they have.

A store in a file has one server: change the setting staleness of that server.

` + waitHelp + `

` + jsonHelp,
		Args:    positional("DURATION"),
		Example: `  keysvc staleness set 500ms`,
	}
	wait := waitFlag(cmd)
	actor := a.actorFlag(cmd)
	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, args []string) error {
		wanted, err := time.ParseDuration(args[0])
		if err != nil {
			return usageError(cmd, "%q is not a duration, as in 500ms or 2s", args[0])
		}
		response, err := s.settings.SetStaleness(ctx, &keysvcv1.SetStalenessRequest{
			Staleness: durationpb.New(wanted), ActorMemberId: optional(cmd, "actor", actor),
		})
		if err != nil {
			return advise(err, func(call *callError) string {
				if call.maybeDone() {
					return "keysvc staleness show says which bound holds"
				}
				return ""
			})
		}
		return s.changed(ctx, *wait, response, func() error {
			if before := response.GetReplacedStaleness().AsDuration(); before != wanted {
				return s.out.line("The staleness bound is %s now; it was %s.", wanted, before)
			}
			return s.out.line("The staleness bound is %s already.", wanted)
		})
	})
}
