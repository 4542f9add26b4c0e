package figures

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// section is a part of a page that is made from figures. Its first line names the table.
var section = regexp.MustCompile(`(?s)(<!-- figures: ([a-z ]+) -->\n).*?(<!-- end of figures -->)`)

// Fill returns a Markdown page with every table of figures in it made anew. Around a table stand the
// lines "<!-- figures: NAME -->" and "<!-- end of figures -->".
func Fill(page string, report *Report) (string, error) {
	tables := map[string]func(*Report) string{
		"machine": machineText, "goals": goalTable, "validations": validationTable, "everything": everythingTable,
		"profile": profileText,
	}
	var unknown error
	filled := section.ReplaceAllStringFunc(page, func(found string) string {
		parts := section.FindStringSubmatch(found)
		table, known := tables[parts[2]]
		if !known {
			unknown = fmt.Errorf("there is no table of figures named %q", parts[2])
			return found
		}
		return parts[1] + "\n" + table(report) + "\n" + parts[3]
	})
	return filled, unknown
}

// machineText says where the figures come from.
func machineText(report *Report) string {
	if len(report.Figures) == 0 {
		return "Nothing has been measured yet.\n"
	}
	noisy := 0
	for _, figure := range report.Figures {
		if figure.Noise != "" {
			noisy++
		}
	}
	return fmt.Sprintf("Measured on %s with commit `%s`, %s, on %s with %d processors (%s) and %s MiB of memory, %s. "+
		"Of %d figures, %d are marked as noisy.\n",
		strings.SplitN(report.Time, "T", 2)[0], report.Commit, report.Go, report.Machine.System, report.Machine.Processors,
		report.Machine.Processor, number(float64(report.Machine.MemoryMiB)), report.Machine.Kernel, len(report.Figures), noisy)
}

// validationName is the name of a measurement of ValidateKey: transport, keys and callers.
var validationName = regexp.MustCompile(`^validate/([a-z]+)/(\d+)/(\d+)$`)

// inValidationTable are the figures of such a measurement that validationTable shows.
var inValidationTable = map[string]bool{
	"throughput": true, "p50": true, "p99": true, "p99.9": true, "server's processor": true, "client's processor": true,
}

// validationTable has a line for each measurement of ValidateKey.
func validationTable(report *Report) string {
	var text strings.Builder
	text.WriteString("| over | keys | callers | a second | ÷ empty call | p50 | p99 | p99.9 | server | client |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, figure := range report.Figures {
		parts := validationName.FindStringSubmatch(figure.Measurement)
		if parts == nil || figure.Name != "throughput" {
			continue
		}
		cell := func(name string) string {
			if found := report.Find(figure.Measurement, name); found != nil {
				return number(found.Median) + " µs"
			}
			return "–"
		}
		fmt.Fprintf(&text, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", parts[1], thousands(parts[2]), parts[3],
			number(figure.Median), withSpread(ratio(figure), ""), cell("p50"), cell("p99"), cell("p99.9"), cell("server's processor"), cell("client's processor"))
	}
	return text.String()
}

// everythingTable has a line for each other figure.
func everythingTable(report *Report) string {
	var text strings.Builder
	text.WriteString("| measurement | | median (spread) | baseline | ÷ baseline | |\n|---|---|---|---|---|---|\n")
	for _, figure := range report.Figures {
		if validationName.MatchString(figure.Measurement) && inValidationTable[figure.Name] {
			continue
		}
		baseline, compared := "–", "–"
		if figure.Ratio != nil {
			baseline = figure.Baseline + ": " + number(figure.BaselineSpread.Median)
			compared = withSpread(*figure.Ratio, "")
		}
		noise := ""
		if figure.Noise != "" {
			noise = "noisy"
		}
		fmt.Fprintf(&text, "| `%s` | %s | %s | %s | %s | %s |\n", figure.Measurement, figure.Name, withSpread(figure.Spread, figure.Unit), baseline, compared, noise)
	}
	return text.String()
}

// profileText is the profile of a server with 1,000 keys, as pprof prints it.
func profileText(report *Report) string {
	lines := report.Profiles["profile/1000"]
	if len(lines) == 0 {
		return "Nothing has been measured yet.\n"
	}
	return "```text\n" + strings.Join(lines, "\n") + "\n```\n"
}

func thousands(digits string) string {
	value, _ := strconv.ParseFloat(digits, 64)
	return number(value)
}

// Plots returns the plots of a report, by name of the file. A plot without figures is empty.
func Plots(report *Report) map[string]Plot {
	plots := make(map[string]Plot)
	transports, sizes, callers := []string{"tcp", "tls", "unix"}, []string{"1000", "1000000", "10000000"}, []string{"1", "16", "64", "256"}
	add := func(name string, plot Plot) {
		plot.Series = slices.DeleteFunc(plot.Series, func(each Series) bool {
			return !slices.ContainsFunc(each.Bars, func(bar Spread) bool { return bar.Median != 0 })
		})
		if len(plot.Series) == 0 {
			plot.Unit = "nothing has been measured yet"
		}
		plots[name] = plot
	}
	find := func(measurement, name string, value func(Figure) Spread) Spread {
		if figure := report.Find(measurement, name); figure != nil {
			return value(*figure)
		}
		return Spread{}
	}
	series := func(names []string, groups []string, value func(name, group string) Spread) []Series {
		made := make([]Series, len(names))
		for index, name := range names {
			made[index] = Series{Name: name, Bars: make([]Spread, len(groups))}
			for at, group := range groups {
				made[index].Bars[at] = value(name, group)
			}
		}
		return made
	}
	named := func(made []Series, suffix string, rename func(string) string) []Series {
		for index := range made {
			made[index].Name = rename(made[index].Name) + suffix
		}
		return made
	}
	add("throughput", Plot{
		Title: "ValidateKey ÷ empty call over the same transport, 1,000 keys", Unit: "calls a second ÷ empty calls a second, by callers; the line is the empty call",
		Groups: callers, Line: 1,
		Series: series(transports, callers, func(transport, count string) Spread {
			return find("validate/"+transport+"/1000/"+count, "throughput", ratio)
		}),
	})
	add("sizes", Plot{
		Title: "ValidateKey over TCP ÷ empty call, by the number of keys", Unit: "calls a second ÷ empty calls a second, by callers; equally many tokens at every size",
		Groups: callers, Line: 1,
		Series: named(series(sizes, callers, func(size, count string) Spread {
			return find("validate/tcp/"+size+"/"+count, "throughput", ratio)
		}), " keys", thousands),
	})
	percentiles := []string{"p50", "p99", "p99.9"}
	add("latency", Plot{
		Title: "Latency of ValidateKey over TCP, 64 callers", Unit: "µs",
		Groups: percentiles,
		Series: named(series(sizes, percentiles, func(size, percentile string) Spread {
			return find("validate/tcp/"+size+"/64", percentile, median)
		}), " keys", thousands),
	})
	beside := []string{"alone", "changes", "lists", "policies", "all"}
	add("mixed", Plot{
		Title: "Validations beside other work, open loop, 30 % of capacity, 1,000,000 keys", Unit: "µs since the scheduled arrival",
		Groups: beside,
		Series: series(percentiles, beside, func(percentile, work string) Spread { return find("mixed/"+work, percentile, median) }),
	})
	return plots
}
