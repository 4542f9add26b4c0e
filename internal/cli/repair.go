package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func (a *app) repairClockCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repair-clock (FILE | --store etcd)",
		Short: "Repair a store that was changed while the clock was ahead, without a server",
		Long: `Set times that lie in the future back to now, in a store's file that no server has
open: when keys were made or revoked, members changed, and the store changed last.
A key that was created or rotated meanwhile keeps its length: one made for a week
has a week from now. Each record that changes gets an audit event.

Set the clock right first, and keep a copy of the file. Without --yes nothing is
changed, and the command prints how many records it would change. What was purged
meanwhile is lost for good.

With --store etcd, repair the store in etcd. Stop all servers first: a server that
runs goes on with the time that it knows.`,
		Example: `  keysvc repair-clock keysvc-data/keysvc.db
  keysvc repair-clock keysvc-data/keysvc.db --yes
  keysvc repair-clock --store etcd --etcd-endpoints 127.0.0.1:2379 --yes`,
		Args: fileOrEtcd("FILE"),
	}
	inEtcd := a.etcdFlags(cmd, storeFile)
	yes := cmd.Flags().Bool("yes", false, "do it")
	outside := outsideFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.hooks.RepairClock == nil || a.hooks.RepairClockEtcd == nil && len(args) == 0 {
			return errNoHook
		}
		if len(args) == 0 {
			settings, err := inEtcd()
			if err != nil {
				return err
			}
			return a.hooks.RepairClockEtcd(cmd.Context(), settings, *yes, a.Stdout)
		}
		return a.onFile(cmd, args[0], func(ctx context.Context) error {
			return a.hooks.RepairClock(ctx, args[0], *outside, *yes, a.Stdout)
		})
	}
	return cmd
}
