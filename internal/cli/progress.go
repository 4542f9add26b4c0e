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
	// began and shown are when it began and when it was shown last.
	began, shown time.Time
}

// newProgress returns a progress bar on standard error for a number of bytes.
func (a *app) newProgress(total int64) *progress {
	return &progress{out: a.Stderr, width: terminalWidth(a.Stderr), now: a.Now, total: total, began: a.Now()}
}

// show shows that a number of bytes is done.
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
	text := fmt.Sprintf("[%s%s] %3.0f %%  %.1f of %.1f MiB",
		strings.Repeat("=", filled), strings.Repeat(" ", cells-filled), 100*part, float64(done)/mebi, float64(p.total)/mebi)
	if took > 0 && done > 0 {
		left := time.Duration(float64(took) * (1 - part) / part)
		text += fmt.Sprintf(", %.1f MiB/s, %s left", float64(done)/mebi/took.Seconds(), left.Round(time.Second))
	}
	return text[:min(len(text), max(0, p.width-1))]
}
