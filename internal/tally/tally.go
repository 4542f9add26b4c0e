// Package tally counts who sends tokens that are not valid, in bounded memory: it finds those who
// send the most. Nobody is punished for it, because a source may be a proxy that good keys come
// through, too.
//
// A sketch keeps the counts of a fixed number of sources (the Space-Saving algorithm of Metwally,
// Agrawal and El Abbadi, 2005): a source that is new takes the place of the source with the lowest
// count, and goes on from there. So a source that sends much is never missed, and a count is too
// high by at most what it went on from. Counts are halved again and again, so that old ones fade.
package tally

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// Window is the time after which counts are halved. A source is reported at most once in it.
	Window = time.Minute
	// Threshold is the count at which a source is reported.
	Threshold = 100
	// size is how many sources of a kind are counted at a time.
	size = 128
	// reportInterval is the shortest time between two reports.
	reportInterval = time.Second
)

// Source is a source of tokens: a caller, or a network. One of the two is set.
type Source struct {
	// Caller is the name of a caller of keysvc.
	Caller string
	// Network is the address of a presenter: one of IPv4, or the first 64 bits of one of IPv6,
	// because a single host commonly has all the addresses that begin with them (RFC 6177).
	Network netip.Prefix
}

// String returns the name or the network.
func (s Source) String() string {
	if s.Network.IsValid() {
		return s.Network.String()
	}
	return s.Caller
}

// Report says that a source has sent many tokens that are not valid.
type Report struct {
	Source Source
	// Count is how many it has sent, at least: those of the last minute, half of those of the minute
	// before, and so on.
	Count int64
}

// Tally counts tokens that are not valid. Its methods may be called from many goroutines.
type Tally struct {
	now    func() time.Time
	report func(Report)

	mutex    sync.Mutex
	callers  sketch
	networks sketch
	// reported is when the last report was made.
	reported time.Time
}

// New returns a Tally. report is called for a source that passes Threshold: once in Window for one
// source, and once a second for all of them. It must return at once. now is a clock with a
// monotonic part.
func New(now func() time.Time, report func(Report)) *Tally {
	return &Tally{now: now, report: report}
}

// Add counts a token that is not valid. caller is "" and address is the zero Addr if they are not
// known. Add allocates nothing once the sources are known.
func (t *Tally) Add(caller string, address netip.Addr) {
	now := t.now()
	t.mutex.Lock()
	var reports [2]Report
	if caller != "" {
		reports[0] = t.add(&t.callers, Source{Caller: caller}, now)
	}
	if address.IsValid() {
		reports[1] = t.add(&t.networks, Source{Network: networkOf(address)}, now)
	}
	t.mutex.Unlock()
	for _, each := range reports {
		if each.Count > 0 {
			t.report(each)
		}
	}
}

// networkOf returns the network of an address.
func networkOf(address netip.Addr) netip.Prefix {
	address = address.Unmap().WithZone("")
	bits := 64
	if address.Is4() {
		bits = 32
	}
	network, _ := address.Prefix(bits) // it fails only for a length that the address does not have
	return network
}

// add counts a token of a source in a sketch. The report has a count if it is due. mutex is held.
func (t *Tally) add(to *sketch, source Source, now time.Time) Report {
	entry := to.add(source, now)
	due := entry.count-entry.over >= Threshold && (entry.reported.IsZero() || now.Sub(entry.reported) >= Window)
	if !due || !t.reported.IsZero() && now.Sub(t.reported) < reportInterval {
		return Report{}
	}
	entry.reported, t.reported = now, now
	return Report{Source: source, Count: entry.count - entry.over}
}

// sketch has the counts of sources of one kind.
type sketch struct {
	entries []*entry
	index   map[Source]*entry
	halved  time.Time
}

// entry is the count of a source.
type entry struct {
	source Source
	// count is too high by over at most.
	count, over int64
	reported    time.Time
}

// add counts a token of a source, and returns its entry.
func (s *sketch) add(source Source, now time.Time) *entry {
	s.fade(now)
	if known := s.index[source]; known != nil {
		known.count++
		return known
	}
	if s.index == nil {
		s.index = make(map[Source]*entry, size)
	}
	if len(s.entries) < size {
		made := &entry{source: source, count: 1}
		s.entries, s.index[source] = append(s.entries, made), made
		return made
	}
	least := s.entries[0]
	for _, each := range s.entries {
		if each.count < least.count {
			least = each
		}
	}
	delete(s.index, least.source)
	*least = entry{source: source, count: least.count + 1, over: least.count}
	s.index[source] = least
	return least
}

// fade halves the counts, once for each Window that has passed.
func (s *sketch) fade(now time.Time) {
	passed := now.Sub(s.halved)
	if passed < Window {
		return
	}
	s.halved = now
	halvings := min(passed/Window, 62)
	for _, each := range s.entries {
		each.count >>= halvings
		each.over >>= halvings
	}
}
