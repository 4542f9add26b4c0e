package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/logging"
)

func (a *app) serveCommand() *cobra.Command {
	settings := config.Defaults()
	if isTerminal(a.Stderr) {
		settings.LogFormat = config.LogText
	}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Run the server, until SIGTERM or Ctrl-C: then it takes no more requests, lets those
in flight end, and closes its file. A second SIGTERM or Ctrl-C exits at once. If
the disk hangs, the stop gives up 5 seconds after --drain-timeout, with status 5.

The store is one file under --data, for one process at a time. It must be there:
give --init once to make it. Plaintext is served on loopback and on unix sockets
only.`,
		Example: `  keysvc serve --dev
  keysvc serve --init --data /var/lib/keysvc --policy policy.yaml
  keysvc serve --listen unix:///run/keysvc/keysvc.sock --data /var/lib/keysvc`,
		Args: positional(),
	}
	flags := cmd.Flags()
	flags.StringVar(&settings.Listen, "listen", settings.Listen, "where to listen: a loopback host:port (port 0 means any) or unix:///path")
	flags.StringVar(&settings.Data, "data", settings.Data, "the folder of the store's file")
	flags.BoolVar(&settings.Init, "init", settings.Init, "make a new, empty store, and its folder; fails if there is a store")
	flags.StringVar(&settings.Anchor, "anchor", settings.Anchor, "the `file` that remembers how far the store had come (default: beside the store's file)")
	flags.StringVar(&settings.Policy, "policy", settings.Policy, "a policy file that fills an empty store (default: the built-in policy)")
	flags.BoolVar(&settings.Dev, "dev", settings.Dev, "make a demonstration workspace with a key, once, and the store if there is none, and print commands to try")
	flags.TextVar(&settings.LogLevel, "log-level", settings.LogLevel, "the least `level` to log: debug, info, warn or error")
	choice(cmd, &settings.LogFormat, "log-format", "", "how to write logs, by default text at a terminal and json elsewhere", config.LogText, config.LogJSON)
	flags.DurationVar(&settings.DrainTimeout, "drain-timeout", settings.DrainTimeout, "how long requests in flight may take to end at a stop")
	flags.IntVar(&settings.MaxInFlight, "max-in-flight", settings.MaxInFlight, "how many requests of a kind to work on at a time")
	flags.IntVar(&settings.MaxStreams, "max-streams", settings.MaxStreams, "how many requests one connection may have open at a time")
	flags.IntVar(&settings.MaxMessageBytes, "max-message-bytes", settings.MaxMessageBytes, "how large a request may be")
	flags.IntVar(&settings.MaxHeaderBytes, "max-header-bytes", settings.MaxHeaderBytes, "how large the headers of a request may be")
	flags.DurationVar(&settings.UsageInterval, "usage-interval", settings.UsageInterval, "how often last-used times are written; a crash loses at most so much of them")
	flags.DurationVar(&settings.SweepInterval, "sweep-interval", settings.SweepInterval, "how often keys and members past their retention are purged")
	flags.DurationVar(&settings.Staleness, "staleness", settings.Staleness, "for how long at most a near-cache can miss a change: 100ms to 1m")
	flags.IntVar(&settings.MaxSessions, "max-sessions", settings.MaxSessions, "how many near-caches may be connected at a time")
	flags.DurationVar(&settings.SessionAge, "session-age", settings.SessionAge, "how long a near-cache stays before it has to connect anew")
	flags.BoolVar(&settings.AllowClockBehind, "allow-clock-behind", settings.AllowClockBehind, "start although the wall clock is behind the last commit")
	flags.BoolVar(&settings.AllowClockAhead, "allow-clock-ahead", settings.AllowClockAhead, "purge although the wall clock is more than 30 days ahead of the last commit")
	flags.BoolVar(&settings.Channelz, "channelz", settings.Channelz, "serve grpc's channelz, for debugging")

	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := settings.Validate(); err != nil {
			if wrong, isField := errors.AsType[*config.FieldError](err); isField {
				return fmt.Errorf("--%s: %s", wrong.Field, wrong.Problem)
			}
			return err
		}
		if a.hooks.Serve == nil {
			return errNoHook
		}
		err := a.hooks.Serve(cmd.Context(), settings, a.Stdout, a.Stderr)
		// What is said of it must not wait for a reader either.
		stderr := logging.NewWriter(a.Stderr, logging.Config{})
		a.Stderr, a.closeStderr = stderr, stderr.Close
		return err
	}
	return cmd
}
