package docs_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	adrPath  = regexp.MustCompile(`^docs/adr/(\d{4})-[a-z0-9-]+\.md$`)
	adrTitle = regexp.MustCompile(`^# ADR (\d{4}): (\S.*)$`)
	adrHead  = regexp.MustCompile(`^- Status: (proposed|accepted|superseded by ADR \d{4})\n- Date: (\d{4}-\d{2}-\d{2})$`)
)

func TestDecisionRecordsHaveTheSameHeadAndAreListed(t *testing.T) {
	r := checkout(t)
	index := r.read("docs/adr/README.md")
	records := 0
	for name := range r.files {
		path := adrPath.FindStringSubmatch(name)
		if path == nil {
			if strings.HasPrefix(name, "docs/adr/") && name != "docs/adr/README.md" {
				t.Errorf("%s: the name is not NNNN-words-of-the-title.md", name)
			}
			continue
		}
		records++
		lines := strings.SplitN(r.read(name), "\n", 6)
		if len(lines) < 6 || lines[1] != "" || lines[4] != "" {
			t.Errorf("%s:1: the head is not title, empty line, status, date, empty line", name)
			continue
		}
		title := adrTitle.FindStringSubmatch(lines[0])
		if title == nil || title[1] != path[1] {
			t.Errorf("%s:1: the title is %q, want \"# ADR %s: …\"", name, lines[0], path[1])
			continue
		}
		head := adrHead.FindStringSubmatch(lines[2] + "\n" + lines[3])
		if head == nil {
			t.Errorf("%s:3: the head is %q, want \"- Status: …\" and \"- Date: YYYY-MM-DD\"", name, lines[2:4])
			continue
		}
		if _, err := time.Parse(time.DateOnly, head[2]); err != nil {
			t.Errorf("%s:4: %v", name, err)
		}
		line := fmt.Sprintf("- [ADR %s](%s): %s\n", path[1], strings.TrimPrefix(name, "docs/adr/"), title[2])
		if !strings.Contains(index, line) {
			t.Errorf("docs/adr/README.md: lacks the line %q", line)
		}
	}
	if listed := strings.Count(index, "\n- [ADR "); records == 0 || listed != records {
		t.Errorf("docs/adr/README.md lists %d records, and %d are there", listed, records)
	}
}
