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

func yesFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("yes", false, "do not ask; needed where there is no terminal to ask at")
}

var errNobodyToAsk = errors.New("nothing was changed: there is no terminal to ask at; with --yes it is done without a question")

// maxAnswerBytes is more than anybody types.
const maxAnswerBytes = 4096

// confirm asks a question at the terminal and returns nil if word is the answer to
// it. Without a terminal it is an error: what a pipe happens to hold is no answer.
func (s *session) confirm(ctx context.Context, question, word string) error {
	if !isTerminal(s.Stdin) || !isTerminal(s.Stderr) {
		return errNobodyToAsk
	}
	if _, err := io.WriteString(s.Stderr, printable(question)+" "); err != nil {
		return err
	}
	answer, err := await(ctx, func() (string, error) {
		return bufio.NewReader(io.LimitReader(s.Stdin, maxAnswerBytes)).ReadString('\n')
	})
	if err != nil {
		_, _ = io.WriteString(s.Stderr, "\n") // in place of the Enter that did not come
	}
	switch {
	case errors.Is(err, io.EOF):
		answer = "" // half an answer is none
	case err != nil:
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(answer) != word {
		return fmt.Errorf("nothing was changed: the answer was not %q", word)
	}
	return nil
}
