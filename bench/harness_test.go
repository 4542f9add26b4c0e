package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/bench/figures"
)

// The variables of TestBench, beside BENCH_AFTER. The Makefile sets them.
const (
	onlyVariable   = "BENCH_ONLY"   // a regular expression for the names of measurements; empty for all
	timeVariable   = "BENCH_TIME"   // how long all of it may take, after missing stores were made
	fullVariable   = "BENCH_FULL"   // measure with 10,000,000 keys, too
	outVariable    = "BENCH_OUT"    // the file of the figures
	cacheVariable  = "BENCH_CACHE"  // the folder for stores that are kept
	commitVariable = "BENCH_COMMIT" // what is measured
)

// measurement is something to measure. It has one or more figures.
type measurement struct {
	// name selects it: parts with slashes between them.
	name string
	// wants is for how many seconds it should measure, the start of servers not included. If there is
	// less time for all of them, each gets the same share of what it wants.
	wants float64
	// whole reports whether a shorter time makes it senseless: it takes what it takes.
	whole bool
	// full measurements are only made with BENCH_FULL.
	full bool
	// keys is the size of the largest store that it needs.
	keys int
	run  func(*bench)
}

// TestBench makes all measurements of docs/performance.md, for `make bench`. When nobody measures,
// it runs the code of each kind of measurement once, with a few keys. No figure is judged.
func TestBench(t *testing.T) {
	binary := os.Getenv(afterVariable)
	if binary == "" {
		if testing.Short() {
			t.Skip("starts processes")
		}
		smoke(t)
		return
	}
	names := os.Getenv(onlyVariable)
	if names == "" {
		names = ".*"
	}
	only, err := regexp.Compile("^(?:" + names + ")$")
	if err != nil {
		t.Fatal(err)
	}
	whole, err := time.ParseDuration(os.Getenv(timeVariable))
	if err != nil {
		t.Fatal(err)
	}
	cache, out := os.Getenv(cacheVariable), os.Getenv(outVariable)
	var chosen []measurement
	for _, each := range measurements() {
		if only.MatchString(each.name) && (!each.full || os.Getenv(fullVariable) != "") {
			chosen = append(chosen, each)
		}
	}
	if len(chosen) == 0 {
		t.Fatalf("no measurement is named %s", only)
	}
	report, err := figures.Read(out)
	if err != nil {
		t.Fatal(err)
	}
	now := figures.Report{Machine: machine(t), Go: runtime.Version(), Commit: os.Getenv(commitVariable), Time: time.Now().UTC().Format(time.RFC3339)}
	if report.Machine == now.Machine && report.Go == now.Go && report.Commit == now.Commit {
		now.Figures, now.Profiles = report.Figures, report.Profiles // those of other measurements are kept
	}
	l := newLab(t, binary, cache, func(keys int) int { return keys })
	for _, each := range chosen {
		l.store(each.keys) // before the time counts: stores that are missing are made once
	}
	measureAll(t, l, chosen, time.Now().Add(whole), func(b *bench) {
		now.Put(b.name, b.figures)
		if b.profileText != "" {
			now.PutProfile(b.name, b.profileText)
		}
		if err := now.Write(out); err != nil {
			t.Fatal(err)
		}
	})
	fmt.Printf("figures are in %s\n", out)
}

// measureAll makes measurements in the time until a deadline, and keeps the figures of each.
func measureAll(t *testing.T, l *lab, chosen []measurement, deadline time.Time, keep func(*bench)) {
	t.Helper()
	began := time.Now()
	for index, each := range chosen {
		// What is left is shared anew each time: starts of servers have taken their part.
		wanted := 0.0
		fixed := 0.0
		for _, later := range chosen[index:] {
			if later.whole {
				fixed += later.wants
			} else {
				wanted += later.wants
			}
		}
		share := min(3, max(0.1, (time.Until(deadline).Seconds()-fixed)*0.9/max(wanted, 1)))
		b := &bench{T: t, lab: l, name: each.name, time: time.Duration(each.wants * share * float64(time.Second))}
		quiet := listen(t, l)
		each.run(b)
		noise := quiet.noise(t, l)
		for at := range b.figures {
			b.figures[at].Noise = noiseOf(b.figures[at], noise)
		}
		fmt.Printf("%4.0f s  %s\n", time.Since(began).Seconds(), describe(b.figures))
		keep(b)
	}
}

// bench is one measurement that is being made.
type bench struct {
	*testing.T
	lab  *lab
	name string
	// time is how long to measure.
	time    time.Duration
	figures []figures.Figure
	// profileText is the output of pprof, if the measurement makes a profile.
	profileText string
}

// rounds returns how many rounds of a length fit into the time.
func (b *bench) rounds(round time.Duration) int { return min(40, max(1, int(b.time/round))) }

// add adds a figure.
func (b *bench) add(name, unit string, rounds []float64, baseline string, baselineRounds []float64) {
	b.figures = append(b.figures, figures.NewFigure(b.name, name, unit, rounds, baseline, baselineRounds))
}

// pairs measures a baseline and something else in turn, the baseline first, after one round that does
// not count: caches and heaps grow to their usual size.
func (b *bench) pairs(slice time.Duration, baseline, measured func(time.Duration) outcome) (under, over []outcome) {
	b.Helper()
	slice = min(slice, max(b.time/6, time.Millisecond))
	for round := range b.rounds(2*slice) + 1 {
		first, second := baseline(slice), measured(slice)
		if round > 0 {
			under, over = append(under, first), append(over, second)
		}
	}
	return under, over
}

// compare adds the usual figures of calls. A call of the measured kind counts as so many.
func (b *bench) compare(baseline string, under, over []outcome, times float64) {
	for _, each := range []struct {
		name, unit string
		of         func(outcome) float64
		times      float64
	}{
		{"throughput", "a second", func(o outcome) float64 { return float64(o.Calls) / o.Seconds }, times},
		{"p50", "µs", func(o outcome) float64 { return micro(o.P50) }, 1},
		{"p99", "µs", func(o outcome) float64 { return micro(o.P99) }, 1},
		{"p99.9", "µs", func(o outcome) float64 { return micro(o.P999) }, 1},
		{"server's processor", "µs", func(o outcome) float64 { return micro(o.Server) / float64(max(1, o.Calls)) }, 1 / times},
		{"client's processor", "µs", func(o outcome) float64 { return micro(o.Client) / float64(max(1, o.Calls)) }, 1 / times},
	} {
		b.add(each.name, each.unit, values(over, each.of, each.times), baseline, values(under, each.of, 1))
	}
}

func micro(duration time.Duration) float64 { return float64(duration.Nanoseconds()) / 1e3 }

// values returns a value of each outcome, times a factor.
func values(outcomes []outcome, of func(outcome) float64, factor float64) []float64 {
	made := make([]float64, len(outcomes))
	for index, each := range outcomes {
		made[index] = of(each) * factor
	}
	return made
}

// describe returns a line about the figures of a measurement.
func describe(made []figures.Figure) string {
	var text strings.Builder
	for index, figure := range made {
		if index == 0 {
			fmt.Fprintf(&text, "%-28s", figure.Measurement)
		}
		fmt.Fprintf(&text, " %s %.4g", figure.Name, figure.Median)
		if figure.Ratio != nil {
			fmt.Fprintf(&text, " (× %.3g)", figure.Ratio.Median)
		}
		if index < len(made)-1 {
			text.WriteString(",")
		}
	}
	if len(made) > 0 && made[0].Noise != "" {
		text.WriteString("; noisy: " + made[0].Noise)
	}
	return text.String()
}

// machine describes this machine.
func machine(t *testing.T) figures.Machine {
	t.Helper()
	found := figures.Machine{System: runtime.GOOS + "/" + runtime.GOARCH, Processors: runtime.NumCPU()}
	field := func(file, name string) string {
		text, _ := os.ReadFile(file) // not there on other systems
		for line := range strings.SplitSeq(string(text), "\n") {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
				return strings.TrimSpace(value)
			}
		}
		return ""
	}
	found.Processor = field("/proc/cpuinfo", "model name")
	if total, err := strconv.Atoi(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		found.MemoryMiB = total / 1024
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		found.Kernel = "Linux " + strings.TrimSpace(string(text))
	}
	return found
}

// eachKind matches one measurement of each kind, except for those that need the Go tool, and those
// that differ in a baseline only.
var eachKind = regexp.MustCompile(`^(validate/(tcp|unix|tls)/1000/16|sizes/1000000|mixed/all|lists/.*|(start|heap)/1000000|batch/64|` +
	`client/merged/64|nearcache/(hit/one|changes)|changes/64/64|sink/.*|sessions/.*)$`)

// smoke runs every kind of measurement once, with few keys.
func smoke(t *testing.T) {
	t.Helper()
	folder := t.TempDir()
	binary := filepath.Join(folder, "keysvc")
	if text, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../cmd/keysvc").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	var chosen []measurement
	for _, each := range measurements() {
		if eachKind.MatchString(each.name) {
			each.wants, each.whole = 0.03, false
			chosen = append(chosen, each)
		}
	}
	made := make(map[string][]figures.Figure)
	l := newLab(t, binary, filepath.Join(folder, "cache"), func(keys int) int { return min(keys, tokens+keys/1_000) })
	measureAll(t, l, chosen, time.Now(), func(b *bench) { made[b.name] = b.figures })
	for _, each := range chosen {
		if len(made[each.name]) == 0 {
			t.Errorf("%s has no figure", each.name)
		}
		for _, figure := range made[each.name] {
			if len(figure.Rounds) == 0 {
				t.Errorf("%s: %s has no value", each.name, figure.Name)
			}
		}
	}
}
