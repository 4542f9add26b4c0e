package figures

import (
	"fmt"
	"math"
	"strings"
	"text/template"
)

// Plot is a chart of bars in groups. Each bar has a line from Low to High.
type Plot struct {
	Title string
	// Unit is what the bars show.
	Unit string
	// Groups are the names under the groups of bars.
	Groups []string
	Series []Series
	// Line is a value that is marked, such as that of the baseline; 0 for none.
	Line float64
}

// Series is the bars of one colour, one for each group. A bar with the median 0 is left out.
type Series struct {
	Name string
	Bars []Spread
}

// The sizes of a chart, in pixels.
const (
	plotWidth, plotHeight                   = 760, 360
	plotLeft, plotTop, plotBottom           = 64, 60, 44
	plotInnerWidth, plotInnerHeight         = plotWidth - plotLeft - 16, plotHeight - plotTop - plotBottom
	plotGap                         float64 = 0.25 // of a group's width
)

// colours are the series', told apart also by people who see few colours (Okabe and Ito, 2008).
var colours = []string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"}

// SVG returns the chart. A text in it is not read aloud before the title, and it is legible in dark
// mode because it has a background of its own.
func (p Plot) SVG() (string, error) {
	var text strings.Builder
	err := plotTemplate.Execute(&text, p.lay())
	return text.String(), err
}

// drawing is a laid out chart.
type drawing struct {
	Width, Height, Left, Right, Top, Bottom int
	Title, Unit                             string
	Grid                                    []mark
	Groups                                  []mark
	Legend                                  []legend
	Bars                                    []bar
	Line                                    *mark
}

type mark struct {
	X, Y float64
	Text string
}

type legend struct {
	X            int
	Colour, Text string
}

type bar struct {
	X, Y, Width, Height   float64
	Colour, Text          string
	Middle, YLow, YHigh   float64
	LabelX, LabelY        float64
	Label                 string
	Whiskered, ShowsLabel bool
}

func (p Plot) lay() drawing {
	drawn := drawing{Width: plotWidth, Height: plotHeight, Left: plotLeft, Right: plotWidth - 16, Top: plotTop, Bottom: plotTop + plotInnerHeight, Title: p.Title, Unit: p.Unit}
	highest := p.Line
	for _, series := range p.Series {
		for _, each := range series.Bars {
			highest = math.Max(highest, math.Max(each.High, each.Median))
		}
	}
	if highest == 0 {
		highest = 1 // nothing was measured
	}
	step := niceStep(highest)
	top := step * math.Ceil(highest*1.02/step)
	y := func(value float64) float64 { return float64(plotTop) + plotInnerHeight*(1-value/top) }
	for value := 0.0; value <= top*1.001; value += step {
		drawn.Grid = append(drawn.Grid, mark{Y: y(value), Text: number(value)})
	}
	if p.Line > 0 {
		drawn.Line = &mark{Y: y(p.Line)}
	}
	groupWidth := float64(plotInnerWidth) / float64(len(p.Groups))
	barWidth := groupWidth * (1 - plotGap) / float64(max(1, len(p.Series)))
	for index, name := range p.Groups {
		drawn.Groups = append(drawn.Groups, mark{X: plotLeft + groupWidth*(float64(index)+0.5), Y: float64(plotTop + plotInnerHeight + 18), Text: name})
	}
	x := plotLeft
	for which, series := range p.Series {
		colour := colours[which%len(colours)]
		drawn.Legend = append(drawn.Legend, legend{X: x, Colour: colour, Text: series.Name})
		x += 34 + 7*len(series.Name)
		for group, each := range series.Bars {
			if each.Median == 0 {
				continue
			}
			left := plotLeft + groupWidth*(float64(group)+plotGap/2) + barWidth*float64(which)
			drawn.Bars = append(drawn.Bars, bar{
				X: left, Y: y(each.Median), Width: barWidth * 0.92, Height: float64(plotTop+plotInnerHeight) - y(each.Median), Colour: colour,
				Text:   fmt.Sprintf("%s, %s: %s (%s to %s) %s", p.Groups[group], series.Name, number(each.Median), number(each.Low), number(each.High), p.Unit),
				Middle: left + barWidth*0.46, YLow: y(each.Low), YHigh: y(each.High), Whiskered: each.High > each.Low,
				LabelY: y(math.Max(each.High, each.Median)) - 4, Label: number(each.Median), ShowsLabel: barWidth > 26,
			})
		}
	}
	return drawn
}

// niceStep returns the distance of grid lines: 1, 2 or 5 times a power of ten, for four to ten lines.
func niceStep(highest float64) float64 {
	if highest <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(highest)))
	switch lines := highest / unit; {
	case lines < 2:
		return unit / 5
	case lines < 5:
		return unit / 2
	}
	return unit
}

// number writes a number for people: with three digits, and thousands apart.
func number(value float64) string {
	switch magnitude := math.Abs(value); {
	case magnitude >= 999.5:
		digits := fmt.Sprintf("%.0f", value)
		for at := len(digits) - 3; at > 0 && digits[at-1] != '-'; at -= 3 {
			digits = digits[:at] + "," + digits[at:]
		}
		return digits
	case magnitude >= 100 || value == 0:
		return fmt.Sprintf("%.0f", value)
	case magnitude >= 10:
		return fmt.Sprintf("%.1f", value)
	case magnitude < 0.1:
		return fmt.Sprintf("%.2g", value)
	}
	return fmt.Sprintf("%.2f", value)
}

var plotTemplate = template.Must(template.New("plot").Funcs(template.FuncMap{
	"f":    func(value float64) string { return fmt.Sprintf("%.1f", value) },
	"text": template.HTMLEscapeString,
}).Parse(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{.Width}} {{.Height}}" width="{{.Width}}" height="{{.Height}}" role="img" font-family="sans-serif" font-size="12">
<title>{{text .Title}}</title>
<rect width="{{.Width}}" height="{{.Height}}" fill="#ffffff"/>
<text x="{{.Left}}" y="20" font-size="15" font-weight="bold">{{text .Title}}</text>
{{range .Legend}}<rect x="{{.X}}" y="34" width="10" height="10" fill="{{.Colour}}"/><text x="{{.X}}" dx="15" y="43">{{text .Text}}</text>
{{end}}{{range .Grid}}<line x1="{{$.Left}}" x2="{{$.Right}}" y1="{{f .Y}}" y2="{{f .Y}}" stroke="#dddddd"/><text x="{{$.Left}}" dx="-6" y="{{f .Y}}" dy="4" text-anchor="end">{{text .Text}}</text>
{{end}}{{range .Bars}}<rect x="{{f .X}}" y="{{f .Y}}" width="{{f .Width}}" height="{{f .Height}}" fill="{{.Colour}}"><title>{{text .Text}}</title></rect>
{{if .Whiskered}}<line x1="{{f .Middle}}" x2="{{f .Middle}}" y1="{{f .YLow}}" y2="{{f .YHigh}}" stroke="#333333"/>
{{end}}{{if .ShowsLabel}}<text x="{{f .Middle}}" y="{{f .LabelY}}" text-anchor="middle" font-size="10">{{text .Label}}</text>
{{end}}{{end}}{{with .Line}}<line x1="{{$.Left}}" x2="{{$.Right}}" y1="{{f .Y}}" y2="{{f .Y}}" stroke="#000000" stroke-dasharray="4 3"/>
{{end}}{{range .Groups}}<text x="{{f .X}}" y="{{f .Y}}" text-anchor="middle">{{text .Text}}</text>
{{end}}<text x="{{.Left}}" y="{{.Height}}" dy="-8" fill="#555555">{{text .Unit}}</text>
</svg>
`))
