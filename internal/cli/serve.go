package cli

import (
	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/logging"
)

func (a *app) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Run the server until SIGTERM or Ctrl-C. It then accepts no more requests, lets those
in flight end, and closes its file. A second SIGTERM or Ctrl-C exits at once. If
the disk hangs, the stop gives up 5 seconds after --drain-timeout, with status 5.

The store is one file under --data, for one process at a time. It must exist:
give --init once to make it. Plaintext is served on loopback and on unix sockets
only.

Each flag is also an environment variable, KEYSVC_MAX_STREAMS for --max-streams, and
a field of the YAML file that --config or KEYSVC_CONFIG names. A flag wins over a
variable, and a variable over the file; "keysvc config show" prints the result.`,
		Example: `  keysvc serve --dev
  keysvc serve --init --data /var/lib/keysvc --policy policy.yaml
  keysvc serve --config /etc/keysvc/keysvc.yaml`,
		Args: positional(),
	}
	source := a.settingsFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		loaded, err := source().Load()
		if err != nil {
			return err
		}
		if a.hooks.Serve == nil {
			return errNoHook
		}
		reload := func() (config.Settings, error) {
			again, err := source().Load()
			return again.Settings, err
		}
		err = a.hooks.Serve(cmd.Context(), loaded.Settings, reload, a.Stdout, a.Stderr)
		// Writing an error must not wait for a reader either.
		stderr := logging.NewWriter(a.Stderr, logging.Config{})
		a.Stderr, a.closeStderr = stderr, stderr.Close
		return err
	}
	return cmd
}
