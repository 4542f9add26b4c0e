package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/server"
)

func (a *app) migrateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate --from FILE --to etcd",
		Short: "Copy a store from a file into etcd, or back, and compare the two",
		Long: `Copy a store from a file into etcd, or from etcd into a file. Tokens, ids, audit
events and their chains stay what they are; the new store has a new epoch, so every
near-cache begins anew once. Afterwards both stores are read and compared part by
part, and the new one is checked as "keysvc check" does it.

The source is only read, and nobody may change it meanwhile: give a backup, the file
of a stopped server, or a store in etcd whose servers are all read-only. The target
must not exist. It can be served once everything was compared, and not before. A
migration that was interrupted, however that came, goes on when the same command is
given again.

One of --from and --to is the word etcd, with --etcd-endpoints, or the settings of
the server that will serve it: --config, or variables such as
KEYSVC_ETCD_ENDPOINTS. The other one is a file.

The exit status is 1 if source and target differ; what differs is printed.`,
		Example: `  keysvc migrate --from backup.db --to etcd --etcd-endpoints 10.0.0.1:2379,10.0.0.2:2379
  keysvc migrate --from etcd --to /var/lib/keysvc/keysvc.db --config keysvc.yaml`,
		Args: positional(),
	}
	const etcd = config.EtcdStore
	from := cmd.Flags().String("from", "", "the `store` that is copied: a file, or etcd (required)")
	to := cmd.Flags().String("to", "", "the `store` that is made: etcd, or a file that does not exist (required)")
	settings := a.someSettingsFlags(cmd, func(setting config.Setting) bool { return strings.HasPrefix(setting.Name, "etcd-") })
	format := outputFlag(cmd, formatsOfEvents)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		options := server.MigrateOptions{File: *from, ToFile: *from == etcd}
		switch {
		case a.hooks.Migrate == nil:
			return errNoHook
		case *from == "" || *to == "":
			return usageError(cmd, "--from and --to are needed")
		case (*from == etcd) == (*to == etcd):
			return usageError(cmd, "one of --from and --to is the word etcd, and the other one is a file; copy a file with keysvc backup or cp")
		case options.ToFile:
			options.File = *to
		}
		source := settings()
		source.Flags["store"] = []string{etcd}
		loaded, err := source.Load()
		if err != nil {
			return a.listMistakes(err, "the settings are not valid")
		}
		options.Settings = loaded.Settings
		return a.onFile(cmd, options.File, func(ctx context.Context) error { return a.migrate(ctx, options, *format) })
	}
	return cmd
}

// migrate migrates, with a progress bar at a terminal.
func (a *app) migrate(ctx context.Context, options server.MigrateOptions, format outputFormat) error {
	var bar *progress
	stage := ""
	options.Progress = func(now string, done, total int64) {
		if now != stage {
			if bar != nil {
				bar.end()
			}
			stage, bar = now, a.newCount(now, "parts", total)
		}
		bar.total = total
		bar.show(done)
	}
	result, err := a.hooks.Migrate(ctx, options)
	if bar != nil {
		bar.end()
	}
	if err != nil && !errors.Is(err, server.ErrDiffers) {
		return err
	}
	var shown error
	if format == formatJSON {
		shown = json.NewEncoder(a.Stdout).Encode(result)
	} else {
		shown = migratedText(a.Stdout, result, options)
	}
	return errors.Join(err, shown)
}

// migratedText writes for people what was migrated.
func migratedText(out io.Writer, result *server.Migrated, options server.MigrateOptions) error {
	var text strings.Builder
	line := func(format string, arguments ...any) { fmt.Fprintf(&text, format+"\n", arguments...) }
	line("source    revision %d of %s, epoch %s", result.SourceRevision, result.SourceTime.UTC().Format(time.RFC3339), result.SourceEpoch)
	switch {
	case result.Finished:
		line("copied    before: it was only compared again")
	case result.Resumed > 0:
		line("copied    on from %s of an earlier run", count(result.Resumed, "part"))
	}
	line("alike     %s", countParts(result.Alike))
	if len(result.Left) > 0 {
		line("left      %s: the new store does not keep them", countParts(result.Left))
	}
	for _, problem := range result.Problems {
		line("differs: %s", printable(redact(problem)))
	}
	place := "the store in etcd under " + options.Settings.EtcdPrefix
	if options.ToFile {
		place = options.File
	}
	if len(result.Problems) > 0 {
		line("%s must not be served.", place)
	} else {
		line("Made %s at revision %d, with the new epoch %s.", place, result.Revision, result.Epoch)
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// countParts returns, for example, "3 keys, 9 audit events".
func countParts(all []server.MigratedParts) string {
	var texts []string
	for _, parts := range all {
		switch parts.Kind {
		case "policy", "settings":
			texts = append(texts, "the "+parts.Kind)
		default:
			texts = append(texts, count(parts.Count, parts.Kind))
		}
	}
	return strings.Join(texts, ", ")
}
