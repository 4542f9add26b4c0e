package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// progressInterval is the shortest time between two states of a progress bar.
const progressInterval = 100 * time.Millisecond

// progress is a line at a terminal that shows how much of something is done. Elsewhere it shows
// nothing.
type progress struct {
	out   io.Writer
	width int // of the terminal; 0 elsewhere
	now   func() time.Time
	total int64
	// unit names what is counted; empty for bytes. label is what is done.
	unit, label string
	// began and shown are when it began and when it was shown last.
	began, shown time.Time
}

// newProgress returns a progress bar on standard error for a number of bytes.
func (a *app) newProgress(total int64) *progress {
	return &progress{out: a.Stderr, width: terminalWidth(a.Stderr), now: a.Now, total: total, began: a.Now()}
}

// newCount returns a progress bar on standard error for a number of things, for example "parts". label
// says what is done with them.
func (a *app) newCount(label, unit string, total int64) *progress {
	bar := a.newProgress(total)
	bar.label, bar.unit = label, unit
	return bar
}

// show shows how much is done.
func (p *progress) show(done int64) {
	if now := p.now(); p.width > 0 && (done >= p.total || now.Sub(p.shown) >= progressInterval) {
		p.shown = now
		_, _ = io.WriteString(p.out, "\r"+p.line(done, now.Sub(p.began))+"\x1b[K") // a bar is not worth an error
	}
}

// end goes on to the next line.
func (p *progress) end() {
	if p.width > 0 && !p.shown.IsZero() {
		_, _ = io.WriteString(p.out, "\n")
	}
}

// line returns, for example, "[=====     ]  50 %  5.0 of 10.0 MiB, 2.5 MiB/s, 2s left".
func (p *progress) line(done int64, took time.Duration) string {
	const mebi, cells = 1 << 20, 20
	part := 1.0
	if p.total > 0 {
		part = min(1, float64(done)/float64(p.total))
	}
	filled := int(part * cells)
	text := fmt.Sprintf("[%s%s] %3.0f %%  ", strings.Repeat("=", filled), strings.Repeat(" ", cells-filled), 100*part)
	var pace string
	if p.unit == "" {
		text += fmt.Sprintf("%.1f of %.1f MiB", float64(done)/mebi, float64(p.total)/mebi)
		pace = fmt.Sprintf("%.1f MiB/s", float64(done)/mebi/took.Seconds())
	} else {
		text = fmt.Sprintf("%-9s %s%d of %d %s", p.label, text, done, p.total, p.unit)
		pace = fmt.Sprintf("%.0f/s", float64(done)/took.Seconds())
	}
	if took > 0 && done > 0 {
		left := time.Duration(float64(took) * (1 - part) / part)
		text += fmt.Sprintf(", %s, %s left", pace, left.Round(time.Second))
	}
	return text[:min(len(text), max(0, p.width-1))]
}
