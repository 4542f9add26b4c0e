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

const listHelp = `Without --limit or --all at most 50 are shown. When there are more, standard
error says how to go on. On a terminal the table is cut to its width; -o wide shows
all columns, and all that is in them. With -o json or yaml a list is one document,
however many pages it has: jq '.%[1]s[]'. With -o name it is one id a line.`

// paging holds the flags of a list.
type paging struct {
	limit     int
	pageToken string
	all       bool
	// limited reports whether limit was given.
	limited func() bool
}

func pagingFlags(cmd *cobra.Command) *paging {
	p := &paging{}
	flags := cmd.Flags()
	flags.IntVar(&p.limit, "limit", defaultLimit, "how many to show at most")
	flags.StringVar(&p.pageToken, "page-token", "", "go on where an earlier list, with the same filters, ended")
	flags.BoolVar(&p.all, "all", false, "show all there are")
	cmd.MarkFlagsMutuallyExclusive("limit", "all")
	p.limited = func() bool { return flags.Changed("limit") }
	return p
}

// page is a response to a list.
type page interface {
	proto.Message
	GetNextPageToken() string
}

// listing is one run of a list command.
type listing[P page] struct {
	// plural is the noun for the listed things.
	plural string
	// columns are the columns of the table.
	columns []column
	// fetch gets one page.
	fetch func(pageSize int32, pageToken string) (P, error)
	// rows returns the rows of a page, with a cell for each column.
	rows func(P) [][]string
	// add appends the items of page to all, and replaces the page token of all.
	add func(all, page P)
	// none completes the note "no keys" of an empty list; "" leaves it.
	none string
	// again names the flags to replace when the list goes on; "" for none.
	again string
}

// show writes the list. Tables and ids are written page by page as the pages arrive. JSON and YAML
// are one document, written at the end, with the revision of the first page.
func (l listing[P]) show(s *session, p *paging) error {
	if p.limit < 1 {
		return usageError(s.cmd, "--limit must be at least 1")
	}
	var all P
	lines := newTable(l.columns, s.out.format == formatWide, s.out.width)
	isDocument := s.out.format == formatJSON || s.out.format == formatYAML
	count, pageToken, note := 0, p.pageToken, ""
	for done, isFirst := false, true; !done; isFirst = false {
		size := maxPageSize
		if !p.all {
			size = min(size, p.limit-count)
		}
		page, err := l.fetch(int32(size), pageToken)
		if err != nil {
			return err
		}
		rows := l.rows(page)
		count += len(rows)
		switch {
		case !isDocument:
			for _, row := range rows {
				lines.add(row...)
			}
			err = s.out.answer(page, func() error { return s.out.write([]byte(lines.take())) })
		case isFirst:
			all = page
		default:
			l.add(all, page)
		}
		if err != nil {
			return err
		}
		next := page.GetNextPageToken()
		switch {
		case next == "" && count == 0 && p.pageToken == "":
			done, note = true, "no "+l.plural+l.none
		case next == "":
			done = true
		case next == pageToken:
			return errors.New("the server gave the same page token again")
		case !p.all && count >= p.limit:
			done, note = true, fmt.Sprintf("there may be more %s: go on with --page-token %s%s, or show all with --all", l.plural, next, l.again)
		}
		pageToken = next
	}
	if isDocument {
		if err := s.out.answer(all, nil); err != nil {
			return err
		}
	}
	if note == "" {
		return nil
	}
	return s.note("%s", note)
}

// note writes a line for people to standard error.
func (s *session) note(format string, arguments ...any) error {
	_, err := fmt.Fprintln(s.Stderr, printable(redact(fmt.Sprintf(format, arguments...))))
	return err
}
