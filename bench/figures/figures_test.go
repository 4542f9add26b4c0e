package figures

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const (
	page   = "../../docs/performance.md"
	folder = "../../docs/performance"
)

// TestPageIsMadeFromItsFigures compares docs/performance.md and its plots with what `make bench-page`
// makes of the committed figures.
func TestPageIsMadeFromItsFigures(t *testing.T) {
	report, err := Read(filepath.Join(folder, "figures.json"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	filled, err := Fill(string(text), report)
	if err != nil || filled != string(text) {
		t.Errorf("docs/performance.md has other tables than its figures give (%v): make bench-page", err)
	}
	for name, plot := range Plots(report) {
		want, err := plot.SVG()
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(folder, name+".svg"))
		if err != nil || string(got) != want {
			t.Errorf("%s.svg is another plot than the figures give (%v): make bench-page", name, err)
		}
	}
}

func TestRatiosAreOfTheSameRound(t *testing.T) {
	figure := NewFigure("a/1", "throughput", "a second", []float64{10, 40, 90}, "empty call", []float64{10, 20, 30})
	if want := (Spread{Median: 2, Low: 1, High: 3}); *figure.Ratio != want {
		t.Errorf("got %v, want %v", *figure.Ratio, want)
	}
	if figure := NewFigure("a/1", "p50", "µs", []float64{1}, "", nil); figure.Ratio != nil || figure.BaselineSpread != nil {
		t.Error("a ratio without a baseline")
	}
}

func TestSpreadLeavesOutliersOfManyRoundsOut(t *testing.T) {
	var sample []float64
	for value := range 41 {
		sample = append(sample, float64(100-value))
	}
	if got, want := Describe(sample), (Spread{Median: 80, Low: 74, High: 86}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := Describe([]float64{3, 1, 2}), (Spread{Median: 2, Low: 1, High: 3}); got != want {
		t.Errorf("of three: got %v, want %v", got, want)
	}
	if Describe(nil) != (Spread{}) {
		t.Error("an empty sample has a spread")
	}
}

func TestPutReplacesTheFiguresOfAMeasurement(t *testing.T) {
	var report Report
	for _, name := range []string{"validate/tcp/1000/64", "validate/tcp/1000/16", "batch/64", "validate/tcp/1000000/1"} {
		report.Put(name, []Figure{{Measurement: name, Name: "x"}, {Measurement: name, Name: "y"}})
	}
	report.Put("batch/64", []Figure{{Measurement: "batch/64", Name: "z"}})
	var names []string
	for _, figure := range report.Figures {
		names = append(names, figure.Measurement+" "+figure.Name)
	}
	want := []string{
		"batch/64 z", "validate/tcp/1000/16 x", "validate/tcp/1000/16 y", "validate/tcp/1000/64 x", "validate/tcp/1000/64 y",
		"validate/tcp/1000000/1 x", "validate/tcp/1000000/1 y",
	}
	if !slices.Equal(names, want) {
		t.Errorf("got %v", names)
	}
	path := filepath.Join(t.TempDir(), "figures.json")
	report.Put("start/1", []Figure{NewFigure("start/1", "ready", "s", []float64{0.123456, 2, 3000.4}, "hash", []float64{1, 2, 3})})
	if err := report.Write(path); err != nil {
		t.Fatal(err)
	}
	again, err := Read(path)
	if err != nil || !reflect.DeepEqual(again, &report) {
		t.Errorf("read %v, %v", again, err)
	}
	if text, _ := os.ReadFile(path); !strings.Contains(string(text), `"rounds": [0.1235,2,3000],`) {
		t.Errorf("the rounds are not on one line:\n%s", text)
	}
}

func TestGoalsAreJudgedByTheirFigures(t *testing.T) {
	var report Report
	report.Put("start/1000000", []Figure{NewFigure("start/1000000", "ready", "s", []float64{0.8, 0.9, 0.85}, "", nil)})
	report.Put("batch/64", []Figure{NewFigure("batch/64", "throughput", "a second", []float64{24, 26, 24}, "empty call", []float64{1, 1, 1})})
	table := goalTable(&report)
	for _, want := range []string{
		"| **ready at 1,000,000 keys, warm page cache, head tags on** | 6–8 s | ≤ 0.90 s | 0.85 s (0.80 to 0.90) | reached |",
		"| validations of batches of 64 ÷ empty calls, 16 callers | 13 | ≥ 25.0 | 24.0 (24.0 to 26.0) | missed |",
		"| ready at 10,000,000 keys | – | ≤ 9.00 s | not measured | |",
	} {
		if !strings.Contains(strings.ReplaceAll(table, "|  |", "| |"), want) {
			t.Errorf("no line %s in\n%s", want, table)
		}
	}
}

func TestUnknownTablesAreRefused(t *testing.T) {
	if _, err := Fill("<!-- figures: else -->\n<!-- end of figures -->\n", new(Report)); err == nil {
		t.Error("an unknown table is taken")
	}
	twice, err := Fill("a\n<!-- figures: goals -->\nold\n<!-- end of figures -->\nb\n<!-- figures: machine -->\n<!-- end of figures -->\n", new(Report))
	if err != nil || strings.Contains(twice, "old") || !strings.HasPrefix(twice, "a\n<!-- figures: goals -->\n\n| goal") || strings.Count(twice, "<!-- end") != 2 {
		t.Errorf("%v\n%s", err, twice)
	}
}

func TestPlotIsWellFormedAndHasEveryBar(t *testing.T) {
	plot := Plot{
		Title: "a < b & c", Unit: "µs", Groups: []string{"1", "16"}, Line: 1,
		Series: []Series{{"x", []Spread{{1, 0.5, 1.5}, {2, 2, 2}}}, {"y", []Spread{{}, {30, 20, 40}}}},
	}
	text, err := plot.SVG()
	if err != nil {
		t.Fatal(err)
	}
	for decoder := xml.NewDecoder(strings.NewReader(text)); ; {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if bars := strings.Count(text, "</title></rect>"); bars != 3 {
		t.Errorf("%d bars", bars)
	}
	if !strings.Contains(text, "16, y: 30.0 (20.0 to 40.0) µs") || !strings.Contains(text, "a &lt; b &amp; c") {
		t.Error("a text is missing")
	}
}

func TestPlotsWithoutFiguresAreEmpty(t *testing.T) {
	for name, plot := range Plots(new(Report)) {
		if text, err := plot.SVG(); err != nil || strings.Contains(text, "NaN") || !strings.Contains(text, "nothing has been measured") {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
}

func TestNumbersAreWrittenForPeople(t *testing.T) {
	for value, want := range map[float64]string{
		0: "0", 0.012345: "0.012", 0.5: "0.50", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 1234.5: "1,234", 999.6: "1,000", 12345678: "12,345,678", -1234: "-1,234",
	} {
		if got := number(value); got != want {
			t.Errorf("%v: got %s, want %s", value, got, want)
		}
	}
}
