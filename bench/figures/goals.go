package figures

import (
	"fmt"
	"strings"
)

// goal is a goal of issue 14: what it compares, and where its figure is.
type goal struct {
	text string
	// binding reports whether the goal had to be reached; the others were fought for.
	binding bool
	// before is what was measured when the issue was written; empty if nothing was.
	before string
	// measurement and name find the figure. value returns the value that is compared.
	measurement, name string
	value             func(Figure) Spread
	// atMost reports whether want is the most that is allowed, and not the least.
	atMost bool
	want   float64
	unit   string
}

func median(figure Figure) Spread { return figure.Spread }

func ratio(figure Figure) Spread {
	if figure.Ratio == nil {
		return Spread{}
	}
	return *figure.Ratio
}

// goals are the goals, in the order of the issue.
var goals = []goal{
	{text: "ready at 1,000,000 keys, warm page cache, head tags on", binding: true, before: "6–8 s", measurement: "start/1000000", name: "ready", value: median, atMost: true, want: 0.9, unit: "s"},
	{text: "ready at 10,000,000 keys", measurement: "start/10000000", name: "ready", value: median, atMost: true, want: 9, unit: "s"},
	{text: "heap a key at 1,000,000 keys, all that a process keeps", binding: true, before: "600 B", measurement: "heap/1000000", name: "heap a key", value: median, atMost: true, want: 100, unit: "B"},
	{text: "ValidateKey through keyclient with merging, 64 callers ÷ empty calls", binding: true, measurement: "client/merged/64", name: "throughput", value: ratio, want: 2},
	{text: "the same, a lone caller ÷ without merging", measurement: "client/merged/1", name: "throughput", value: ratio, want: 0.95},
	{text: "ValidateKey, 1,000 keys, 64 callers ÷ empty calls, plaintext", before: "0.75", measurement: "validate/tcp/1000/64", name: "throughput", value: ratio, want: 1.1},
	{text: "the same over TLS", measurement: "validate/tls/1000/64", name: "throughput", value: ratio, want: 1.1},
	{text: "the same ÷ empty calls with every tuning", measurement: "tuned/validate", name: "throughput", value: ratio, want: 0.95},
	{text: "1,000,000 ÷ 1,000 keys, equal tokens, server's processor", before: "1.1", measurement: "sizes/1000000", name: "server's processor", value: ratio, atMost: true, want: 1.08},
	{text: "10,000,000 ÷ 1,000 keys", measurement: "sizes/10000000", name: "server's processor", value: ratio, atMost: true, want: 1.15},
	{text: "p99.9 at 1,000,000 ÷ at 1,000 keys, half load, open loop", before: "3", measurement: "half/1000000", name: "p99.9", value: ratio, atMost: true, want: 1.5},
	{text: "validations of batches of 64 ÷ empty calls, 16 callers", before: "13", measurement: "batch/64", name: "throughput", value: ratio, want: 25},
	{text: "validations of batches of 256 ÷ empty calls, 16 callers", before: "19", measurement: "batch/256", name: "throughput", value: ratio, want: 30},
	{text: "near-cache hit, metadata to principal, one goroutine", before: "456 ns", measurement: "nearcache/hit/one", name: "time", value: median, atMost: true, want: 300, unit: "ns"},
	{text: "the same, both cores", before: "240 ns", measurement: "nearcache/hit/all", name: "time", value: median, atMost: true, want: 160, unit: "ns"},
	{text: "the same, allocations", measurement: "nearcache/hit/one", name: "allocations", value: median, atMost: true, want: 2},
	{text: "near-cache decisions a second while 1,000 keys a second are revoked", measurement: "nearcache/changes", name: "decisions", value: median, want: 4_000_000},
	{text: "durable CreateKey, 64 callers in 64 workspaces ÷ fdatasync of 4 KiB", measurement: "changes/64/64", name: "throughput", value: ratio, want: 1.5},
	{text: "revoke to the last of 1,000 sessions ÷ floor", before: "1.5", measurement: "sessions/1000", name: "last session", value: ratio, atMost: true, want: 1.3},
	{text: "p99 beside lists, policy dry runs and 100 changes a second ÷ alone, open loop, 30 % of capacity", binding: true, before: "2 to 60", measurement: "mixed/all", name: "p99", value: ratio, atMost: true, want: 1.5},
}

// goalTable returns the goals and what was measured, as Markdown.
func goalTable(report *Report) string {
	var text strings.Builder
	text.WriteString("| goal | before | wanted | measured | |\n|---|---|---|---|---|\n")
	for _, each := range goals {
		name := each.text
		if each.binding {
			name = "**" + name + "**"
		}
		compared, wanted := "≥", number(each.want)
		if each.atMost {
			compared = "≤"
		}
		if each.unit != "" {
			wanted += " " + each.unit
		}
		measured, verdict := "not measured", ""
		if figure := report.Find(each.measurement, each.name); figure != nil {
			value := each.value(*figure)
			measured = withSpread(value, each.unit)
			verdict = "missed"
			if value.Median >= each.want != each.atMost || value.Median == each.want {
				verdict = "reached"
			}
			if figure.Noise != "" {
				verdict += ", noisy"
			}
		}
		before := each.before
		if before == "" {
			before = "–"
		}
		fmt.Fprintf(&text, "| %s | %s | %s %s | %s | %s |\n", name, before, compared, wanted, measured, verdict)
	}
	return text.String()
}

// withSpread writes a median with its spread.
func withSpread(spread Spread, unit string) string {
	if unit != "" {
		unit = " " + unit
	}
	if spread.Low == spread.High {
		return number(spread.Median) + unit
	}
	return fmt.Sprintf("%s%s (%s to %s)", number(spread.Median), unit, number(spread.Low), number(spread.High))
}
