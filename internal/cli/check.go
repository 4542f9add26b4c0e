package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func (a *app) checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a store's file, without a server",
		Long: `Check a store's file that no server has open: that each page and record is whole,
that indexes and records belong together, that the audit events form chains without
gaps, that the change log agrees with the records, and the file with its anchor and
its audit sink. Nothing is changed.`,
		Example: `  keysvc check keysvc-data/keysvc.db`,
		Args:    positional("FILE"),
	}
	outside := outsideFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.hooks.Check == nil {
			return errNoHook
		}
		return a.onFile(cmd, args[0], func(ctx context.Context) error {
			return a.hooks.Check(ctx, args[0], *outside, a.Stdout)
		})
	}
	return cmd
}
