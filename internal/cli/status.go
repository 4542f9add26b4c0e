package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/scribe-mail/keysvc/internal/server"
)

// The exit statuses of the command. The command validate uses 0, 1, 3 and 4 only, and health 0 and 1.
const (
	// ExitOK: the command succeeded. For validate: the token is allowed.
	ExitOK = 0
	// ExitFailure: a failure that has no status of its own. For status: something is wrong with the
	// server. For health: the server does not serve.
	ExitFailure = 1
	// ExitUsage: the command line is wrong, or the server refused a value of it as invalid.
	// Nothing was changed.
	ExitUsage = 2
	// ExitUnauthenticated: validate's token is not valid.
	ExitUnauthenticated = 3
	// ExitDenied: validate's token is valid, and may not do what was asked.
	ExitDenied = 4
	// ExitStopTimeout: the stop of serve hung and was given up.
	ExitStopTimeout = 5
	// ExitNotFound: there is no such key, member or workspace. Nothing was changed.
	ExitNotFound = 6
	// ExitRefused: the server refused the call in the state that the store has, or a person did
	// not confirm the change. Nothing was changed.
	ExitRefused = 7
	// ExitUnreachable: no server answered in time. If the change may have been made, the error
	// says so.
	ExitUnreachable = 8
)

const exitHelp = `Exit statuses:
  0  done; for validate: ALLOWED; for status: all is well; for health: SERVING
  1  another failure; for status: something is wrong with the server
  2  usage: the command line is wrong, or a value is invalid
  3  validate: the token is not valid (UNAUTHENTICATED)
  4  validate: the token may not do this (PERMISSION_DENIED)
  5  serve: the stop hung and was given up
  6  not found
  7  refused by the server, or not confirmed
  8  no server can be reached, or none answers in time
"keysvc validate" uses 0, 1, 3 and 4 only, and "keysvc health" 0 and 1: if they get
no answer, the status is 1.`

// statusError ends a command with an exit status and without an error line.
type statusError int

func (s statusError) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// commandLineError is the error of a wrong command line.
type commandLineError struct{ text string }

func (e *commandLineError) Error() string { return e.text }

// usageError returns the error of a wrong command line and names the command that has help.
func usageError(cmd *cobra.Command, format string, arguments ...any) error {
	return &commandLineError{fmt.Sprintf("%s (see %s --help)", fmt.Sprintf(format, arguments...), cmd.CommandPath())}
}

// refusal is the error of a change that was not confirmed, or cannot be made now.
type refusal struct{ text string }

func (e *refusal) Error() string { return e.text }

// silence is the error of a server that was reached and did not answer.
type silence struct{ text string }

func (e *silence) Error() string { return e.text }

// absence is the error of a thing that was asked for and is not there.
type absence struct{ text string }

func (e *absence) Error() string { return e.text }

// statusOf returns the exit status for an error. ctx is the context of the command: after an
// interrupt, the code of a failed call says nothing about the server.
func statusOf(ctx context.Context, err error) int {
	if errors.Is(err, server.ErrStopTimeout) {
		return ExitStopTimeout
	}
	if _, isUsage := errors.AsType[*commandLineError](err); isUsage {
		return ExitUsage
	}
	if _, isRefusal := errors.AsType[*refusal](err); isRefusal {
		return ExitRefused
	}
	if _, isAbsence := errors.AsType[*absence](err); isAbsence {
		return ExitNotFound
	}
	if _, isSilence := errors.AsType[*silence](err); isSilence {
		return ExitUnreachable
	}
	call, isCall := errors.AsType[*callError](err)
	if !isCall || call.afterChange || ctx.Err() != nil {
		return ExitFailure
	}
	switch call.status.Code() {
	case codes.InvalidArgument, codes.OutOfRange:
		return ExitUsage
	case codes.NotFound:
		return ExitNotFound
	case codes.Unauthenticated, codes.PermissionDenied, codes.FailedPrecondition, codes.Aborted, codes.AlreadyExists, codes.ResourceExhausted:
		return ExitRefused
	case codes.Unavailable, codes.DeadlineExceeded:
		return ExitUnreachable
	case codes.OK, codes.Canceled, codes.Unknown, codes.Unimplemented, codes.Internal, codes.DataLoss:
	}
	return ExitFailure
}
