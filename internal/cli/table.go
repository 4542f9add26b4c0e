package cli

import (
	"strings"

	"github.com/mattn/go-runewidth"
)

// cellWidth measures text in columns of a terminal: 2 for most characters of East Asia and for
// emoji, 0 for combining characters. Characters of ambiguous width count as 1 in every locale.
var cellWidth = &runewidth.Condition{StrictEmojiNeutral: true}

const (
	columnGap = "  "
	ellipsis  = "…"
)

// shownIn is the set of layouts that show a column.
type shownIn int

const (
	always shownIn = iota
	narrowOnly
	wideOnly
	never
)

// column is a column of a table.
type column struct {
	title string
	in    shownIn
	// minWidth is the minimum width, which makes the pages of a list line up.
	minWidth int
	// cutTo is the minimum width when the table is cut to fit the terminal. 0 means that the
	// column is never cut, because people copy its content.
	cutTo int
}

// table lays out rows in columns. Unlike text/tabwriter it can be emptied in between: later rows
// keep at least the widths so far, so that the pages of a long list line up.
type table struct {
	columns []column // nil for a table without a header
	wide    bool
	// width is the maximum width of a line; 0 means any.
	width  int
	widths []int
	rows   [][]string
}

// newTable returns a table with a header. width is the width of the terminal, 0 for none. A wide
// table shows more columns and is not cut.
func newTable(columns []column, wide bool, width int) *table {
	t := &table{columns: columns, wide: wide, width: width}
	if wide {
		t.width = 0
	}
	titles := make([]string, len(columns))
	for i, column := range columns {
		titles[i] = column.title
	}
	t.add(titles...)
	for i, column := range t.shown() {
		t.widths[i] = max(t.widths[i], column.minWidth)
	}
	return t
}

// shown returns the columns that this table shows.
func (t *table) shown() []column {
	var shown []column
	for _, column := range t.columns {
		if t.shows(column) {
			shown = append(shown, column)
		}
	}
	return shown
}

func (t *table) shows(c column) bool {
	switch c.in {
	case narrowOnly:
		return !t.wide
	case wideOnly:
		return t.wide
	case never:
		return false
	case always:
	}
	return true
}

// add adds a row. If the table has a header, the row has a cell for every column, shown or not.
func (t *table) add(cells ...string) {
	var row []string
	for i, cell := range cells {
		if t.columns != nil && !t.shows(t.columns[i]) {
			continue
		}
		cell = printable(cell)
		row = append(row, cell)
		if len(row) > len(t.widths) {
			t.widths = append(t.widths, 0)
		}
		t.widths[len(row)-1] = max(t.widths[len(row)-1], cellWidth.StringWidth(cell))
	}
	t.rows = append(t.rows, row)
}

// take returns the rows that were added since the last call.
func (t *table) take() string {
	var text strings.Builder
	widths := t.fitted()
	for _, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			if cellWidth.StringWidth(cell) > widths[i] {
				cell = cellWidth.Truncate(cell, widths[i], ellipsis)
			}
			line.WriteString(cellWidth.FillRight(cell, widths[i]) + columnGap)
		}
		shown := strings.TrimRight(line.String(), " ")
		if t.width > 0 && cellWidth.StringWidth(shown) > t.width {
			shown = strings.TrimRight(cellWidth.Truncate(shown, t.width, ellipsis), " ")
		}
		text.WriteString(shown + "\n")
	}
	t.rows = nil
	return text.String()
}

// fitted returns the widths of the columns, cut so that a line fits the terminal. The widest
// column is cut first, and none below its minimum.
func (t *table) fitted() []int {
	widths := append([]int(nil), t.widths...)
	if t.width == 0 {
		return widths
	}
	total := len(columnGap) * (len(widths) - 1)
	for _, width := range widths {
		total += width
	}
	shown := t.shown()
	for ; total > t.width; total-- {
		widest := -1
		for i, column := range shown {
			if column.cutTo > 0 && widths[i] > column.cutTo && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return widths
}
