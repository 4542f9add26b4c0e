package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func (a *app) anchorCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "anchor",
		Short: "Accept a store that does not agree with its anchor",
		Long: `The anchor is a small file that remembers how far a store had come: its epoch,
its newest revision, and the hash of that change. A store that does not agree with
it has lost changes, revocations among them, and is not served.`,
		Example: `  keysvc anchor accept keysvc-data/keysvc.db`,
	},
		a.anchorAcceptCommand(),
	)
}

// anchorFlag adds --anchor, the path of the anchor of a store's file.
func anchorFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("anchor", "", "the anchor's file (default: FILE.anchor)")
}

func (a *app) anchorAcceptCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "accept FILE",
		Short: "Accept a store's file as it is, although changes may be lost",
		Long: `Accept a store's file as it is, after a start was refused because the file does not
agree with its anchor. No server may have the file open.

All changes after the file's newest one are lost. What they revoked or removed works
again: find it in the logs of the product and of keysvc, and revoke or remove it
again. The store gets a new anchor, and a new epoch, so that every near-cache starts
empty. This cannot be undone. If you still have the newest file, put it in place
instead.

At a terminal "accept" must be typed; elsewhere --yes is needed.`,
		Example: `  keysvc anchor accept keysvc-data/keysvc.db
  keysvc anchor accept /var/lib/keysvc/keysvc.db --anchor /mnt/other/keysvc.anchor --yes`,
		Args: positional("FILE"),
	}
	yes := yesFlag(cmd)
	anchor := anchorFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.hooks.AcceptAnchor == nil {
			return errNoHook
		}
		s := &session{app: a, cmd: cmd}
		return a.onFile(cmd, args[0], func(ctx context.Context) error {
			return a.hooks.AcceptAnchor(ctx, args[0], *anchor, a.Stdout, func() error {
				if *yes {
					return nil
				}
				return s.confirm(ctx, "Type accept to serve it as it is:", "accept")
			})
		})
	}
	return cmd
}
