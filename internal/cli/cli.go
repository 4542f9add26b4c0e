// Package cli is the keysvc command: it reads flags, calls a running server over
// gRPC (or, for serve and the commands on a file, the code of Hooks), and shows the
// answer.
//
// Each noun of the command line has its file. Answers go to standard output, everything
// else goes to standard error. The package does not touch the process itself, so tests
// run Main as the binary does.
package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/scribe-mail/keysvc/internal/version"
)

// Process is the part of a process that a command uses.
type Process struct {
	// Args is the command line without the name of the program.
	Args []string
	// Program is the name of the program as it was typed; "" means keysvc.
	Program string
	// Getenv reads a variable of the environment; nil means there are none.
	Getenv func(name string) string
	// Stdin, Stdout and Stderr are the standard streams. Only an *os.File can be a
	// terminal.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Now is the clock; nil means the system's.
	Now func() time.Time
}

// Main runs one command and returns its exit status. When the context ends, the
// command stops as soon as it can.
func Main(ctx context.Context, process Process, hooks Hooks) int {
	a := newApp(process, hooks)
	defer func() { a.closeStderr() }()
	err := a.run(ctx)
	var status statusError
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &status):
		return int(status)
	}
	a.printError(ctx, err)
	if a.failsAs1 {
		return ExitFailure
	}
	return statusOf(ctx, err)
}

// app is what all commands share.
type app struct {
	Process
	hooks Hooks
	// failsAs1 is set when every failure of the command has the exit status ExitFailure, because its
	// other statuses are answers.
	failsAs1 bool
	// closeStderr flushes Stderr and reports whether everything was written.
	closeStderr func() bool
}

func newApp(process Process, hooks Hooks) *app {
	if process.Getenv == nil {
		process.Getenv = func(string) string { return "" }
	}
	if process.Now == nil {
		process.Now = time.Now
	}
	return &app{Process: process, hooks: hooks, closeStderr: func() bool { return true }}
}

// looksLikeToken finds the beginning of a token with at least one character of its secret.
// It is looser than token.Pattern, because a part of a secret must not be shown either.
var looksLikeToken = regexp.MustCompile(`_ks[kc]1_[0-9A-Za-z]{16}_[0-9A-Za-z]`)

var errTokenArgument = &commandLineError{"an argument looks like a token; arguments are seen by every user of this machine and kept in the shell's history, so none was read. " +
	"Where a key is named, give its id, the 16 characters after ksk1_. keysvc validate reads a token from standard input or KEYSVC_TOKEN"}

func (a *app) run(ctx context.Context) error {
	root := a.rootCommand()
	if slices.ContainsFunc(a.Args, looksLikeToken.MatchString) {
		command, _, err := root.Find(a.Args)
		a.failsAs1 = err == nil && failsAs1(command)
		return errTokenArgument
	}
	// For nil, cobra would read os.Args.
	root.SetArgs(append([]string{}, a.Args...))
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	command, err := root.ExecuteContextC(ctx)
	a.failsAs1 = failsAs1(command)
	return err
}

// failsAs1 reports whether every failure of a command has the exit status ExitFailure.
func failsAs1(command *cobra.Command) bool {
	path := command.CommandPath()
	return path == "keysvc validate" || path == "keysvc health"
}

// Root returns the command with all its subcommands, to make pages of the manual and completions of.
// It must not be executed.
func Root() *cobra.Command { return newApp(Process{}, Hooks{}).rootCommand() }

func (a *app) rootCommand() *cobra.Command {
	root := group(&cobra.Command{
		Use:   "keysvc",
		Short: "Issue API keys, and decide who a token acts as and what it may do",
		Long: `keysvc issues API keys and decides, for every request of a product, who the
key's token acts as and whether it may do what it asks.

"keysvc serve" is the server. The other commands call a running one, at --addr,
KEYSVC_ADDR or the address of a context, except for "context", "callers",
"certs", "config", "check", "restore", "migrate", "anchor", "repair-clock",
"token" and "policy check", which work on files and texts.

Answers go to standard output, as tables or, with -o, as JSON, YAML or bare ids;
everything else goes to standard error.

` + exitHelp,
		Example: `  keysvc serve --dev
  keysvc key create --workspace acme --member ann --name deploy --scope signatures:read
  keysvc validate --scope signatures:read <token.txt`,
		Version:       version.Text(),
		SilenceErrors: true,
		SilenceUsage:  true,
	},
		a.serveCommand(),
		a.keyCommand(),
		a.validateCommand(),
		a.tokenCommand(),
		a.memberCommand(),
		a.workspaceCommand(),
		a.policyCommand(),
		a.stalenessCommand(),
		a.upgradeCommand(),
		a.auditCommand(),
		a.watchCommand(),
		a.whoAmICommand(),
		a.statusCommand(),
		a.healthCommand(),
		a.contextCommand(),
		a.callersCommand(),
		a.certsCommand(),
		a.configCommand(),
		a.backupCommand(),
		a.profileCommand(),
		a.restoreCommand(),
		a.migrateCommand(),
		a.checkCommand(),
		a.anchorCommand(),
		a.repairClockCommand(),
		a.versionCommand(),
	)
	root.SetVersionTemplate("keysvc {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, "%s", err) })
	a.checkFlags(root)
	return root
}

// checkFlags makes every command check its flags before it runs. Cobra checks them later, but
// its errors are not usage errors.
func (a *app) checkFlags(cmd *cobra.Command) {
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		for _, check := range []func() error{cmd.ValidateRequiredFlags, cmd.ValidateFlagGroups} {
			if err := check(); err != nil {
				return usageError(cmd, "%s", err)
			}
		}
		if err := a.fillWorkspace(cmd); err != nil {
			return a.listMistakes(err, "the contexts are not valid")
		}
		if needed := cmd.Flags().Lookup(workspaceFlagName); needed != nil && needed.Annotations[workspaceNeeded] != nil && needed.Value.String() == "" {
			return usageError(cmd, "--workspace or %s is needed", workspaceVariable)
		}
		return nil
	}
	for _, child := range cmd.Commands() {
		a.checkFlags(child)
	}
}

// group makes a command that only holds subcommands. For an unknown subcommand it fails; a
// group of cobra would print its help and succeed.
func group(cmd *cobra.Command, children ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.SuggestionsMinimumDistance = 2
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
			return usageError(cmd, "there is no command %q; is it %s?", args[0], strings.Join(similar, " or "))
		}
		return usageError(cmd, "there is no command %q", args[0])
	}
	cmd.AddCommand(children...)
	return cmd
}

// positional accepts exactly the named arguments, none of them empty.
func positional(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(names) == 0 && len(args) > 0:
			return usageError(cmd, "takes flags only, no argument")
		case len(args) != len(names):
			return usageError(cmd, "needs exactly %s besides flags, got %s", strings.Join(names, " and "), count(int64(len(args)), "argument"))
		}
		for i, argument := range args {
			if argument == "" {
				return usageError(cmd, "%s is empty", names[i])
			}
		}
		return nil
	}
}

// isTerminal reports whether stream is a terminal.
func isTerminal(stream any) bool {
	file, isFile := stream.(*os.File)
	return isFile && term.IsTerminal(descriptor(file))
}

// terminalWidth returns the width in columns of the terminal that a stream goes to, or 0 if the
// stream is no terminal.
func terminalWidth(stream any) int {
	if !isTerminal(stream) {
		return 0
	}
	file, _ := stream.(*os.File) // isTerminal has checked the type
	width, _, err := term.GetSize(descriptor(file))
	if err != nil {
		return 0
	}
	return width
}

func descriptor(file *os.File) int {
	return int(file.Fd())
}
