package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/server"
)

// maxShownLines is how many lines of each list the command shows to people.
const maxShownLines = 50

func (a *app) restoreCommand() *cobra.Command {
	var options server.RestoreOptions
	cmd := &cobra.Command{
		Use:   "restore (BACKUP --data DIR | --store etcd)",
		Short: "Make a store from a backup, without reviving what was revoked since",
		Long: `Make a store in DIR from BACKUP, a copy that "keysvc backup" has made. It gets a new
epoch, so that every near-cache starts empty. DIR must have no store. BACKUP and the
audit sink are only read; the store appears complete or not at all.

With the audit sink of the lost store, everything that was taken away since the
backup is taken away again: revoked keys, ended secrets, removed and suspended
members and workspaces, scopes, roles, address rules. What was added since is not
made again, and is listed.

Keys that may have lost something that is not known are held: their tokens are
refused with KEY_HELD until a person releases them with "keysvc key release". These
are all keys if there is no sink, if lines are missing in it, or if nobody says that
its last lines are there: the sink cannot show that its end was cut off. Give
--sink-is-complete only if the machine was not lost with the disk of the sink.

Start the server with the same --audit-sink to go on with that sink, or with another
one. With --dry-run nothing is made; with -o json the plan is for programs.

With --store etcd, and without BACKUP, the store is the one in etcd, which was put
back to a snapshot of etcd before. Stop all servers first. The store gets a new
epoch, and loses again what was taken away since the snapshot. The sink goes on.
Here --sink-is-complete says that no line of the sink is missing: revisions have
gaps, so a missing line shows only if the workspace has a later one.`,
		Example: `  keysvc restore backup.db --data /var/lib/keysvc --dry-run
  keysvc restore backup.db --data /var/lib/keysvc --audit-sink /log/audit.jsonl --sink-is-complete
  keysvc restore --store etcd --etcd-endpoints 127.0.0.1:2379 --audit-sink /log/audit.jsonl --dry-run`,
		Args: fileOrEtcd("BACKUP"),
	}
	inEtcd := a.etcdFlags(cmd, "BACKUP with --data")
	flags := cmd.Flags()
	flags.StringVar(&options.Data, "data", "", "the folder that the store is made in (required with BACKUP)")
	flags.StringVar(&options.Sink, "audit-sink", "", "the audit sink of the lost store; its older files are found beside it")
	flags.BoolVar(&options.SinkIsComplete, "sink-is-complete", false, "the last line of the sink is the last that was written")
	flags.StringVar(&options.Anchor, "anchor", "", "the anchor of the lost store: it can show that lines of the sink are missing")
	flags.BoolVar(&options.DryRun, "dry-run", false, "say what would be done, and make nothing")
	format := outputFlag(cmd, formatsOfEvents)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case a.hooks.Restore == nil || a.hooks.RestoreEtcd == nil && len(args) == 0:
			return errNoHook
		case len(args) == 0 && (options.Data != "" || options.Anchor != ""):
			return usageError(cmd, "--data and --anchor need BACKUP, and are not for a store in etcd")
		case len(args) > 0 && options.Data == "":
			return usageError(cmd, "--data is missing: the folder that the store is made in")
		case options.Sink == "" && options.SinkIsComplete:
			return usageError(cmd, "--sink-is-complete needs --audit-sink")
		}
		run := func(restore func() (*server.Restored, error)) error {
			remove := a.restoreProgress(&options)
			result, err := restore()
			remove()
			if err != nil {
				return err
			}
			if *format == formatJSON {
				return json.NewEncoder(a.Stdout).Encode(result)
			}
			return restoredText(a.Stdout, result, options)
		}
		if len(args) == 0 {
			settings, err := inEtcd()
			if err != nil {
				return err
			}
			return run(func() (*server.Restored, error) { return a.hooks.RestoreEtcd(cmd.Context(), settings, options) })
		}
		options.Backup = args[0]
		return a.onFile(cmd, args[0], func(ctx context.Context) error {
			return run(func() (*server.Restored, error) { return a.hooks.Restore(ctx, options) })
		})
	}
	return cmd
}

// restoreProgress shows on a terminal how far a restore is, and returns what removes the text.
func (a *app) restoreProgress(options *server.RestoreOptions) (remove func()) {
	if !isTerminal(a.Stderr) {
		return func() {}
	}
	shown := false
	options.Progress = func(what string, count int64) {
		shown = true
		_, _ = fmt.Fprintf(a.Stderr, "\r%d %s\x1b[K", count, what)
	}
	return func() {
		if shown {
			_, _ = fmt.Fprint(a.Stderr, "\r\x1b[K")
		}
	}
}

// restoredText writes a plan for people.
func restoredText(out io.Writer, r *server.Restored, options server.RestoreOptions) error {
	var text strings.Builder
	line := func(format string, arguments ...any) { fmt.Fprintf(&text, format+"\n", arguments...) }
	line("backup      revision %d of %s: %s", r.BackupRevision, r.BackupTime.UTC().Format(time.RFC3339), countRecords(r.Keys, r.Members, r.Workspaces))
	if len(r.SinkFiles) > 0 {
		line("audit sink  %s since, up to revision %d, in %s", count(r.Events, "event"), r.SinkRevision, strings.Join(r.SinkFiles, ", "))
	} else {
		line("audit sink  none")
	}
	policy := ""
	if r.PolicyNarrowed {
		policy = ", the policy"
	}
	line("narrowed    %s%s", countRecords(r.NarrowedKeys, r.NarrowedMembers, r.NarrowedWorkspaces), policy)
	line("held        %s", count(r.Held, "key"))
	if len(r.SinkFiles) > 0 {
		line("lost        %s created since", count(r.CreatedKeys, "key"))
	} else {
		line("lost        not known without an audit sink; the server needs another path for its own")
	}
	for _, doubt := range r.Doubts {
		line("doubt: %s", printable(redact(doubt)))
	}
	planLines(line, "narrowed", r.Narrowed, r.NarrowedMore)
	planLines(line, "not made again", r.Lost, r.LostMore)
	switch {
	case options.DryRun:
		line("Nothing was made.")
	case r.Held > 0:
		line("Made %s at revision %d, with the new epoch %s. Release held keys with \"keysvc key release\".", r.File, r.Revision, r.Epoch)
	default:
		line("Made %s at revision %d, with the new epoch %s.", r.File, r.Revision, r.Epoch)
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// countRecords returns "1 key, 2 members, 1 workspace".
func countRecords(keys, members, workspaces int64) string {
	return count(keys, "key") + ", " + count(members, "member") + ", " + count(workspaces, "workspace")
}

// planLines writes the records of a list.
func planLines(line func(string, ...any), word string, list []server.RestoreLine, more int64) {
	for index, each := range list {
		if index == maxShownLines {
			more += int64(len(list) - index)
			break
		}
		what := "policy"
		switch {
		case each.KeyID != "":
			what = "key " + each.KeyID + " of workspace " + each.WorkspaceID
		case each.MemberID != "":
			what = "member " + each.MemberID + " of workspace " + each.WorkspaceID
		case each.WorkspaceID != "":
			what = "workspace " + each.WorkspaceID
		}
		line("%s: %s: %s", word, printable(what), strings.Join(each.What, ", "))
	}
	if more > 0 {
		line("%s: %d more", word, more)
	}
}
