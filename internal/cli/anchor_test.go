package cli_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/cli"
	"github.com/scribe-mail/keysvc/internal/server"
)

func TestAnchorAcceptNeedsAnAnswerOrYes(t *testing.T) {
	accepted := 0
	c := command{hooks: cli.Hooks{AcceptAnchor: func(_ context.Context, file string, outside server.Outside, out io.Writer, confirm func() error) error {
		if err := confirm(); err != nil {
			return err
		}
		accepted++
		_, err := fmt.Fprintln(out, "accepted", file, outside.Anchor+outside.Sink)
		return err
	}}}
	c.run(t, "anchor", "accept", "a.db", "--yes", "--anchor", "b", "--audit-sink", "c").want(t, 0, "accepted a.db bc\n", "")
	if r := c.run(t, "anchor", "accept", "a.db"); r.status != 7 || !strings.Contains(r.stderr, "no terminal to ask at") || accepted != 1 {
		t.Errorf("%+v, accepted %d times", r, accepted)
	}
	for _, dry := range [][]string{{"a.db"}, {"a.db", "--yes"}} {
		c.run(t, append([]string{"anchor", "accept", "--dry-run"}, dry...)...).want(t, 0, "Nothing was changed.\n", "")
	}
	if accepted != 1 {
		t.Error("a dry run accepts the store")
	}
	command{}.run(t, "anchor", "accept", "a.db", "--yes").want(t, 1, "", "error: this build of keysvc does not have the command\n")
}

func TestCommandsForAFileOrEtcdSayWhatTheyNeed(t *testing.T) {
	hooks := cli.DefaultHooks()
	for needs, arguments := range map[string][]string{
		"needs BACKUP with --data, or --store etcd with --etcd-endpoints":  {"restore"},
		"--data is missing: the folder that the store is made in":          {"restore", "backup.db"},
		"needs the store's file, or --store etcd with --etcd-endpoints":    {"anchor", "accept"},
		"takes FILE or --store, not both":                                  {"check", "a.db", "--store", "etcd"},
		"--data and --anchor need BACKUP, and are not for a store in etcd": {"restore", "--store", "etcd", "--data", "d"},
	} {
		if r := (command{hooks: hooks}).run(t, arguments...); r.status != 2 || !strings.Contains(r.stderr, needs) {
			t.Errorf("%q: status %d, %q; want %q", arguments, r.status, r.stderr, needs)
		}
	}
}
