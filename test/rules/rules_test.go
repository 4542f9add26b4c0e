// Package rules reads the alert rules and the dashboard with Prometheus's own parser.
package rules

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/scribe-mail/keysvc/internal/metrics"
)

// known returns the names of the series of the list.
func known() []string {
	var names []string
	for _, each := range metrics.List() {
		names = append(names, each.Name)
		if each.Kind == metrics.Histogram {
			names = append(names, each.Name+"_bucket", each.Name+"_sum", each.Name+"_count")
		}
	}
	return append(names, "up", "process_cpu_seconds_total", "process_resident_memory_bytes", "go_memstats_heap_inuse_bytes")
}

// check parses an expression, and compares the metrics that it reads with the list.
func check(t *testing.T, where, expression string) {
	t.Helper()
	parsed, err := parser.ParseExpr(expression)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	for _, selectors := range parser.ExtractSelectors(parsed) {
		for _, matcher := range selectors {
			if matcher.Name == model.MetricNameLabel && !slices.Contains(known(), matcher.Value) {
				t.Errorf("%s: there is no metric %s", where, matcher.Value)
			}
		}
	}
}

func TestPrometheusReadsTheAlertRules(t *testing.T) {
	groups, problems := rulefmt.ParseFile("../../deploy/prometheus/alerts.yaml", false, model.UTF8Validation)
	for _, problem := range problems {
		t.Error(problem)
	}
	if groups == nil || len(groups.Groups) != 1 || len(groups.Groups[0].Rules) < 10 {
		t.Fatalf("got %v; want a group of many rules", groups)
	}
	for _, rule := range groups.Groups[0].Rules {
		check(t, rule.Alert, rule.Expr)
	}
}

func TestPrometheusReadsTheQueriesOfTheDashboard(t *testing.T) {
	content, err := os.ReadFile("../../deploy/grafana/keysvc.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	queries := 0
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			check(t, panel.Title, strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"))
			queries++
		}
	}
	if queries < 20 {
		t.Errorf("%d queries were found; the dashboard has another form", queries)
	}
}
