//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// spread returns the median of values, and their least and greatest in brackets.
func spread(values []float64, format string) string {
	sorted := slices.Sorted(slices.Values(values))
	return fmt.Sprintf(format+" ("+format+" to "+format+")", sorted[len(sorted)/2], sorted[0], sorted[len(sorted)-1])
}

// of returns a value of each slice.
func of(some []slice, value func(slice) float64) []float64 {
	var values []float64
	for _, each := range some {
		values = append(values, value(each))
	}
	return values
}

// ratios returns one list divided by another.
func ratios(above, below []float64) []float64 {
	quotients := make([]float64, len(above))
	for index := range above {
		quotients[index] = above[index] / below[index]
	}
	return quotients
}

func rate(s slice) float64 { return s.rate }

func latency(server int, share float64) func(slice) float64 {
	return func(s slice) float64 { return float64(s.at(server, share)) / float64(time.Millisecond) }
}

func processor(s slice) float64 { return float64(s.processor) / float64(time.Microsecond) }

// columns are those of figures of calls.
const columns = `
| %s | keysvcs | callers | with the barrier, a second | without, a second | with ÷ without | p50 / p99, ms, at each keysvc | without | processor of keysvc, µs a call | without | failed | without |
|---|---|---|---|---|---|---|---|---|---|---|---|
`

// row prints the figures of calls.
func row(name string, servers, callers int, with, without []slice) {
	fmt.Printf("| %s | %d | %d | %s | %s | %s | %s | %s | %s | %s | %d | %d |\n", name, servers, callers,
		spread(of(with, rate), "%.0f"), spread(of(without, rate), "%.0f"), spread(ratios(of(with, rate), of(without, rate)), "%.2f"),
		latencies(servers, with), latencies(servers, without),
		spread(of(with, processor), "%.0f"), spread(of(without, processor), "%.0f"), failures(with), failures(without))
}

// failures returns how many calls failed.
func failures(some []slice) (count int) {
	for _, each := range some {
		count += each.failed
	}
	return count
}

// latencies returns the medians of p50 and p99 at each server.
func latencies(servers int, some []slice) string {
	var texts []string
	for index := range servers {
		if len(some[0].took[index]) == 0 { // fewer callers than servers
			continue
		}
		texts = append(texts, fmt.Sprintf("%.2f / %.2f", median(of(some, latency(index, 0.5))), median(of(some, latency(index, 0.99)))))
	}
	return strings.Join(texts, ", ")
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
