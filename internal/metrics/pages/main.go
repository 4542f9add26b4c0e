// Command pages makes what is made from the list of metrics and the list of alerts: docs/metrics.md,
// docs/alerts.md, the alert rules for Prometheus and the dashboard for Grafana. It runs in the root of
// the repository.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/scribe-mail/keysvc/internal/metrics"
)

func main() {
	made, err := files()
	if err == nil {
		for name, content := range made {
			if err = os.WriteFile(name, content, 0o644); err != nil { //nolint:gosec // G306: everybody may read documentation
				break
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// files returns what is made, by path.
func files() (map[string][]byte, error) {
	graphs, err := dashboard()
	return map[string][]byte{
		"docs/metrics.md":               metricsPage(),
		"docs/alerts.md":                alertsPage(),
		"deploy/prometheus/alerts.yaml": rules(),
		"deploy/grafana/keysvc.json":    append(graphs, '\n'),
	}, err
}

const notice = "<!-- Made by make generate from internal/metrics. Do not edit. -->\n\n"

// metricsPage returns docs/metrics.md.
func metricsPage() []byte {
	var page strings.Builder
	page.WriteString("# Metrics\n\n" + notice + `What keysvc tells Prometheus. [Alerts](alerts.md) has what to do about it.

## Reading them

A listener of its own serves the metrics, in plaintext HTTP; there is none by default:

` + "```sh" + `
keysvc serve --listener metrics=127.0.0.1:9480
curl http://127.0.0.1:9480/metrics
` + "```" + `

They come in the text format of Prometheus, or in OpenMetrics if the reader asks for it. At most 32
connections of a listener are open at a time, and four reads go on at a time. The listener asks nobody
who they are, because no metric names a key, a workspace, a member or a caller. Who reads them learns how
much your product is used, so let only Prometheus reach the listener.

A read takes about a millisecond, and no longer if there are millions of keys: keys are counted when they
change, and by the hour in which they expire. With metrics on, a validation reads the clock twice and adds to
four numbers; it allocates nothing for that.

` + "`deploy/prometheus/alerts.yaml`" + ` has the alert rules, and ` + "`deploy/grafana/keysvc.json`" + ` a dashboard
for Grafana. The rules take it that Prometheus calls the job ` + "`keysvc`" + `:

` + "```yaml" + `
scrape_configs:
  - job_name: keysvc
    static_configs:
      - targets: ["127.0.0.1:9480"]
rule_files:
  - alerts.yaml
` + "```" + `

Besides these metrics there are those of Prometheus's library about the Go runtime (` + "`go_…`" + `) and the process
(` + "`process_…`" + `).
`)
	group := ""
	for _, each := range metrics.List() {
		if each.Group != group {
			group = each.Group
			fmt.Fprintf(&page, "\n## %s\n\n| metric | kind | |\n|---|---|---|\n", group)
		}
		text := each.Help
		if len(each.Labels) > 0 {
			text += " Labels: `" + strings.Join(each.Labels, "`, `") + "` (" + each.Values + ")."
		}
		if each.When != "" {
			text += " Served if: " + strings.ToLower(each.When[:1]) + each.When[1:]
		}
		fmt.Fprintf(&page, "| `%s` | %s | %s |\n", each.Name, each.Kind, text)
	}
	return []byte(page.String())
}

// alertsPage returns docs/alerts.md.
func alertsPage() []byte {
	var page strings.Builder
	page.WriteString("# Alerts\n\n" + notice + `What each alert of ` + "`deploy/prometheus/alerts.yaml`" + ` means, and what to do. [Metrics](metrics.md) explains the
metrics. An alert of severity ` + "`page`" + ` should wake a person; a ` + "`ticket`" + ` can wait for the morning.

| alert | severity | |
|---|---|---|
`)
	for _, each := range alerts {
		fmt.Fprintf(&page, "| [%s](#%s) | %s | %s |\n", each.name, strings.ToLower(each.name), each.severity, each.summary)
	}
	for _, each := range alerts {
		fmt.Fprintf(&page, "\n## %s\n\n%s %s\n\n", each.name, each.summary, each.means)
		for _, step := range each.do {
			page.WriteString("- " + step + "\n")
		}
		fmt.Fprintf(&page, "\n```promql\n%s\n```\n\n%s\n", each.expression, waiting(each.lasting))
	}
	return []byte(page.String())
}

// waiting says for how long an expression must hold.
func waiting(lasting string) string {
	if lasting == "0m" {
		return "It fires at once."
	}
	return "It fires once this has held for " + lasting + "."
}

// rules returns the alert rules in YAML.
func rules() []byte {
	var file strings.Builder
	file.WriteString("# Made by make generate from internal/metrics. Do not edit. docs/alerts.md explains each alert.\n" +
		"groups:\n  - name: keysvc\n    rules:\n")
	for _, each := range alerts {
		fmt.Fprintf(&file, "      - alert: %s\n        expr: %s\n        for: %s\n        labels:\n          severity: %s\n",
			each.name, quote(each.expression), each.lasting, each.severity)
		fmt.Fprintf(&file, "        annotations:\n          summary: %s\n          description: %s\n          runbook: docs/alerts.md#%s\n",
			quote(each.summary), quote(each.means), strings.ToLower(each.name))
	}
	return []byte(file.String())
}

// quote returns a text as a string of YAML in single quotes.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
