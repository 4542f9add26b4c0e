package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/scribe-mail/keysvc/internal/counters"
)

// row is a metric of the list with its description for the library.
type row struct {
	Metric
	description *prometheus.Desc
}

// reading is one time that the metrics are read.
type reading struct {
	*Metrics
	State
	row row
	out chan<- prometheus.Metric
}

// value adds a value, with the values of the labels.
func (r *reading) value(value float64, labels ...string) {
	kind := prometheus.GaugeValue
	if r.row.Kind == Counter {
		kind = prometheus.CounterValue
	}
	r.out <- prometheus.MustNewConstMetric(r.row.description, kind, value, labels...)
}

// whole is value for a number of things.
func (r *reading) whole(value int64, labels ...string) { r.value(float64(value), labels...) }

// count is value for a counter.
func (r *reading) count(value uint64, labels ...string) { r.value(float64(value), labels...) }

// whether is value for 1 or 0.
func (r *reading) whether(is bool, labels ...string) {
	if is {
		r.value(1, labels...)
	} else {
		r.value(0, labels...)
	}
}

// durations adds a histogram.
func (r *reading) durations(counted counters.Durations, labels ...string) {
	buckets, below := make(map[float64]uint64), uint64(0)
	for index, bound := range counters.Bounds() {
		below += counted.Buckets[index]
		buckets[bound.Seconds()] = below
	}
	r.out <- prometheus.MustNewConstHistogram(r.row.description, counted.Count(), counted.Sum.Seconds(), buckets, labels...)
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, each := range m.rows {
		out <- each.description
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	now := reading{Metrics: m, State: m.config.State(), out: out}
	for _, each := range m.rows {
		now.row = each
		each.read(&now)
	}
}

// registry returns a registry with these metrics, and those of the Go runtime and the process.
func (m *Metrics) registry() *prometheus.Registry {
	all := prometheus.NewPedanticRegistry()
	all.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return all
}
