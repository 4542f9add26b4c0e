package cli

import "github.com/spf13/cobra"

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a store's file, without a server",
		Long: `Check a store's file that no server has open: that it is whole, that each index
entry has its record and the other way round, that the audit events have no gap and
chain, and that the feed agrees with the records. Nothing is changed.`,
		Example: `  keysvc check keysvc-data/keysvc.db`,
		Args:    positional("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.hooks.Check == nil {
				return errNoHook
			}
			return a.hooks.Check(cmd.Context(), args[0], a.Stdout)
		},
	}
}
