package cli

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/scribe-mail/keysvc/internal/transport"
)

// choiceValue is the value of a flag that allows a few words.
type choiceValue[T ~string] struct {
	target  *T
	allowed []T
}

// choice adds a flag that allows a few words. target holds the default.
func choice[T ~string](cmd *cobra.Command, target *T, name, short, usage string, allowed ...T) {
	value := &choiceValue[T]{target: target, allowed: allowed}
	cmd.Flags().VarP(value, name, short, usage+": "+value.list())
	completions(cmd, name, value.words())
}

// completions completes a flag with fixed words.
func completions(cmd *cobra.Command, flag string, words []string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // there is no such flag, or it has a completion already
	}
}

func (c *choiceValue[T]) words() []string {
	words := make([]string, len(c.allowed))
	for i, word := range c.allowed {
		words[i] = string(word)
	}
	return words
}

func (c *choiceValue[T]) list() string {
	words := c.words()
	last := len(words) - 1
	return strings.TrimPrefix(strings.Join(words[:last], ", ")+" or "+words[last], " or ")
}

// String returns the word.
func (c *choiceValue[T]) String() string { return string(*c.target) }

// Type names the value in the help text.
func (*choiceValue[T]) Type() string { return "word" }

// Set takes one of the allowed words.
func (c *choiceValue[T]) Set(text string) error {
	if !slices.Contains(c.allowed, T(text)) {
		return fmt.Errorf("allowed are %s", c.list())
	}
	*c.target = T(text)
	return nil
}

// span is the value of a flag for a duration above 0. Days are allowed, as in 90d or 1d12h. 0
// means that the flag is not set.
type span time.Duration

func (s *span) String() string {
	if *s == 0 {
		return ""
	}
	return time.Duration(*s).String()
}

// Type names the value in the help text.
func (*span) Type() string { return "duration" }

// Set reads the duration.
func (s *span) Set(text string) error {
	duration, err := parseSpan(text)
	if err != nil {
		return err
	}
	*s = span(duration)
	return nil
}

func parseSpan(text string) (time.Duration, error) {
	duration, err := parseDuration(text)
	if err == nil && duration == 0 {
		return 0, errors.New("must be more than 0")
	}
	return duration, err
}

// overlapValue is the value of --overlap: a duration of 0 or more. The empty string is refused,
// because a shell variable that is not set must not end tokens.
type overlapValue time.Duration

func (o *overlapValue) String() string {
	if *o == 0 {
		return ""
	}
	return time.Duration(*o).String()
}

// Type names the value in the help text.
func (*overlapValue) Type() string { return "duration" }

// Set reads the duration.
func (o *overlapValue) Set(text string) error {
	duration, err := parseDuration(text)
	if err != nil {
		return err
	}
	*o = overlapValue(duration)
	return nil
}

// parseDuration reads a duration of 0 or more, with days allowed.
func parseDuration(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	var duration time.Duration
	rest := text
	if number, after, found := strings.Cut(text, "d"); found {
		count, err := strconv.ParseUint(number, 10, 32)
		if err != nil || count > uint64(math.MaxInt64/day) {
			return 0, errors.New("allowed are durations such as 90d, 36h and 1d12h")
		}
		duration, rest = time.Duration(count)*day, after
	}
	if rest != "" {
		more, err := time.ParseDuration(rest)
		if err != nil || more < 0 || duration > math.MaxInt64-more {
			return 0, errors.New("allowed are durations such as 90d, 36h and 1d12h")
		}
		duration += more
	}
	if text == "" {
		return 0, errors.New("is empty")
	}
	return duration, nil
}

// instant is the value of a flag for a time in RFC 3339.
type instant struct{ time.Time }

func (i *instant) String() string {
	if i.IsZero() {
		return ""
	}
	return i.Format(time.RFC3339Nano)
}

// Type names the value in the help text.
func (*instant) Type() string { return "time" }

// Set reads the time.
func (i *instant) Set(text string) error {
	parsed, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return errors.New("allowed are times such as 2027-03-31T12:00:00Z")
	}
	i.Time = parsed.UTC()
	return nil
}

// timestamp returns the time of a pair of flags: absolute if it is set, else now plus
// direction times relative. It returns nil if neither flag is set.
func timestamp(absolute instant, now time.Time, relative span, direction int) *timestamppb.Timestamp {
	switch {
	case !absolute.IsZero():
		return timestamppb.New(absolute.Time)
	case relative != 0:
		return timestamppb.New(now.Add(time.Duration(direction) * time.Duration(relative)))
	}
	return nil
}

// commaList is the value of a flag that can be repeated. Each use can give several values,
// separated by commas.
type commaList []string

func (c *commaList) String() string { return strings.Join(*c, ",") }

// Type names the value in the help text.
func (*commaList) Type() string { return "list" }

// Set adds the values in text.
func (c *commaList) Set(text string) error {
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			return errors.New("has an empty item")
		}
		*c = append(*c, item)
	}
	return nil
}

// labels is the value of a flag name=value that can be repeated. Values may contain commas.
type labels map[string]string

func (l *labels) String() string { return "" }

// Type names the value in the help text.
func (*labels) Type() string { return "name=value" }

// Set adds one label.
func (l *labels) Set(text string) error {
	name, value, found := strings.Cut(text, "=")
	if !found {
		return errors.New("allowed is name=value")
	}
	if _, repeated := (*l)[name]; repeated {
		return fmt.Errorf("has %s twice", name)
	}
	if *l == nil {
		*l = labels{}
	}
	(*l)[name] = value
	return nil
}

// optional returns value for an optional field of a request, or nil if the flag was not set.
func optional[T any](cmd *cobra.Command, name string, value *T) *T {
	if !cmd.Flags().Changed(name) {
		return nil
	}
	return value
}

// required marks flags as required.
func required(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // there is no such flag
		}
	}
}

func (a *app) actorFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("actor", "", "the member on whose behalf the change is made, for the audit log")
}

const (
	workspaceVariable = transport.WorkspaceVariable
	workspaceFlagName = "workspace"
	workspaceNeeded   = "workspace-needed" // an annotation of the flag
)

// workspaceFlag adds --workspace, whose default is that of --context, of KEYSVC_WORKSPACE, or of
// the context in use; see fillWorkspace.
func (a *app) workspaceFlag(cmd *cobra.Command, usage string) *string {
	workspace := cmd.Flags().String(workspaceFlagName, "", usage+" (default: "+workspaceVariable+", else the context's)")
	must(cmd.Flags().SetAnnotation(workspaceFlagName, workspaceFlagName, []string{"true"}))
	a.complete(cmd, workspaceFlagName, completeWorkspaces)
	return workspace
}

// neededWorkspaceFlag is workspaceFlag for a command that fails without a workspace.
func (a *app) neededWorkspaceFlag(cmd *cobra.Command, usage string) *string {
	workspace := a.workspaceFlag(cmd, usage)
	if err := cmd.Flags().SetAnnotation(workspaceFlagName, workspaceNeeded, []string{"true"}); err != nil {
		panic(err) // there is no such flag
	}
	return workspace
}
