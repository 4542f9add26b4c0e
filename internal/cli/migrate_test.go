package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/cli"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// migrating returns a command whose migration answers with a result and an error.
func migrating(result *server.Migrated, err error, got *server.MigrateOptions) command {
	return command{hooks: cli.Hooks{Migrate: func(_ context.Context, options server.MigrateOptions) (*server.Migrated, error) {
		*got = options
		options.Progress("copying", 1, 2)
		return result, err
	}, DiscardMigration: func(context.Context, server.MigrateOptions) error { return errors.New("it discards") }}}
}

func TestMigrateSaysWhatIsAlike(t *testing.T) {
	t.Parallel()
	result := &server.Migrated{
		SourceEpoch: "old", SourceRevision: 7, SourceTime: time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC),
		Epoch: "new", Revision: 3, Resumed: 5,
		Alike: []server.MigratedParts{{Kind: "policy", Count: 1}, {Kind: "key", Count: 2}, {Kind: "audit event", Count: 1}},
		Left:  []server.MigratedParts{{Kind: "refusal", Count: 4}},
	}
	var got server.MigrateOptions
	c := migrating(result, nil, &got)
	c.run(t, "migrate", "--from", "backup.db", "--to", "etcd", "--etcd-endpoints", "127.0.0.1:2379,127.0.0.1:2479", "--etcd-prefix", "/k/").want(t, cli.ExitOK, `source    revision 7 of 2027-03-01T12:00:00Z, epoch old
copied    on from 5 parts of an earlier run
alike     the policy, 2 keys, 1 audit event
left      4 refusals: the new store does not keep them
Made the store in etcd under /k/ at revision 3, with the new epoch new.
`, "")
	if got.File != "backup.db" || got.ToFile || len(got.Settings.EtcdEndpoints) != 2 || got.Settings.EtcdPrefix != "/k/" {
		t.Errorf("it asks for %+v", got)
	}
	answer := c.run(t, "migrate", "--from", "etcd", "--to", "new.db", "--etcd-endpoints", "127.0.0.1:2379", "-o", "json")
	if !strings.Contains(answer.stdout, `"alike":[{"kind":"policy","count":1}`) || got.File != "new.db" || !got.ToFile {
		t.Errorf("%s; it asks for %+v", answer.stdout, got)
	}
}

func TestMigrateFailsIfTheStoresDiffer(t *testing.T) {
	t.Parallel()
	var got server.MigrateOptions
	c := migrating(&server.Migrated{Problems: []string{"key k: it is another one than the source's"}}, server.ErrDiffers, &got)
	answer := c.run(t, "migrate", "--from", "etcd", "--to", "new.db", "--etcd-endpoints", "127.0.0.1:2379")
	if answer.status != cli.ExitFailure || !strings.Contains(answer.stdout, "differs: key k: ") || !strings.Contains(answer.stdout, "new.db must not be served") {
		t.Errorf("status %d: %s%s", answer.status, answer.stdout, answer.stderr)
	}
}

func TestMigrateThatIsRepeatedSaysWhatItFound(t *testing.T) {
	t.Parallel()
	for want, result := range map[string]*server.Migrated{
		"Nothing was changed in new.db, at revision 3": {Finished: true, Revision: 3},
		"new.db was finished before, and is another":   {Finished: true, Problems: []string{"settings: the source has none"}},
	} {
		err, status := error(nil), cli.ExitOK
		if len(result.Problems) > 0 {
			err, status = server.ErrDiffers, cli.ExitFailure
		}
		var got server.MigrateOptions
		answer := migrating(result, err, &got).run(t, "migrate", "--from", "etcd", "--to", "new.db", "--etcd-endpoints", "127.0.0.1:2379")
		if answer.status != status || !strings.Contains(answer.stdout, want) || strings.Contains(answer.stdout, "--discard") {
			t.Errorf("status %d: %s%s", answer.status, answer.stdout, answer.stderr)
		}
	}
}

func TestMigrateNeedsAFileAndEtcd(t *testing.T) {
	t.Parallel()
	var got server.MigrateOptions
	c := migrating(nil, nil, &got)
	for _, arguments := range [][]string{
		{}, {"--from", "a.db"}, {"--from", "a.db", "--to", "b.db"}, {"--from", "etcd", "--to", "etcd"},
	} {
		if answer := c.run(t, append([]string{"migrate"}, arguments...)...); answer.status != cli.ExitUsage {
			t.Errorf("%q: status %d: %s", arguments, answer.status, answer.stderr)
		}
	}
	if answer := c.run(t, "migrate", "--from", "a.db", "--to", "etcd"); answer.status == cli.ExitOK || !strings.Contains(answer.stderr, "etcd-endpoints") {
		t.Errorf("without endpoints: status %d: %s", answer.status, answer.stderr)
	}
	if got.File != "" {
		t.Errorf("it migrates: %+v", got)
	}
}

func TestMigrateDiscardsAnUnfinishedTarget(t *testing.T) {
	t.Parallel()
	var got server.MigrateOptions
	var refuse error
	c := command{hooks: cli.Hooks{
		Migrate: func(context.Context, server.MigrateOptions) (*server.Migrated, error) {
			t.Error("it migrates")
			return nil, nil
		},
		DiscardMigration: func(_ context.Context, options server.MigrateOptions) error {
			got = options
			options.Progress("removing", 1, 2)
			return refuse
		},
	}}
	c.run(t, "migrate", "--to", "etcd", "--discard", "--etcd-endpoints", "127.0.0.1:2379", "--etcd-prefix", "/k/").
		want(t, cli.ExitOK, "Removed the unfinished migration into the store in etcd under /k/.\n", "")
	if got.ToFile || got.Settings.EtcdPrefix != "/k/" {
		t.Errorf("it asks for %+v", got)
	}
	c.run(t, "migrate", "--to", "new.db", "--discard").want(t, cli.ExitOK, "Removed the unfinished migration into new.db.\n", "")
	if !got.ToFile || got.File != "new.db" {
		t.Errorf("it asks for %+v", got)
	}
	c.run(t, "migrate", "--to", "new.db", "--discard", "-o", "json").want(t, cli.ExitOK, "{\"discarded\":\"new.db\"}\n", "")
	refuse = storage.ErrPresent
	if answer := c.run(t, "migrate", "--to", "new.db", "--discard"); answer.status != cli.ExitFailure || answer.stdout != "" {
		t.Errorf("a finished store: status %d: %s", answer.status, answer.stdout)
	}
	for _, arguments := range [][]string{{"--discard"}, {"--discard", "--from", "a.db", "--to", "etcd", "--etcd-endpoints", "127.0.0.1:2379"}} {
		if answer := c.run(t, append([]string{"migrate"}, arguments...)...); answer.status != cli.ExitUsage {
			t.Errorf("%q: status %d: %s", arguments, answer.status, answer.stderr)
		}
	}
}

// TestMigrateThatIsInterruptedSaysHowToGoOn: SIGINT and SIGTERM end the context of the command.
func TestMigrateThatIsInterruptedSaysHowToGoOn(t *testing.T) {
	t.Parallel()
	for _, arguments := range [][]string{
		{"migrate", "--from", "a.db", "--to", "etcd", "--etcd-endpoints", "127.0.0.1:1"},
		{"migrate", "--to", "etcd", "--discard", "--etcd-endpoints", "127.0.0.1:1"},
	} {
		ctx, interrupt := context.WithCancel(t.Context())
		interrupted := func() error {
			interrupt()
			return fmt.Errorf("copying: %w", ctx.Err())
		}
		c := command{hooks: cli.Hooks{
			Migrate:          func(context.Context, server.MigrateOptions) (*server.Migrated, error) { return nil, interrupted() },
			DiscardMigration: func(context.Context, server.MigrateOptions) error { return interrupted() },
		}}
		var stderr bytes.Buffer
		status := c.runTo(ctx, io.Discard, &stderr, arguments...)
		if want := "error: interrupted; the same command, given again, goes on\n"; status != 1 || stderr.String() != want {
			t.Errorf("%q: status %d, %q", arguments, status, stderr.String())
		}
	}
}
