package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	tokenVariable = "KEYSVC_TOKEN" //nolint:gosec // G101: the name of a variable, not a token
	maxTokenBytes = 512 << 10      // far above the length of a token, below the limit of the server
)

func (a *app) validateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate [-]",
		Short: "Ask who a token acts as, and whether it may do something",
		Long: `Ask who a token acts as, and whether it may do something.

The token is read from KEYSVC_TOKEN or, if that is not set or the argument is -,
from standard input; at a terminal the command asks for it. It is never an argument,
because others see arguments, and shells keep them in their history. One newline at
the end of the token is dropped.

Only the digest of the token is sent. A text that cannot be a token is refused
without a call. The answer tells what is wrong with it: that it begins with Bearer,
is quoted, or has a wrong checksum.

The exit status is 0 if the token is allowed, 3 if it is not valid
(UNAUTHENTICATED), 4 if it may not do this (PERMISSION_DENIED), and 1 if there is
no answer.

` + jsonHelp,
		Example: `  keysvc validate --scope signatures:read <token.txt
  keysvc validate --all-of emails:read,assets:read <token.txt
  keysvc validate --identity-only --details -o json <token.txt
  KEYSVC_TOKEN=$(cat token.txt) keysvc validate --scope emails:read --workspace acme`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && args[0] != "-" {
				// The argument is not echoed, because it may be a part of a token.
				return usageError(cmd, "takes no argument but -; the token comes from standard input or KEYSVC_TOKEN, so that it stays out of the shell's history")
			}
			return nil
		},
	}
	request := &keysvcv1.ValidateKeyRequest{}
	flags := cmd.Flags()
	flags.StringVar(&request.RequiredScope, "scope", "", "the scope that the token needs, as in signatures:read")
	flags.BoolVar(&request.IdentityOnly, "identity-only", false, "ask only who the token acts as")
	var allOf, anyOf commaList
	flags.Var(&allOf, "all-of", "scopes that the token needs, every one; can be repeated, or with commas")
	flags.Var(&anyOf, "any-of", "scopes of which the token needs one; can be repeated, or with commas")
	workspace := a.workspaceFlag(cmd, "the workspace that the resource belongs to; empty means any")
	flags.StringVar(&request.ClientAddress, "client-address", "", "the address of whoever presented the token, without a port")
	flags.BoolVar(&request.WithDetails, "details", false, "show the key's name, effective scopes and labels too")
	flags.Int64Var(&request.MinRevision, "min-revision", 0, "answer from this revision or a later one")
	flags.StringVar(&request.Epoch, "epoch", "", "the epoch that --min-revision belongs to")
	cmd.MarkFlagsRequiredTogether("min-revision", "epoch")
	for _, flag := range []string{"scope", "all-of", "any-of"} {
		a.complete(cmd, flag, completeScopes)
	}

	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, args []string) error {
		request.AllOf, request.AnyOf = allOf, anyOf
		said := 0
		for _, given := range []bool{request.GetRequiredScope() != "", request.GetIdentityOnly(), len(allOf) > 0, len(anyOf) > 0} {
			if given {
				said++
			}
		}
		if said != 1 {
			return usageError(cmd, "exactly one of --scope, --all-of, --any-of and --identity-only is needed")
		}
		text, err := s.readToken(ctx, len(args) == 1)
		if err != nil {
			return err
		}
		problem, malformed := token.Diagnose(text)
		if malformed {
			return s.refuse(problem)
		}
		request.WorkspaceId = *workspace
		response, err := s.validateByDigest(ctx, text, request)
		if err != nil {
			return err
		}
		err = s.out.answer(response, func() error { return s.out.decision(request, problem, response) })
		if err != nil {
			return err
		}
		switch response.GetDecision() {
		case keysvcv1.Decision_DECISION_ALLOWED:
			return nil
		case keysvcv1.Decision_DECISION_UNAUTHENTICATED:
			return statusError(ExitUnauthenticated)
		case keysvcv1.Decision_DECISION_PERMISSION_DENIED:
			return statusError(ExitDenied)
		}
		return errors.New("the server gave a decision that this command does not know: treat it as a refusal")
	})
}

// refuse writes the decision on a text that cannot be a token, without a call. The decision is the
// one that the server would give; problem says what is wrong with the text.
func (s *session) refuse(problem string) error {
	response := &keysvcv1.ValidateKeyResponse{
		Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED,
		Reason:   keysvcv1.Reason_REASON_KEY_INVALID,
	}
	words := "the text " + problem
	err := s.out.answer(response, func() error { return s.out.line("UNAUTHENTICATED: KEY_INVALID, %s", words) })
	if err == nil && s.out.format != formatTable {
		err = s.note("%s", words)
	}
	if err != nil {
		return err
	}
	return statusError(ExitUnauthenticated)
}

// decision writes the answer on a token in words, which begin with the names of decision and
// reason. problem is what is wrong with the form of the token; "" for nothing.
func (p *printer) decision(request *keysvcv1.ValidateKeyRequest, problem string, response *keysvcv1.ValidateKeyResponse) error {
	if response.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
		if problem != "" && response.GetReason() == keysvcv1.Reason_REASON_KEY_INVALID {
			return p.line("UNAUTHENTICATED: KEY_INVALID, the text %s", problem)
		}
		key := "the token's key"
		if response.GetKeyId() != "" {
			key = "key " + response.GetKeyId()
		}
		return p.line("%s: %s, %s",
			strings.TrimPrefix(response.GetDecision().String(), "DECISION_"),
			strings.TrimPrefix(response.GetReason().String(), "REASON_"),
			lackInWords(request, response, key))
	}
	who := response.GetPrincipal()
	err := p.line("ALLOWED key %s acts as member %s (%s) in workspace %s",
		who.GetKeyId(), who.GetMemberId(), who.GetRole(), who.GetWorkspaceId())
	if err != nil || who.GetExpireTime() == nil {
		return err
	}
	return p.record(
		field{"Name", who.GetKeyName()},
		field{"Scopes", strings.Join(who.GetScopes(), ", ")},
		field{"Labels", joinLabels(who.GetLabels())},
		field{"Expires", p.deadline(who.GetExpireTime(), "")},
	)
}

// lackInWords is inWords with the missing scopes of several.
func lackInWords(request *keysvcv1.ValidateKeyRequest, response *keysvcv1.ValidateKeyResponse, key string) string {
	reason := response.GetReason()
	scoped := reason == keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED || reason == keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE
	if !scoped || request.GetRequiredScope() != "" {
		return inWords(reason, key, request.GetRequiredScope())
	}
	lack := key + " lacks " + strings.Join(response.GetMissingScopes(), ", ")
	if len(request.GetAnyOf()) > 1 {
		lack += " (one of them would do)"
	}
	if reason == keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE {
		return lack + ": its member's role does not have now what the key was granted"
	}
	return lack
}

// inWords explains why key may not pass.
func inWords(reason keysvcv1.Reason, key, scope string) string {
	switch reason {
	case keysvcv1.Reason_REASON_KEY_INVALID:
		return "the token is unknown, rotated away, or of another workspace"
	case keysvcv1.Reason_REASON_KEY_REVOKED:
		return key + " was revoked, or its member or workspace was removed"
	case keysvcv1.Reason_REASON_KEY_EXPIRED:
		return key + " has expired"
	case keysvcv1.Reason_REASON_MEMBER_INACTIVE:
		return "the member of " + key + " is suspended"
	case keysvcv1.Reason_REASON_KEY_HELD:
		return key + " is held since the store was restored from a backup, until it is released (keysvc key release)"
	case keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED:
		return key + " may not be used from this address, or none was given (--client-address)"
	case keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED:
		return key + " was not granted " + scope
	case keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE:
		return key + " was granted " + scope + ", but its member's role does not have it now"
	}
	return key + " may not pass, for a reason that this command does not know"
}

// readToken reads the token from KEYSVC_TOKEN, standard input or the terminal. With dash it does
// not read KEYSVC_TOKEN.
func (s *session) readToken(ctx context.Context, dash bool) (string, error) {
	piped := !isTerminal(s.Stdin)
	var text string
	var err error
	switch value := s.Getenv(tokenVariable); {
	case value != "" && !dash:
		if holdsData(s.Stdin) {
			err = s.note("note: the token is taken from %s, not from standard input; use - for that", tokenVariable)
		}
		text = value
	case piped:
		text, err = await(ctx, func() (string, error) { return readAll(s.Stdin) })
	default:
		text, err = s.askForToken(ctx)
	}
	if err != nil {
		return "", err
	}
	if cut, found := strings.CutSuffix(text, "\n"); found {
		text = strings.TrimSuffix(cut, "\r")
	}
	if !utf8.ValidString(text) {
		return "", errors.New("the token is not text in UTF-8, so it cannot be sent; no valid token is like that")
	}
	return text, nil
}

func readAll(input io.Reader) (string, error) {
	if input == nil {
		return "", nil
	}
	text, err := io.ReadAll(io.LimitReader(input, maxTokenBytes+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("read the token from standard input: %w", err)
	case len(text) > maxTokenBytes:
		return "", fmt.Errorf("standard input has more than %d KiB: that is not a token", maxTokenBytes>>10)
	}
	return string(text), nil
}

// askForToken reads a line from the terminal without showing it.
func (s *session) askForToken(ctx context.Context) (string, error) {
	file, isFile := s.Stdin.(*os.File)
	if !isFile {
		return "", errors.New("standard input is not a file")
	}
	before, err := term.GetState(descriptor(file))
	if err != nil {
		return "", fmt.Errorf("terminal: %w", err)
	}
	if _, err := io.WriteString(s.Stderr, "Token (not shown): "); err != nil {
		return "", err
	}
	text, err := await(ctx, func() (string, error) {
		line, err := term.ReadPassword(descriptor(file))
		return string(line), err
	})
	_, _ = io.WriteString(s.Stderr, "\n") // the terminal did not show Enter
	if ctx.Err() != nil {
		// The read that still waits has turned off the echo.
		_ = term.Restore(descriptor(file), before)
	}
	return text, err
}

// holdsData reports whether standard input was given something to read.
func holdsData(input io.Reader) bool {
	file, isFile := input.(*os.File)
	if !isFile {
		return false
	}
	info, err := file.Stat()
	return err == nil && (info.Mode().IsRegular() || info.Mode()&os.ModeNamedPipe != 0)
}

// await calls read, which cannot be interrupted, and returns early when the context ends.
func await(ctx context.Context, read func() (string, error)) (string, error) {
	type result struct {
		text string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := read()
		done <- result{text, err}
	}()
	select {
	case r := <-done:
		return r.text, r.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
