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
of a stopped server, or a store in etcd whose servers are all read-only. A file that
is served, and a change of a store in etcd while it is copied, are noticed and
refused. A server that goes on changing the store of which a backup was made, or the
store in etcd afterwards, is not noticed: what it changes is not in the new store,
revokes too.

The target must not exist. It can be served once everything was compared, and not
before. A migration that was interrupted, however that came, goes on when the same
command is given again. If it is not wanted any more, --discard removes what it has
written to its target, and copies nothing. A store that servers can open is refused,
and left as it is. An interrupted --discard is given again.

One of --from and --to is the word etcd, with --etcd-endpoints, or the settings of
the server that will serve it: --config, or variables such as
KEYSVC_ETCD_ENDPOINTS. The other one is a file.

The exit status is 1 if source and target differ; what differs is printed.`,
		Example: `  keysvc migrate --from backup.db --to etcd --etcd-endpoints 10.0.0.1:2379,10.0.0.2:2379
  keysvc migrate --from etcd --to /var/lib/keysvc/keysvc.db --config keysvc.yaml
  keysvc migrate --to etcd --discard --etcd-endpoints 10.0.0.1:2379,10.0.0.2:2379`,
		Args: positional(),
	}
	const etcd = config.EtcdStore
	from := cmd.Flags().String("from", "", "the `store` that is copied: a file, or etcd (required, but for --discard)")
	to := cmd.Flags().String("to", "", "the `store` that is made: etcd, or a file that does not exist (required)")
	discard := cmd.Flags().Bool("discard", false, "remove what an unfinished migration has written to its target")
	settings := a.someSettingsFlags(cmd, func(setting config.Setting) bool { return strings.HasPrefix(setting.Name, "etcd-") })
	format := outputFlag(cmd, formatsOfEvents)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		options := server.MigrateOptions{File: *from, ToFile: *from == etcd}
		switch {
		case a.hooks.Migrate == nil || a.hooks.DiscardMigration == nil:
			return errNoHook
		case *discard && (*from != "" || *to == ""):
			return usageError(cmd, "--discard needs --to, and takes no --from: it removes the target, and copies nothing")
		case *discard:
			options.File, options.ToFile = *to, *to != etcd
		case *from == "" || *to == "":
			return usageError(cmd, "--from and --to are needed")
		case (*from == etcd) == (*to == etcd):
			return usageError(cmd, "one of --from and --to is the word etcd, and the other one is a file; copy a file with keysvc backup or cp")
		case options.ToFile:
			options.File = *to
		}
		asked, usesFile := a.migrate, true
		if *discard {
			asked, usesFile = a.discardMigration, options.ToFile
		}
		if !*discard || !usesFile {
			source := settings()
			source.Flags["store"] = []string{etcd}
			loaded, err := source.Load()
			if err != nil {
				return a.listMistakes(err, "the settings are not valid")
			}
			options.Settings = loaded.Settings
		}
		run := func(ctx context.Context) error {
			err := asked(ctx, options, *format)
			if err != nil && ctx.Err() != nil {
				return errMigrationInterrupted
			}
			return err
		}
		if usesFile {
			return a.onFile(cmd, options.File, run)
		}
		return run(cmd.Context())
	}
	return cmd
}

var errMigrationInterrupted = errors.New("interrupted; the same command, given again, goes on")

// migrate migrates, with a progress bar at a terminal.
func (a *app) migrate(ctx context.Context, options server.MigrateOptions, format outputFormat) error {
	end := a.migrateProgress(&options, "parts")
	result, err := a.hooks.Migrate(ctx, options)
	end()
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

// migrateProgress shows how far each stage is at a terminal, and returns what ends the last bar.
func (a *app) migrateProgress(options *server.MigrateOptions, unit string) (end func()) {
	var bar *progress
	stage := ""
	end = func() {
		if bar != nil {
			bar.end()
		}
	}
	options.Progress = func(now string, done, total int64) {
		if now != stage {
			end()
			stage, bar = now, a.newCount(now, unit, total)
		}
		bar.total = total
		bar.show(done)
	}
	return end
}

// discardMigration removes an unfinished target.
func (a *app) discardMigration(ctx context.Context, options server.MigrateOptions, format outputFormat) error {
	end := a.migrateProgress(&options, "names")
	err := a.hooks.DiscardMigration(ctx, options)
	end()
	if err != nil {
		return err
	}
	place := migrationTarget(options)
	if format == formatJSON {
		return json.NewEncoder(a.Stdout).Encode(struct {
			Discarded string `json:"discarded"`
		}{place})
	}
	_, err = fmt.Fprintf(a.Stdout, "Removed the unfinished migration into %s.\n", printable(place))
	return err
}

// migrationTarget names the target for people.
func migrationTarget(options server.MigrateOptions) string {
	if options.ToFile {
		return options.File
	}
	return "the store in etcd under " + options.Settings.EtcdPrefix
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
	place := migrationTarget(options)
	switch {
	case len(result.Problems) > 0 && result.Finished:
		line("%s was finished before, and is another one now. A server changes its store from its first start on.", place)
	case len(result.Problems) > 0:
		line("%s must not be served. Remove it with --discard.", place)
	case result.Finished:
		line("Nothing was changed in %s, at revision %d, with the epoch %s.", place, result.Revision, result.Epoch)
	default:
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
