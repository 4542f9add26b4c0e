package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/server"
)

// defaultFile is the store's file that serve keeps unless it is told otherwise.
const defaultFile = "keysvc-data/keysvc.db"

func (a *app) auditVerifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify [FILE]",
		Short: "Check the audit events of a store, and compare them with its audit sink",
		Long: `Check the audit events in a store's file that no server has open: that those of each
workspace form a chain without gaps, and that each record is the one that its last
event put. Then compare the events with the lines of the audit sink. Nothing is
changed. FILE is ` + defaultFile + ` if it is not given.

It finds events and lines that were altered, removed or moved, an end that was cut,
a missing workspace, a store that is older than its sink or has another history, and
a missing file of the sink. It says which event it is and since when: after the last
event that is right on both sides.

--sink may be given several times, and may be a pattern in quotes; the order of the
files does not matter. Without it, the sink is read that FILE had when it was served
last, with the files that it was renamed to beside it.

A file that is served is locked: verify a copy, with --copy if the server went on
meanwhile. The exit status is 0 if everything is right and 1 if something was found.
With -o json the findings are for programs.

With --store etcd, the store is the one in etcd. Servers may go on meanwhile. Each
server may have a sink of its own: give all that there are. Events that were deleted
because they are old must be in the sink, and its lines close the chain.`,
		Example: `  keysvc audit verify
  keysvc audit verify backup.db --copy --sink '/var/log/keysvc/audit.jsonl*'
  keysvc audit verify backup.db --sink off -o json
  keysvc audit verify --store etcd --etcd-endpoints 127.0.0.1:2379 --sink 'audit.jsonl*'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError(cmd, "needs at most one FILE besides flags, got %s; a pattern of --sink must be in quotes", count(int64(len(args)), "argument"))
			}
			return fileOrEtcd("FILE")(cmd, args)
		},
	}
	var options server.VerifyOptions
	inEtcd := a.etcdFlags(cmd, storeFile)
	flags := cmd.Flags()
	flags.StringArrayVar(&options.Sink, "sink", nil, "a file of the audit sink, or a pattern; off for none (default: the one FILE had)")
	flags.BoolVar(&options.Copy, "copy", false, "FILE is a copy, and the sink may go on after it")
	format := outputFlag(cmd, formatsOfEvents)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.hooks.VerifyAudit == nil {
			return errNoHook
		}
		verify := func(store string, run func() (server.Verification, error)) error {
			remove := a.progress(&options)
			result, err := run()
			remove()
			if err != nil {
				return err
			}
			shown := verificationOf(store, result)
			if *format == formatJSON {
				err = json.NewEncoder(a.Stdout).Encode(shown)
			} else {
				err = shown.text(a.Stdout)
			}
			if err == nil && !shown.Right {
				err = fmt.Errorf("%s: %s", store, count(int64(len(shown.Findings))+int64(shown.More), "finding"))
			}
			return err
		}
		if cmd.Flags().Changed("store") {
			settings, err := inEtcd()
			switch {
			case err != nil:
				return err
			case options.Copy:
				return usageError(cmd, "--copy is for a store in a file: over etcd, servers may go on")
			case a.hooks.VerifyAuditEtcd == nil:
				return errNoHook
			}
			return verify("etcd "+settings.EtcdPrefix, func() (server.Verification, error) { return a.hooks.VerifyAuditEtcd(cmd.Context(), settings, options) })
		}
		file := defaultFile
		if len(args) == 1 {
			file = args[0]
		}
		return a.onFile(cmd, file, func(ctx context.Context) error {
			return verify(file, func() (server.Verification, error) { return a.hooks.VerifyAudit(ctx, file, options) })
		})
	}
	return cmd
}

// progress shows on a terminal how far the sink was read, and returns what removes the text.
func (a *app) progress(options *server.VerifyOptions) (remove func()) {
	if !isTerminal(a.Stderr) {
		return func() {}
	}
	shown := false
	options.Progress = func(lines int64) {
		shown = true
		_, _ = fmt.Fprintf(a.Stderr, "\r%s of the audit sink read", count(lines, "line"))
	}
	return func() {
		if shown {
			_, _ = fmt.Fprint(a.Stderr, "\r\x1b[K")
		}
	}
}

// verification is the answer of audit verify in JSON.
type verification struct {
	// Right reports whether nothing was found.
	Right bool      `json:"right"`
	Store storeText `json:"store"`
	Sink  *sinkText `json:"sink"`

	Findings []foundText `json:"findings"`
	// More is how many findings more there are.
	More  int      `json:"more"`
	Notes []string `json:"notes"`
}

type storeText struct {
	File           string `json:"file"`
	Epoch          string `json:"epoch"`
	Revision       int64  `json:"revision"`
	AuditEvents    int64  `json:"audit_events"`
	PrunedRevision int64  `json:"pruned_revision"`
}

type sinkText struct {
	Files         []string `json:"files"`
	Epoch         string   `json:"epoch"`
	Lines         int64    `json:"lines"`
	AfterRevision int64    `json:"after_revision"`
	LastRevision  int64    `json:"last_revision"`
}

type foundText struct {
	Kind         string              `json:"kind"`
	Text         string              `json:"text"`
	Revision     int64               `json:"revision,omitempty"`
	LastRevision int64               `json:"last_revision,omitempty"`
	Count        int64               `json:"count"`
	Events       []server.EventPlace `json:"events,omitempty"`
	File         string              `json:"file,omitempty"`
	Line         int64               `json:"line,omitempty"`
	// Since is the last event before that is right.
	Since *server.EventPlace `json:"right_until,omitempty"`
}

func verificationOf(file string, result server.Verification) verification {
	shown := verification{
		Right:    len(result.Findings) == 0 && result.More == 0,
		Store:    storeText{file, result.Epoch, result.Revision, result.AuditEvents, result.Pruned},
		Findings: []foundText{}, More: result.More, Notes: append([]string{}, result.Notes...),
	}
	if len(result.Files) > 0 {
		shown.Sink = &sinkText{result.Files, result.Comparison.Epoch, result.Lines, result.Begin, result.End}
	}
	for _, each := range result.Findings {
		shown.Findings = append(shown.Findings, foundText{
			string(each.Kind), each.Text, each.Revision, each.LastRevision, each.Count, each.Events, each.File, each.Line, each.Since,
		})
	}
	return shown
}

// resultWords says what is right.
func (v verification) resultWords() string {
	switch {
	case v.Sink == nil:
		return "the store is right; there is no audit sink to compare it with"
	case v.Sink.AfterRevision > 0:
		return fmt.Sprintf("what was compared is right: the events after revision %d", v.Sink.AfterRevision)
	}
	return "everything is right"
}

// text writes the answer for a person.
func (v verification) text(out io.Writer) error {
	var text strings.Builder
	line := func(name, format string, arguments ...any) {
		fmt.Fprintf(&text, "%-12s%s\n", name, printable(redact(fmt.Sprintf(format, arguments...))))
	}
	line("store", "%s, epoch %s, revision %d, %s", v.Store.File, v.Store.Epoch, v.Store.Revision, count(v.Store.AuditEvents, "audit event"))
	if v.Store.PrunedRevision > 0 {
		line("", "old events up to revision %d were deleted", v.Store.PrunedRevision)
	}
	if v.Sink == nil {
		line("audit sink", "none")
	} else {
		for _, file := range v.Sink.Files {
			line("audit sink", "%s", file)
		}
		if v.Sink.LastRevision > v.Sink.AfterRevision {
			line("", "%s, the events of the revisions %d to %d", count(v.Sink.Lines, "line"), v.Sink.AfterRevision+1, v.Sink.LastRevision)
		} else {
			line("", "%s, and no event", count(v.Sink.Lines, "line"))
		}
	}
	for _, note := range v.Notes {
		line("note", "%s", note)
	}
	for _, found := range v.Findings {
		line("found", "%s", found.Text)
		if found.File != "" {
			line("", "at %s:%s", found.File, strconv.FormatInt(found.Line, 10))
		}
		if found.Since != nil {
			line("", "since %s at the earliest: right until %s", found.Since.Time.UTC().Format(time.RFC3339), found.Since)
		}
	}
	switch {
	case v.More > 0:
		line("", "and %s more", count(int64(v.More), "finding"))
	case v.Right:
		line("result", "%s", v.resultWords())
	}
	_, err := io.WriteString(out, text.String())
	return err
}
