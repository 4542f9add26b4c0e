package cli

import (
	"context"
	"errors"
	"io"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/server"
)

// Hooks is the code behind the commands that do not call a server. A command
// whose hook is nil answers with an error.
type Hooks struct {
	// Serve runs a server until the context ends, which is the wish to stop, or until the
	// server cannot go on. Serve drains, flushes and closes before it returns, with nil after
	// a stop that was wished for. settings is valid; reload reads them again, from the same
	// flags, the environment and the file. What is meant for a person goes to stdout, logs
	// go to stderr. An error should make sense in one line.
	Serve func(ctx context.Context, settings config.Settings, reload server.Reload, stdout, stderr io.Writer) error
	// Check reads a store's file that no server has open and writes to out what
	// it found. It returns an error if the file cannot be read or is not sound. anchor is
	// the file of its anchor, "" for the one beside it.
	Check func(ctx context.Context, file, anchor string, out io.Writer) error
	// AcceptAnchor makes a store's file, which no server has open, the truth after it was
	// found not to agree with its anchor. It writes to out what it found and calls confirm
	// before it changes anything; an error of that ends it.
	AcceptAnchor func(ctx context.Context, file, anchor string, out io.Writer, confirm func() error) error
	// RepairClock sets times of a store's file that lie in the future back, if apply is
	// set, and writes to out what it found. No server may have the file open. anchor is as
	// for Check.
	RepairClock func(ctx context.Context, file, anchor string, apply bool, out io.Writer) error
}

// DefaultHooks returns the hooks of the keysvc binary.
func DefaultHooks() Hooks {
	return Hooks{
		Serve: server.RunWithReload, Check: server.Check, AcceptAnchor: server.AcceptAnchor, RepairClock: server.RepairClock,
	}
}

var errNoHook = errors.New("this build of keysvc does not have the command")
