package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

const (
	defaultLimit = 50
	maxPageSize  = 1000
)

// stateHeader has room for every state, wherever in the list the first one comes.
const stateHeader = "STATE    "

const listHelp = `Without --limit or --all at most 50 are shown. When there are more, standard
error says how to go on. With -o json every page is one response message, so a
long list is several JSON values one after the other: jq '.%[1]s[]' takes them
all alike, and jq -s 'map(.%[1]s[])' makes one array of them.`

// paging is the flags of a list.
type paging struct {
	limit     int
	pageToken string
	all       bool
}

func pagingFlags(cmd *cobra.Command) *paging {
	p := &paging{}
	flags := cmd.Flags()
	flags.IntVar(&p.limit, "limit", defaultLimit, "how many to show at most")
	flags.StringVar(&p.pageToken, "page-token", "", "go on where an earlier list, with the same filters, ended")
	flags.BoolVar(&p.all, "all", false, "show all there are")
	cmd.MarkFlagsMutuallyExclusive("limit", "all")
	return p
}

// page is what all responses to a list have.
type page interface {
	proto.Message
	GetNextPageToken() string
}

// listing is one run of a list command.
type listing[P page] struct {
	// plural names what is listed.
	plural string
	// fetch gets one page.
	fetch func(pageSize int32, pageToken string) (P, error)
	// rows adds the page's rows to the table and returns how many they are.
	rows func(P, *table) int
	// header is the table's first line.
	header []string
	// again is what else to change in the command line to go on; "" for nothing.
	again string
}

// show writes page by page as they come.
func (l listing[P]) show(s *session, p *paging) error {
	if p.limit < 1 {
		return usageError(s.cmd, "--limit must be at least 1")
	}
	var t table
	t.add(l.header...)
	count, pageToken := 0, p.pageToken
	for {
		size := maxPageSize
		if !p.all {
			size = min(size, p.limit-count)
		}
		response, err := l.fetch(int32(size), pageToken)
		if err != nil {
			return err
		}
		count += l.rows(response, &t)
		err = s.out.answer(response, func() error { return s.out.write([]byte(t.take())) })
		if err != nil {
			return err
		}
		next := response.GetNextPageToken()
		switch {
		case next == "" && count == 0 && p.pageToken == "":
			return s.note("no %s", l.plural)
		case next == "":
			return nil
		case next == pageToken:
			return errors.New("the server gave the same page token again")
		case !p.all && count >= p.limit:
			return s.note("there may be more %s: go on with --page-token %s%s, or show all with --all", l.plural, next, l.again)
		}
		pageToken = next
	}
}

// note writes a line for people beside the answer.
func (s *session) note(format string, arguments ...any) error {
	_, err := fmt.Fprintln(s.Stderr, printable(redact(fmt.Sprintf(format, arguments...))))
	return err
}
