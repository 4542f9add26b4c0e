// Package metrics tells Prometheus how a server is. Metrics counts what happens, by the hooks of
// package events, and asks the server for everything else when somebody reads the metrics. The list
// in list.go has every metric. The page about them, the alert rules and the dashboard are made from
// it, by the command in internal/metrics/pages.
//
// No metric has a key, a workspace, a member, a caller or a token in its labels: each label has few
// values, and package events says what is no secret.
package metrics

import (
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/scribe-mail/keysvc/internal/counters"
	"github.com/scribe-mail/keysvc/internal/events"
)

// Config is what Metrics are made of.
type Config struct {
	// Methods are the RPCs. Calls of others count as "other".
	Methods []Method
	// Reasons are the names of the reasons of decisions, by their numbers: at most counters.MaxSet.
	// The first is that of an allowed token.
	Reasons []Reason
	// Version is the version of the server.
	Version string
	// State returns how the server is now. It is called when the metrics are read, must not wait for
	// longer than a second, and must not visit each key.
	State func() State
}

// Method is an RPC.
type Method struct {
	// Name is the name without its service, as in "RevokeKey".
	Name string
	// Stream is set if calls may last for hours. Their durations are not counted.
	Stream bool
}

// Reason is a reason of a decision, with the decision that it leads to.
type Reason struct{ Decision, Name string }

// Metrics has what is counted. Its methods may be called from many goroutines.
type Metrics struct {
	config Config
	rows   []row

	methods map[string]*method
	// validate is the method that is called most, and other is for methods that are not known.
	validate, other *method
	decisions       counters.Set
	// near counts the decisions of near-caches by the number of their reason, the last one those of
	// reasons that are not known.
	near     [counters.MaxSet]atomic.Uint64
	delivery counters.Histogram

	panics, validationsRefused, invalidTokens, acceptFailures atomic.Uint64
	storeFailures, sweepFailures, flushFailures               atomic.Uint64
	usesWritten, purgedKeys, purgedMembers, prunedEvents      atomic.Uint64
	sessionsResumed, sessionsNew, sessionsReset               atomic.Uint64
	sessionsGaveUp, sessionsLeft                              atomic.Uint64
	storeDown, clockJumped                                    atomic.Bool
	// lastChange is when the newest change was made, in Unix nanoseconds; 0 if there was none.
	lastChange atomic.Int64
	// changes and closed count by kind and by reason, of which there are few.
	changes, closed words
}

// New returns Metrics in which nothing was counted yet.
func New(config Config) *Metrics {
	m := &Metrics{config: config, methods: make(map[string]*method), other: &method{Method: Method{Name: "other"}}}
	for _, each := range config.Methods {
		if m.methods[each.Name] == nil {
			m.methods[each.Name] = &method{Method: each}
		}
	}
	m.validate = m.method("ValidateKey")
	for _, each := range list {
		m.rows = append(m.rows, row{Metric: each, description: prometheus.NewDesc(each.Name, each.Help, each.Labels, nil)})
	}
	return m
}

// method counts the calls of one RPC.
type method struct {
	Method

	codes counters.Set // by number
	took  counters.Histogram
}

func (m *Metrics) method(name string) *method {
	if known := m.methods[name]; known != nil {
		return known
	}
	return m.other
}

// codes are the names of gRPC's codes, by number.
var codes = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
	"UNAUTHENTICATED",
}

// unknownCode is what a code that gRPC does not have counts as.
const unknownCode = 2

// finished counts a call.
func (m *method) finished(code string, took time.Duration) {
	index := slices.Index(codes[:], code)
	if index < 0 {
		index = unknownCode
	}
	m.codes.Add(index)
	if !m.Stream {
		m.took.Observe(took)
	}
}

// Decided counts a decision, by the number of its reason. It is called for each validation.
func (m *Metrics) Decided(reason int) { m.decisions.Add(reason) }

// DecidedNear counts decisions that a near-cache has made from memory, by the number of their reason.
func (m *Metrics) DecidedNear(reason int, count int64) {
	if reason < 0 || reason >= len(m.config.Reasons) {
		reason = len(m.near) - 1
	}
	m.near[reason].Add(uint64(max(0, count)))
}

// Hooks returns the hooks that count.
func (m *Metrics) Hooks() events.Hooks {
	return events.Hooks{
		CallFinished: func(call events.Call) { m.method(call.Method).finished(call.Code, call.Duration) },
		ValidationFinished: func(validation events.Validation) {
			of := m.validate // for most of them without a look into the map
			if validation.Method != of.Name {
				of = m.method(validation.Method)
			}
			of.finished(validation.Code, validation.Duration)
		},
		ValidationRefused: func(events.Call) { m.validationsRefused.Add(1) },
		InvalidTokens:     func(events.InvalidTokens) { m.invalidTokens.Add(1) },
		HandlerPanicked:   func(events.Panic) { m.panics.Add(1) },
		ChangeCommitted: func(change events.Change) {
			m.changes.add(change.Kind, 1)
			if !change.Time.IsZero() {
				m.lastChange.Store(change.Time.UnixNano())
			}
		},
		ChangeDelivered: func(after time.Duration) { m.delivery.Observe(after) },
		StoreDown: func(error) {
			m.storeFailures.Add(1)
			m.storeDown.Store(true)
		},
		StoreBack: func(int64) { m.storeDown.Store(false) },
		SessionBegan: func(began events.SessionBegan) {
			if began.Resumed {
				m.sessionsResumed.Add(1)
			} else {
				m.sessionsNew.Add(1)
			}
		},
		SessionReset: func() { m.sessionsReset.Add(1) },
		SessionEnded: func(ended events.SessionEnded) {
			if ended.GaveUp {
				m.sessionsGaveUp.Add(1)
			} else {
				m.sessionsLeft.Add(1)
			}
		},
		UsesFlushed: func(flush events.Flush) {
			m.usesWritten.Add(uint64(max(0, flush.Keys)))
			if flush.Error != nil {
				m.flushFailures.Add(1)
			}
		},
		SweepDone: func(sweep events.Sweep) {
			m.purgedKeys.Add(uint64(max(0, sweep.Keys)))
			m.purgedMembers.Add(uint64(max(0, sweep.Members)))
			if sweep.Error != nil {
				m.sweepFailures.Add(1)
			}
		},
		AuditPruned:       func(prune events.Prune) { m.prunedEvents.Add(uint64(max(0, prune.Events))) },
		ClockJumped:       func(events.ClockJump) { m.clockJumped.Store(true) },
		AcceptFailed:      func(error) { m.acceptFailures.Add(1) },
		ConnectionsClosed: func(closed events.ConnectionsClosed) { m.closed.add(closed.Reason, uint64(max(0, closed.Count))) },
	}
}

// words counts by a word of which there are few, such as a reason.
type words struct {
	mutex  sync.Mutex
	counts map[string]uint64
}

// maxWords is the most words of one kind that are told apart. The server has fewer.
const maxWords = 64

func (w *words) add(word string, count uint64) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.counts == nil {
		w.counts = make(map[string]uint64)
	}
	if _, has := w.counts[word]; !has && len(w.counts) >= maxWords {
		word = "other"
	}
	w.counts[word] += count
}

// each calls a function with each word, in the order of the words.
func (w *words) each(call func(word string, count uint64)) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	for _, word := range sortedKeys(w.counts) {
		call(word, w.counts[word])
	}
}

func sortedKeys[Value any](values map[string]Value) []string {
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// goVersion is the version of Go, without what goes before a space.
func goVersion() string {
	version, _, _ := strings.Cut(runtime.Version(), " ")
	return version
}
