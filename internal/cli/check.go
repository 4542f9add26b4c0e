package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/config"
)

func (a *app) checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check (FILE | --store etcd)",
		Short: "Check a store, without a server",
		Long: `Check a store's file that no server has open: that each page and record is whole,
that indexes and records belong together, that the audit events form chains without
gaps, that the change log agrees with the records, and the file with its anchor and
its audit sink. Nothing is changed.

With --store etcd, check the store in etcd in the same way, as of one revision;
servers may go on meanwhile. The settings of etcd are those of "keysvc serve".`,
		Example: `  keysvc check keysvc-data/keysvc.db
  keysvc check --store etcd --etcd-endpoints 127.0.0.1:2379`,
		Args: fileOrEtcd("FILE"),
	}
	inEtcd := a.etcdFlags(cmd, storeFile)
	outside := outsideFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.hooks.Check == nil {
			return errNoHook
		}
		if len(args) == 0 {
			settings, err := inEtcd()
			if err != nil {
				return err
			}
			return a.hooks.CheckEtcd(cmd.Context(), settings, a.Stdout)
		}
		return a.onFile(cmd, args[0], func(ctx context.Context) error {
			return a.hooks.Check(ctx, args[0], *outside, a.Stdout)
		})
	}
	return cmd
}

// storeFile is what most commands need that do not work on a store in etcd.
const storeFile = "the store's file"

// fileOrEtcd is positional for a command that works on a store's file, which is named, or on the store in etcd.
func fileOrEtcd(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil // for a store in etcd
		}
		if cmd.Flags().Changed("store") {
			return usageError(cmd, "takes %s or --store, not both", name)
		}
		return positional(name)(cmd, args)
	}
}

// etcdFlags adds --store and the flags of etcd, as serve has them, to a command that works on a file as well. The
// function that it returns returns the settings of the store in etcd, or a usage error if they name none, which says what the
// command needs otherwise.
func (a *app) etcdFlags(cmd *cobra.Command, otherwise string) func() (config.Settings, error) {
	source := a.someSettingsFlags(cmd, func(setting config.Setting) bool {
		return setting.Name == "store" || strings.HasPrefix(setting.Name, "etcd-")
	})
	return func() (config.Settings, error) {
		loaded, err := source().Load()
		if err != nil {
			return config.Settings{}, err
		}
		if loaded.Settings.Store != config.EtcdStore {
			return config.Settings{}, usageError(cmd, "needs %s, or --store etcd with --etcd-endpoints", otherwise)
		}
		return loaded.Settings, nil
	}
}
