package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/metrics"
)

// TestPagesAreFresh: what is made from the lists is committed. `make generate` makes it.
func TestPagesAreFresh(t *testing.T) {
	made, err := files()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range made {
		got, err := os.ReadFile(filepath.Join("../../..", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the lists give (%v); run make generate", name, err)
		}
	}
}

// TestAlertsAndPanelsNameMetricsOfTheList also checks that each alert says what to do.
func TestAlertsAndPanelsNameMetricsOfTheList(t *testing.T) {
	var known []string
	for _, each := range metrics.List() {
		known = append(known, each.Name)
		if each.Kind == metrics.Histogram {
			known = append(known, each.Name+"_bucket")
		}
	}
	name := regexp.MustCompile(`\bkeysvc_\w+`)
	check := func(where, expression string) {
		for _, found := range name.FindAllString(expression, -1) {
			if !slices.Contains(known, found) {
				t.Errorf("%s: there is no metric %s", where, found)
			}
		}
	}
	names := make(map[string]bool)
	for _, each := range alerts {
		check(each.name, each.expression)
		if names[each.name] || each.summary == "" || each.means == "" || len(each.do) == 0 || each.lasting == "" || each.severity == "" {
			t.Errorf("%s is there twice, or is not complete", each.name)
		}
		names[each.name] = true
	}
	for _, row := range sections {
		for _, each := range row.panels {
			for _, line := range each.queries {
				check(each.title, line.expression)
			}
		}
	}
}

// TestMetricsAreNamedByTheRulesOfPrometheus looks at names, units and help texts.
func TestMetricsAreNamedByTheRulesOfPrometheus(t *testing.T) {
	names := make(map[string]bool)
	shape := regexp.MustCompile(`^keysvc(_[a-z]+)+$`)
	for _, each := range metrics.List() {
		if names[each.Name] || !shape.MatchString(each.Name) {
			t.Errorf("%s is there twice, or has another form than %s", each.Name, shape)
		}
		names[each.Name] = true
		if (each.Kind == metrics.Counter) != strings.HasSuffix(each.Name, "_total") {
			t.Errorf("%s: counters, and no others, end in _total", each.Name)
		}
		if each.Kind == metrics.Histogram && !strings.HasSuffix(each.Name, "_seconds") {
			t.Errorf("%s: durations end in _seconds", each.Name)
		}
		if !strings.HasSuffix(each.Help, ".") || each.Group == "" || (len(each.Labels) > 0) != (each.Values != "") {
			t.Errorf("%s: the help is no sentence, or the labels are not explained", each.Name)
		}
	}
}
