// Package cli is the keysvc command: it reads flags, calls a running server over
// gRPC (or, for serve and check, the code of Hooks), and shows the answer.
//
// Each noun has its file. What is an answer goes to standard output, everything
// else to standard error. Nothing here touches the process itself: tests run
// Main as the binary does.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/scribe-mail/keysvc/internal/server"
)

// The exit statuses. Only validate and serve have others than 0 and 1.
const (
	// ExitOK says that all went well; for validate, that the token is allowed.
	ExitOK = 0
	// ExitFailure says that something failed, and an error line says what.
	ExitFailure = 1
	// ExitUnauthenticated is validate's answer on a token that is not valid.
	ExitUnauthenticated = 3
	// ExitDenied is validate's answer on a valid token that may not do what was
	// asked.
	ExitDenied = 4
	// ExitStopTimeout is serve's if the stop hung and was given up.
	ExitStopTimeout = 5
)

// Process is what a command has of the process that it runs in.
type Process struct {
	// Args is the command line without the name of the program.
	Args []string
	// Getenv reads a variable of the environment; nil means there are none.
	Getenv func(name string) string
	// Stdin, Stdout and Stderr are the standard streams. Those that are an
	// *os.File may turn out to be a terminal.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Now is the clock; nil means the system's.
	Now func() time.Time
}

// Main runs one command and returns its exit status. When the context ends, the
// command stops as soon as it can.
func Main(ctx context.Context, process Process, hooks Hooks) int {
	if process.Getenv == nil {
		process.Getenv = func(string) string { return "" }
	}
	if process.Now == nil {
		process.Now = time.Now
	}
	a := &app{Process: process, hooks: hooks, closeStderr: func() bool { return true }}
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
	if errors.Is(err, server.ErrStopTimeout) {
		return ExitStopTimeout
	}
	return ExitFailure
}

// statusError is the error of a command that has said all it had to say.
type statusError int

func (s statusError) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// app is what all commands share.
type app struct {
	Process
	hooks Hooks
	// closeStderr ends the use of Stderr, and reports whether all of it was written.
	closeStderr func() bool
}

// looksLikeToken finds what has the beginning of a token and some of its secret.
// It is looser than token.Pattern: most of a secret is a secret too.
var looksLikeToken = regexp.MustCompile(`_ksk1_[0-9A-Za-z]{16}_[0-9A-Za-z]`)

var errTokenArgument = errors.New("an argument looks like a token; arguments are seen by every user of this machine and kept in the shell's history, so none was read. " +
	"Where a key is named, give its id, the 16 characters after ksk1_. keysvc validate reads a token from standard input or KEYSVC_TOKEN")

func (a *app) run(ctx context.Context) error {
	if slices.ContainsFunc(a.Args, looksLikeToken.MatchString) {
		return errTokenArgument
	}
	root := a.rootCommand()
	// Not nil, which cobra takes for os.Args.
	root.SetArgs(append([]string{}, a.Args...))
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	return root.ExecuteContext(ctx)
}

func (a *app) rootCommand() *cobra.Command {
	root := group(&cobra.Command{
		Use:   "keysvc",
		Short: "Issue API keys, and decide who a token acts as and what it may do",
		Long: `keysvc issues API keys and decides, for every request of a product, who the
key's token acts as and whether it may do what it asks.

"keysvc serve" is the server. The other commands call a running one, at --addr or
KEYSVC_ADDR, except for "config", "check", "anchor", "repair-clock" and "policy
check", which work on files.

Answers go to standard output, as tables or, with -o json, as JSON; everything
else goes to standard error. The exit status is 0, or 1 after an error; that of
"keysvc validate" also tells the decisions apart.`,
		Example: `  keysvc serve --dev
  keysvc key create --workspace acme --member ann --name deploy --scope signatures:read
  keysvc validate --scope signatures:read <token.txt`,
		SilenceErrors: true,
		SilenceUsage:  true,
	},
		a.serveCommand(),
		a.keyCommand(),
		a.validateCommand(),
		a.memberCommand(),
		a.workspaceCommand(),
		a.policyCommand(),
		a.watchCommand(),
		a.configCommand(),
		a.checkCommand(),
		a.anchorCommand(),
		a.repairClockCommand(),
		a.versionCommand(),
	)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, "%s", err) })
	return root
}

// group makes a command that only holds others. cobra's own would take an
// unknown one for a wish for help, and succeed.
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

// usageError is the error of a command line that cannot be understood.
func usageError(cmd *cobra.Command, format string, arguments ...any) error {
	return fmt.Errorf("%s (see %s --help)", fmt.Sprintf(format, arguments...), cmd.CommandPath())
}

// positional wants exactly the named arguments, each not empty.
func positional(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(names) == 0 && len(args) > 0:
			return usageError(cmd, "takes flags only, no argument")
		case len(args) != len(names):
			return usageError(cmd, "needs exactly %s besides flags, got %d arguments", strings.Join(names, " and "), len(args))
		}
		for i, argument := range args {
			if argument == "" {
				return usageError(cmd, "%s is empty", names[i])
			}
		}
		return nil
	}
}

// isTerminal reports whether stream is one that a person looks at.
func isTerminal(stream any) bool {
	file, isFile := stream.(*os.File)
	return isFile && term.IsTerminal(descriptor(file))
}

func descriptor(file *os.File) int {
	return int(file.Fd())
}
