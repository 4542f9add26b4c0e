package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

const confirmHelp = `At a terminal it asks for confirmation; elsewhere --yes is needed.`

// yesFlag adds --yes, which answers the question before a final change.
func yesFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("yes", false, "do not ask; needed where there is no terminal to ask at")
}

var errNobodyToAsk = &refusal{"nothing was changed: there is no terminal to ask at; give --yes to go on without the question"}

// maxAnswerBytes bounds the answer to a question.
const maxAnswerBytes = 4096

// canAsk reports whether a person can answer a question. Standard input must be a terminal,
// because the content of a pipe is no answer; so must standard error, which shows the question.
func (a *app) canAsk() bool { return isTerminal(a.Stdin) && isTerminal(a.Stderr) }

// confirm asks a question at the terminal and returns nil if the answer is word. For any other
// answer, or without a terminal, it returns a *refusal.
func (s *session) confirm(ctx context.Context, question, word string) error {
	if !s.canAsk() {
		return errNobodyToAsk
	}
	if _, err := io.WriteString(s.Stderr, printable(redact(question))+" "); err != nil {
		return err
	}
	answer, err := await(ctx, func() (string, error) {
		return bufio.NewReader(io.LimitReader(s.Stdin, maxAnswerBytes)).ReadString('\n')
	})
	if err != nil {
		_, _ = io.WriteString(s.Stderr, "\n") // the person did not press Enter
	}
	switch {
	case errors.Is(err, io.EOF):
		answer = "" // a line without Enter is no answer
	case err != nil:
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(answer) != word {
		return &refusal{fmt.Sprintf("nothing was changed: the answer was not %q", word)}
	}
	return nil
}
