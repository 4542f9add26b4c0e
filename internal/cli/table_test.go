package cli

import (
	"strings"
	"testing"
)

func TestTableKeepsItsWidthsFromPageToPage(t *testing.T) {
	rows := newTable([]column{{title: "A"}, {title: "LONGER"}}, false, 0)
	rows.add("long cell", "x")
	got := rows.take()
	rows.add("é", "y")
	got += rows.take() + rows.take()
	if want := "A          LONGER\nlong cell  x\né          y\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestTableMeasuresCharactersAsTerminalsDo: characters of East Asia and emoji take two columns,
// combining characters none.
func TestTableMeasuresCharactersAsTerminalsDo(t *testing.T) {
	rows := newTable([]column{{title: "NAME"}, {title: "X"}}, false, 0)
	for _, name := range []string{"配置する", "e\u0301te", "👩\u200d💻", "plain"} {
		rows.add(name, "x")
	}
	const want = "NAME      X\n配置する  x\ne\u0301te       x\n👩\u200d💻        x\nplain     x\n"
	if got := rows.take(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTableFitsTheTerminal(t *testing.T) {
	columns := []column{{title: "ID"}, {title: "MEMBER", cutTo: 6}, {title: "NAME", cutTo: 6}, {title: "STATE", minWidth: 9}, {title: "MORE", in: wideOnly}}
	for _, test := range []struct {
		width int
		wide  bool
	}{{0, false}, {0, true}, {40, true}, {40, false}, {50, false}, {20, false}} {
		rows := newTable(columns, test.wide, test.width)
		rows.add("0123456789", "ann@example.com", "nightly 配置する", "active", "only if wide")
		text := rows.take()
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			if width := cellWidth.StringWidth(line); test.width > 0 && !test.wide && width > test.width {
				t.Errorf("width %d: a line of %d: %q", test.width, width, line)
			}
		}
		if hasMore := strings.Contains(text, "only if wide"); hasMore != test.wide {
			t.Errorf("wide %t:\n%s", test.wide, text)
		}
		if test.width >= 40 && !test.wide && (!strings.Contains(text, "0123456789  ") || !strings.Contains(text, "active") || !strings.Contains(text, "…")) {
			t.Errorf("width %d:\n%s", test.width, text)
		}
		if (test.width == 0 || test.wide) && (strings.Contains(text, "…") || !strings.Contains(text, "nightly 配置する")) {
			t.Errorf("without a terminal something is cut:\n%s", text)
		}
	}
}
