// Package figures keeps what `make bench` measured, as JSON, and makes tables and plots of it, so that
// no figure of docs/performance.md is typed by hand.
package figures

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Report is what was measured on one machine with one version.
type Report struct {
	// Machine is where it was measured.
	Machine Machine `json:"machine"`
	// Go is the version of Go. Commit is that of keysvc, with "-dirty" behind it if files had changed.
	Go     string `json:"go"`
	Commit string `json:"commit"`
	// Time is when the last run began, in RFC 3339.
	Time string `json:"time"`
	// Figures are sorted by measurement, then in the order in which they were added.
	Figures []Figure `json:"figures"`
	// Profiles are the first lines of `pprof -top`, by measurement.
	Profiles map[string][]string `json:"profiles,omitempty"`
}

// Machine is a machine.
type Machine struct {
	System     string `json:"system"`
	Kernel     string `json:"kernel"`
	Processor  string `json:"processor"`
	Processors int    `json:"processors"`
	// MemoryMiB is the size of the memory in MiB.
	MemoryMiB int `json:"memory_mib"`
}

// Figure is one figure of one measurement, with the baseline that was measured just before each
// round of it.
type Figure struct {
	// Measurement is the name that selects it, for example "validate/tcp/1000/64".
	Measurement string `json:"measurement"`
	// Name is what was measured, for example "throughput", and Unit its unit.
	Name string `json:"name"`
	Unit string `json:"unit"`
	// Rounds are the values of the rounds, in their order.
	Rounds []float64 `json:"rounds"`
	// Median, Low, High describe the rounds.
	Spread
	// Baseline is the name of what was measured just before each round; empty for nothing.
	Baseline string `json:"baseline,omitempty"`
	// BaselineRounds are its values, and BaselineSpread describes them.
	BaselineRounds []float64 `json:"baseline_rounds,omitempty"`
	BaselineSpread *Spread   `json:"baseline_spread,omitempty"`
	// Ratio describes the ratios of value and baseline within the rounds.
	Ratio *Spread `json:"ratio,omitempty"`
	// Noise says what disturbed the measurement; empty if nothing is known to.
	Noise string `json:"noise,omitempty"`
}

// NewFigure returns a figure. Without a baseline, its name is empty and it has no rounds.
func NewFigure(measurement, name, unit string, rounds []float64, baseline string, baselineRounds []float64) Figure {
	figure := Figure{
		Measurement: measurement, Name: name, Unit: unit,
		Rounds: rounded(rounds), Spread: Describe(rounds),
	}
	if baseline == "" || len(baselineRounds) != len(rounds) {
		return figure
	}
	ratios := make([]float64, len(rounds))
	for index, value := range rounds {
		ratios[index] = value / baselineRounds[index]
	}
	ratio, spread := Describe(ratios), Describe(baselineRounds)
	figure.Baseline, figure.BaselineRounds, figure.BaselineSpread, figure.Ratio = baseline, rounded(baselineRounds), &spread, &ratio
	return figure
}

// Put adds figures of a measurement in the place of those that it had.
func (r *Report) Put(measurement string, added []Figure) {
	r.Figures = slices.DeleteFunc(r.Figures, func(each Figure) bool { return each.Measurement == measurement })
	r.Figures = append(r.Figures, added...)
	slices.SortStableFunc(r.Figures, func(a, b Figure) int { return compareNames(a.Measurement, b.Measurement) })
}

// profileLines is how many lines of a profile are kept.
const profileLines = 30

// PutProfile adds the output of `pprof -top` of a measurement. Lines that name the machine are left
// out.
func (r *Report) PutProfile(measurement, text string) {
	if r.Profiles == nil {
		r.Profiles = make(map[string][]string)
	}
	var kept []string
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\n"); len(kept) < profileLines && !strings.HasPrefix(line, "File:") && !strings.HasPrefix(line, "Build ID:") {
			kept = append(kept, line)
		}
	}
	r.Profiles[measurement] = kept
}

// Find returns a figure, or nil if it was not measured.
func (r *Report) Find(measurement, name string) *Figure {
	for index := range r.Figures {
		if figure := &r.Figures[index]; figure.Measurement == measurement && figure.Name == name {
			return figure
		}
	}
	return nil
}

// Read reads a report. If there is no such file, it returns an empty one.
func Read(path string) (*Report, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Report{}, nil
	}
	if err != nil {
		return nil, err
	}
	var report Report
	if err := json.Unmarshal(text, &report); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &report, nil
}

// Write writes the report.
func (r *Report) Write(path string) error {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(compact(text), '\n'), 0o644)
}

// compact puts lists of numbers on one line each.
func compact(text []byte) []byte {
	var lines []string
	inside := false
	for line := range strings.SplitSeq(string(text), "\n") {
		if inside {
			lines[len(lines)-1] += strings.TrimLeft(line, " ")
		} else {
			lines = append(lines, line)
		}
		switch {
		case strings.HasSuffix(line, "rounds\": ["):
			inside = true
		case inside && strings.HasPrefix(strings.TrimLeft(line, " "), "]"):
			inside = false
		}
	}
	return []byte(strings.Join(lines, "\n"))
}

// compareNames compares names of measurements so that numbers in them are in their order.
func compareNames(a, b string) int {
	as, bs := strings.Split(a, "/"), strings.Split(b, "/")
	return slices.CompareFunc(as, bs, func(x, y string) int {
		var first, second int
		if _, err := fmt.Sscanf(x+" "+y, "%d %d", &first, &second); err == nil && first != second {
			return first - second
		}
		return strings.Compare(x, y)
	})
}
