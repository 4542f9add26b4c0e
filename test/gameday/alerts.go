//go:build linux

package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

// sample is one line of what Prometheus reads.
type sample struct {
	labels labels.Labels
	value  float64
}

// alerts returns the names of the alerts whose expression holds now, sorted. It evaluates expressions that
// compare a metric with a number, and leaves out the others, which need a history.
func (d *day) alerts() ([]string, error) {
	groups, problems := rulefmt.ParseFile(d.programs.rules, false, model.UTF8Validation)
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	samples, err := d.samples()
	if err != nil {
		return nil, err
	}
	var firing []string
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			expression, err := parser.ParseExpr(rule.Expr)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", rule.Alert, err)
			}
			if rule.Alert == "KeysvcDiskNearlyFull" && !d.mounted {
				continue // this machine's own disk may be
			}
			if holds(expression, samples) {
				firing = append(firing, rule.Alert)
			}
		}
	}
	slices.Sort(firing)
	return firing, nil
}

// samples returns what Prometheus would know now.
func (d *day) samples() ([]sample, error) {
	text, err := d.scrape()
	if err != nil {
		return []sample{{labels.FromStrings(model.MetricNameLabel, "up", model.JobLabel, "keysvc"), 0}}, nil
	}
	var samples []sample
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		named, err := parser.ParseMetric(line[:at])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		samples = append(samples, sample{named, value})
	}
	return samples, nil
}

// holds reports whether an expression compares a metric, or the ratio of two, with a number, and the
// comparison holds.
func holds(expression parser.Expr, samples []sample) bool {
	binary, is := expression.(*parser.BinaryExpr)
	if !is {
		return false
	}
	if binary.Op == parser.LAND {
		return holds(binary.LHS, samples) && holds(binary.RHS, samples)
	}
	number, is := binary.RHS.(*parser.NumberLiteral)
	if !is {
		return false
	}
	return slices.ContainsFunc(values(binary.LHS, samples), func(value float64) bool { return compares(binary.Op, value, number.Val) })
}

// values returns the values of a metric, or of the ratio of two that have one value each.
func values(expression parser.Expr, samples []sample) []float64 {
	var found []float64
	switch expression := expression.(type) {
	case *parser.VectorSelector:
		for _, each := range samples {
			if matches(expression.LabelMatchers, each.labels) {
				found = append(found, each.value)
			}
		}
	case *parser.BinaryExpr:
		over, under := values(expression.LHS, samples), values(expression.RHS, samples)
		if expression.Op == parser.DIV && len(over) == 1 && len(under) == 1 {
			found = append(found, over[0]/under[0])
		}
	}
	return found
}

func matches(matchers []*labels.Matcher, of labels.Labels) bool {
	for _, matcher := range matchers {
		if !matcher.Matches(of.Get(matcher.Name)) {
			return false
		}
	}
	return true
}

func compares(operator parser.ItemType, value, with float64) bool {
	switch operator {
	case parser.EQLC:
		return value == with
	case parser.GTR:
		return value > with
	case parser.LSS:
		return value < with
	}
	return false
}
