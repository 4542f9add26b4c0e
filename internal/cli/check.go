package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/config"
)

func (a *app) checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a store, without a server",
		Long: `Check a store's file that no server has open: that each page and record is whole,
that indexes and records belong together, that the audit events form chains without
gaps, that the change log agrees with the records, and the file with its anchor and
its audit sink. Nothing is changed.

With --store etcd, check the store in etcd in the same way, as of one revision;
servers may go on meanwhile. The settings of etcd are those of "keysvc serve".`,
		Example: `  keysvc check keysvc-data/keysvc.db
  keysvc check --store etcd --etcd-endpoints 127.0.0.1:2379`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil // for a store in etcd
			}
			return positional("FILE")(cmd, args)
		},
	}
	source := a.someSettingsFlags(cmd, func(setting config.Setting) bool {
		return setting.Name == "store" || strings.HasPrefix(setting.Name, "etcd-")
	})
	outside := outsideFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.hooks.Check == nil {
			return errNoHook
		}
		if len(args) == 0 {
			return a.checkEtcd(cmd, source())
		}
		return a.onFile(cmd, args[0], func(ctx context.Context) error {
			return a.hooks.Check(ctx, args[0], *outside, a.Stdout)
		})
	}
	return cmd
}

// checkEtcd checks the store in etcd that the settings name.
func (a *app) checkEtcd(cmd *cobra.Command, source config.Source) error {
	loaded, err := source.Load()
	if err != nil {
		return err
	}
	if loaded.Settings.Store != config.EtcdStore {
		return usageError(cmd, "needs FILE, the store's file, or --store etcd with --etcd-endpoints")
	}
	return a.hooks.CheckEtcd(cmd.Context(), loaded.Settings, a.Stdout)
}
