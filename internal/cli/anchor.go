package cli

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/server"
)

func (a *app) anchorCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "anchor",
		Short: "Accept a store that does not agree with its anchor",
		Long: `The anchor is a small file that remembers how far a store had come: its epoch,
its newest revision, and the hash of that change. The last line of the audit sink
says the same. A store that does not agree with it has lost changes, revocations
among them, and is not served.`,
		Example: `  keysvc anchor accept keysvc-data/keysvc.db`,
	},
		a.anchorAcceptCommand(),
	)
}

// outsideFlags adds --anchor and --audit-sink, the paths of what a store's file is compared with.
func outsideFlags(cmd *cobra.Command) *server.Outside {
	outside := &server.Outside{}
	cmd.Flags().StringVar(&outside.Anchor, "anchor", "", "the anchor's file (default: FILE.anchor)")
	cmd.Flags().StringVar(&outside.Sink, "audit-sink", "", "the audit sink's file, or off (default: the one that FILE had)")
	return outside
}

func (a *app) anchorAcceptCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "accept (FILE | --store etcd)",
		Short: "Accept a store as it is, although changes may be lost",
		Long: `Accept a store's file as it is, after a start was refused because the file does not
agree with its anchor or its audit sink, or because one of them is lost. No server
may have the file open.

All changes after the file's newest one are lost. What they revoked or removed works
again: find it in the logs of the product and of keysvc, and revoke or remove it
again. The store gets a new epoch, so that every near-cache starts empty, and a new
anchor or a line in its audit sink. With --audit-sink off it has no sink any more.
This cannot be undone. If you still have the newest file, put it in place instead.

With --store etcd, accept the store in etcd, after etcd was put back to a snapshot.
Stop all servers first. "keysvc restore --store etcd" takes away again what the
audit sink knows to be revoked since; this command does not.

With --dry-run the command prints how the store compares with its anchor and its
audit sink, and changes nothing. Otherwise, at a terminal "accept" must be typed;
elsewhere --yes is needed.`,
		Example: `  keysvc anchor accept keysvc-data/keysvc.db --dry-run
  keysvc anchor accept /var/lib/keysvc/keysvc.db --anchor /mnt/other/keysvc.anchor --yes
  keysvc anchor accept --store etcd --etcd-endpoints 127.0.0.1:2379 --audit-sink audit.jsonl`,
		Args: fileOrEtcd("FILE"),
	}
	inEtcd := a.etcdFlags(cmd, storeFile)
	yes := yesFlag(cmd)
	dryRun := cmd.Flags().Bool("dry-run", false, "say what would be accepted, and change nothing")
	outside := outsideFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.hooks.AcceptAnchor == nil || a.hooks.AcceptEtcd == nil && len(args) == 0 {
			return errNoHook
		}
		s := &session{app: a, cmd: cmd}
		confirm := func() error {
			switch {
			case *dryRun:
				return errDryRun
			case *yes:
				return nil
			}
			return s.confirm(cmd.Context(), "Type accept to serve it as it is:", "accept")
		}
		if len(args) == 0 {
			settings, err := inEtcd()
			if err != nil {
				return err
			}
			if outside.Anchor != "" {
				return usageError(cmd, "--anchor is for a store in a file: over etcd the audit sink is the anchor")
			}
			return a.afterDryRun(a.hooks.AcceptEtcd(cmd.Context(), settings, outside.Sink, a.Stdout, confirm))
		}
		return a.onFile(cmd, args[0], func(ctx context.Context) error {
			return a.afterDryRun(a.hooks.AcceptAnchor(ctx, args[0], *outside, a.Stdout, confirm))
		})
	}
	return cmd
}

// errDryRun is the answer to the question before a final change if nothing is to be changed.
var errDryRun = errors.New("nothing is to be changed")

// afterDryRun returns an error of a command, and says that nothing was changed if it is errDryRun.
func (a *app) afterDryRun(err error) error {
	if errors.Is(err, errDryRun) {
		_, err = io.WriteString(a.Stdout, "Nothing was changed.\n")
	}
	return err
}
