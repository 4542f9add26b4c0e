package cli

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// TestEveryCommandIsExplained walks all commands of this package.
func TestEveryCommandIsExplained(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || !strings.HasPrefix(cmd.Example, "  keysvc ") {
			t.Errorf("%s: no description or no example", cmd.CommandPath())
		}
		if !strings.Contains(cmd.Example, strings.TrimPrefix(cmd.CommandPath(), "keysvc")) {
			t.Errorf("%s: its example shows another command", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Long) {
			if len(line) > 85 {
				t.Errorf("%s: a long line: %s", cmd.CommandPath(), line)
			}
		}
		for _, child := range cmd.Commands() {
			walk(child)
		}
	}
	walk((&app{Process: Process{Getenv: func(string) string { return "" }}}).rootCommand())
}

func TestParseSpanAcceptsDaysAndHours(t *testing.T) {
	const day = 24 * time.Hour
	tests := []struct {
		text string
		want time.Duration // 0 for an error
	}{
		{"90d", 90 * day},
		{"720h", 720 * time.Hour},
		{"1d12h", 36 * time.Hour},
		{"1h30m", 90 * time.Minute},
		{"106751d", 106751 * day},
		{"106751d23h47m", 106751*day + 23*time.Hour + 47*time.Minute},
		{"106751d23h48m", 0},
		{"106752d", 0},
		{"4294967296d", 0},
		{"", 0},
		{"0", 0},
		{"0d", 0},
		{"d", 0},
		{"-1d", 0},
		{"1d-1h", 0},
		{"1h1d", 0},
		{"1d1d", 0},
		{"1.5d", 0},
		{"90", 0},
		{"1y", 0},
	}
	for _, test := range tests {
		got, err := parseSpan(test.text)
		if (err == nil) != (test.want != 0) || err == nil && got != test.want {
			t.Errorf("parseSpan(%q) = %s, %v", test.text, got, err)
		}
	}
}

func FuzzParseSpan(f *testing.F) {
	for _, text := range []string{"90d", "1d12h", "720h", "106751d23h48m"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := parseSpan(text); err == nil && got <= 0 {
			t.Errorf("parseSpan(%q) = %s", text, got)
		}
	})
}

func TestAwayRoundsToTheLargestUnit(t *testing.T) {
	now := time.Date(2026, 11, 23, 6, 2, 0, 0, time.UTC)
	p := &printer{now: func() time.Time { return now }}
	tests := []struct {
		offset time.Duration
		want   string
	}{
		{0, "just now"},
		{3 * time.Millisecond, "just now"},
		{-59 * time.Second, "just now"},
		{59 * time.Second, "just now"},
		{time.Minute, "in a minute"},
		{-89 * time.Second, "a minute ago"},
		{-91 * time.Second, "2 minutes ago"},
		{119 * time.Minute, "in 119 minutes"},
		{-2 * time.Hour, "2 hours ago"},
		{47 * time.Hour, "in 47 hours"},
		{48*time.Hour - time.Second, "in 2 days"},
		{72*time.Hour - time.Minute, "in 2 days"},
		{-365 * 24 * time.Hour, "365 days ago"},
	}
	for _, test := range tests {
		if got := p.away(timestamppb.New(now.Add(test.offset))); got != test.want {
			t.Errorf("away(%s) = %q, want %q", test.offset, got, test.want)
		}
		if test.offset >= time.Millisecond && test.offset < time.Minute {
			test.want = "in less than a minute"
		}
		if got := p.left(timestamppb.New(now.Add(test.offset))); got != test.want {
			t.Errorf("left(%s) = %q, want %q", test.offset, got, test.want)
		}
	}
}

func TestOverlapIsNeverEmpty(t *testing.T) {
	for _, text := range []string{"0", "0s", "0d", "24h", "7d", "1d12h"} {
		if err := new(overlapValue).Set(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	// A shell variable that is not set gives the empty string.
	for _, text := range []string{"", " ", "-1h", "d", "none", "1"} {
		if err := new(overlapValue).Set(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestPrintableEscapesWhatSteersATerminal(t *testing.T) {
	for text, want := range map[string]string{
		"plain, with spaces":     "plain, with spaces",
		"Ünïcödé 键":              "Ünïcödé 键",
		"it's \"quoted\" \\":     "it's \"quoted\" \\",
		"a\tb\nc\x1b[0m":         `a\tb\nc\x1b[0m`,
		"\u202eback\u200b":       `\u202eback\u200b`,
		"\xff\ufffd":             `\xff` + "\ufffd",
		"\u0085":                 `\u0085`,
		"می\u200cخواهم 👩\u200d💻": "می\u200cخواهم 👩\u200d💻",
	} {
		if got := printable(text); got != want {
			t.Errorf("printable(%q) = %q, want %q", text, got, want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("a\x1b\xff'\u202e")
	f.Fuzz(func(t *testing.T, text string) {
		got := printable(text)
		if i := strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) && r != '\u200c' && r != '\u200d' }); i >= 0 {
			t.Errorf("printable(%q) = %q", text, got)
		}
	})
}

// TestClientSettingsPageIsFresh compares docs/client-settings.md with the table. "make generate"
// writes it.
func TestClientSettingsPageIsFresh(t *testing.T) {
	page, err := os.ReadFile("../../docs/client-settings.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != string(clientPage()) {
		t.Error("docs/client-settings.md is not what the table gives: run make generate")
	}
}

// A file of contexts that is read is written with the same meaning, and never makes the command
// panic.
func FuzzParseContexts(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		read, err := parseContexts("c.yaml", []byte(text))
		if err != nil {
			return
		}
		written, err := read.yaml()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseContexts("c.yaml", written)
		if err != nil {
			t.Fatalf("%q is written as %q: %v", text, written, err)
		}
		if !reflect.DeepEqual(read, again) {
			t.Fatalf("%q is read as %+v, and that as %+v", text, read, again)
		}
	})
}

func TestProgressOfCountedThings(t *testing.T) {
	bar := &progress{width: 100, total: 200, unit: "parts", label: "copying"}
	if got, want := bar.line(50, 5*time.Second), "copying   [=====               ]  25 %  50 of 200 parts, 10/s, 15s left"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
