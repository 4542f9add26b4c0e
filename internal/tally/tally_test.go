package tally

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// world is a Tally with a clock.
type world struct {
	*Tally
	now     time.Time
	reports []Report
}

func newWorld() *world {
	w := &world{now: time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)}
	w.Tally = New(func() time.Time { return w.now }, func(report Report) { w.reports = append(w.reports, report) })
	return w
}

// take returns the reports since the last call.
func (w *world) take() (reports []string) {
	for _, each := range w.reports {
		reports = append(reports, fmt.Sprintf("%s %d", each.Source, each.Count))
	}
	w.reports = nil
	return reports
}

func TestSourceIsReportedOnceAMinute(t *testing.T) {
	w := newWorld()
	for range Threshold - 1 {
		w.Add("gateway", netip.Addr{})
	}
	if got := w.take(); got != nil {
		t.Errorf("below the threshold: %q", got)
	}
	for range 10 * Threshold {
		w.Add("gateway", netip.Addr{})
	}
	if got := w.take(); len(got) != 1 || got[0] != "gateway 100" {
		t.Errorf("got %q", got)
	}
	w.now = w.now.Add(Window)
	w.Add("gateway", netip.Addr{})
	if got := w.take(); len(got) != 1 || got[0] != fmt.Sprintf("gateway %d", (11*Threshold-1)/2+1) {
		t.Errorf("a minute later: %q", got)
	}
	w.now = w.now.Add(time.Hour)
	w.Add("gateway", netip.Addr{})
	if got := w.take(); got != nil {
		t.Errorf("after an hour of silence: %q", got)
	}
}

func TestAddressesOfANetworkCountTogether(t *testing.T) {
	w := newWorld()
	for index := range Threshold {
		w.Add("", netip.MustParseAddr(fmt.Sprintf("2001:db8:1:2::%x%%eth0", index)))
		w.Add("", netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", index)))
	}
	if got := w.take(); len(got) != 1 || got[0] != "2001:db8:1:2::/64 100" {
		t.Errorf("got %q", got)
	}
	w.now = w.now.Add(reportInterval)
	for range Threshold {
		w.Add("", netip.MustParseAddr("::ffff:192.0.2.1"))
	}
	if got := w.take(); len(got) != 1 || got[0] != "192.0.2.1/32 100" {
		t.Errorf("got %q", got)
	}
}

// TestReportsAreBounded: thousands of sources make one report a second, and the largest is found
// among any number of small ones.
func TestReportsAreBounded(t *testing.T) {
	w := newWorld()
	for round := range Threshold {
		for index := range 1000 {
			w.Add(fmt.Sprint("caller ", index), netip.AddrFrom4([4]byte{10, byte(round), byte(index >> 8), byte(index)}))
			if index%100 == 0 {
				for range 20 {
					w.Add("hostile", netip.Addr{})
				}
			}
		}
	}
	if got := w.take(); len(got) != 1 || got[0] != "hostile 100" {
		t.Errorf("got %q", got)
	}
	if len(w.callers.index) != size || len(w.callers.entries) != size || len(w.networks.index) != size {
		t.Errorf("%d callers and %d networks are known", len(w.callers.index), len(w.networks.index))
	}
}

func TestKnownSourcesAllocateNothing(t *testing.T) {
	w := newWorld()
	address := netip.MustParseAddr("2001:db8::1")
	if allocations := testing.AllocsPerRun(50, func() { w.Add("gateway", address) }); allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}

func BenchmarkAdd(b *testing.B) {
	tally := New(time.Now, func(Report) {})
	address := netip.MustParseAddr("2001:db8::1")
	b.ReportAllocs()
	for b.Loop() {
		tally.Add("gateway", address)
	}
}
