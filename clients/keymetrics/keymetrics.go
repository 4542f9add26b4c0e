// Package keymetrics shows Prometheus what a keyclient.Client does: its near-cache, and the calls that it
// makes. It is a module of its own, so that a service without Prometheus does not get its libraries.
//
//	metrics := keymetrics.New()
//	client, err := keyclient.New(address, keyclient.Config{NearCacheHooks: metrics.Hooks()})
//	…
//	metrics.Observe(client)
//	prometheus.MustRegister(metrics)
//
// A service with several clients gives each Metrics a label of its own, with
// prometheus.WrapRegistererWith.
package keymetrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/scribe-mail/keysvc/clients/keyclient"
)

// Metrics is a prometheus.Collector. Its methods may be called from many goroutines.
type Metrics struct {
	client atomic.Pointer[keyclient.Client]
	// lag counts how long changes took to arrive. failed counts sessions that ended with an error.
	lag    prometheus.Histogram
	failed prometheus.Counter
}

// New returns a Metrics that observes no client yet, and shows nothing.
func New() *Metrics {
	return &Metrics{
		lag: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "keysvc_client_change_lag_seconds",
			Help:    "How long changes took from keysvc's commit until they were applied here, by the clocks of two machines.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keysvc_client_sessions_failed_total",
			Help: "Sessions with keysvc that ended with an error.",
		}),
	}
}

// Hooks returns the hooks for keyclient.Config. They count what the state of a near-cache does not show.
func (m *Metrics) Hooks() keyclient.NearCacheHooks {
	return keyclient.NearCacheHooks{
		Invalidated: func(lag time.Duration) { m.lag.Observe(lag.Seconds()) },
		SessionEnded: func(reason error) {
			if reason != nil {
				m.failed.Inc()
			}
		},
	}
}

// Observe makes the metrics those of a client.
func (m *Metrics) Observe(client *keyclient.Client) { m.client.Store(client) }

// metric is a metric that is read from a client.
type metric struct {
	description *prometheus.Desc
	kind        prometheus.ValueType
	read        func(*state) float64
}

// state is a client at one moment.
type state struct {
	keyclient.NearCacheState
	calls, questions, malformed int64
}

func counter(name, help string, read func(*state) int64) metric {
	return metric{prometheus.NewDesc("keysvc_client_"+name, help, nil, nil), prometheus.CounterValue, func(s *state) float64 { return float64(read(s)) }}
}

func gauge(name, help string, read func(*state) float64) metric {
	return metric{prometheus.NewDesc("keysvc_client_"+name, help, nil, nil), prometheus.GaugeValue, read}
}

// list has every metric that is read from a client. It is not changed after the start.
var list = []metric{
	counter("near_cache_hits_total", "Questions that were answered ALLOWED from memory.", func(s *state) int64 { return s.Hits }),
	counter("near_cache_refusals_total", "Refusals that were repeated from memory.", func(s *state) int64 { return s.Refused }),
	counter("near_cache_misses_total", "Questions that memory could not answer.", func(s *state) int64 { return s.Misses }),
	counter("near_cache_kept_total", "Answers of keysvc whose grant was kept.", func(s *state) int64 { return s.Kept }),
	counter("near_cache_unkept_total", "Other answers of keysvc.", func(s *state) int64 { return s.Unkept }),
	counter("near_cache_repeated_total", "Answers that a change had overtaken, so that keysvc was asked again.", func(s *state) int64 { return s.Repeated }),
	counter("near_cache_changes_total", "Changes that were applied.", func(s *state) int64 { return s.Events }),
	counter("near_cache_dropped_total", "Entries that were dropped for changes.", func(s *state) int64 { return s.Dropped }),
	counter("near_cache_resets_total", "How often everything was dropped because changes were missing.", func(s *state) int64 { return s.Resets }),
	counter("sessions_total", "Sessions with keysvc that began.", func(s *state) int64 { return s.Sessions }),
	counter("merged_calls_total", "Calls that asked merged questions.", func(s *state) int64 { return s.calls }),
	counter("merged_questions_total", "Questions that were asked by these calls.", func(s *state) int64 { return s.questions }),
	counter("malformed_tokens_total", "Texts that were refused without a call, because their checksum is wrong.", func(s *state) int64 { return s.malformed }),
	gauge("connected", "1 if there is a session with keysvc.", func(s *state) float64 {
		if s.Connected {
			return 1
		}
		return 0
	}),
	gauge("fresh_seconds", "How long memory may still answer if nothing more comes from keysvc; 0 if it may not answer.", func(s *state) float64 { return s.Fresh.Seconds() }),
	gauge("staleness_seconds", "The bound of keysvc: the length of a lease.", func(s *state) float64 { return s.Staleness.Seconds() }),
	gauge("revision", "Up to which revision changes were applied.", func(s *state) float64 { return float64(s.Revision) }),
	gauge("near_cache_entries", "Tokens in memory.", func(s *state) float64 { return float64(s.Entries) }),
	gauge("near_cache_bytes", "About how much memory they take.", func(s *state) float64 { return float64(s.Bytes) }),
	gauge("watched_streams", "Streams that end with their key.", func(s *state) float64 { return float64(s.Watches) }),
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(descriptions chan<- *prometheus.Desc) {
	for _, each := range list {
		descriptions <- each.description
	}
	m.lag.Describe(descriptions)
	m.failed.Describe(descriptions)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(metrics chan<- prometheus.Metric) {
	client := m.client.Load()
	if client == nil {
		return
	}
	now := &state{NearCacheState: client.NearCache(), malformed: client.MalformedTokens()}
	now.calls, now.questions = client.Merged()
	for _, each := range list {
		metrics <- prometheus.MustNewConstMetric(each.description, each.kind, each.read(now))
	}
	m.lag.Collect(metrics)
	m.failed.Collect(metrics)
}
