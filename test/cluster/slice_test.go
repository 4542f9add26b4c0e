//go:build linux

package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/test/trio"
)

func TestMain(m *testing.M) { os.Exit(trio.Main(m.Run)) }

// TestRevokedKeyIsRefusedEverywhere plays a slice of the campaign. The bounds of times are left to the campaign itself.
func TestRevokedKeyIsRefusedEverywhere(t *testing.T) {
	if race.Enabled() {
		t.Skip("the processes are built without the race detector")
	}
	broken, err := play(t.Context(), plan{parts: []string{partRevoke}, revokes: 30, lenient: true, plain: true}, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	for _, each := range broken {
		t.Error(each)
	}
}

// A judge that finds nothing wrong with anything is no judge.
func TestBrokenPromisesAreFound(t *testing.T) {
	began := time.Now()
	good := func() *phase {
		p := &phase{name: "p", began: began}
		for range 1000 {
			p.spread.took = append(p.spread.took, time.Millisecond)
		}
		return p
	}
	f := fault{name: "f", bound: followerBound, away: 0}
	for name, test := range map[string]struct {
		spoil func(*phase)
		want  int
	}{
		"nothing":                              {func(*phase) {}, 0},
		"one slow call":                        {func(p *phase) { p.spread.took[7] = time.Second }, 1},
		"a call that failed":                   {func(p *phase) { p.spread.failed = 1 }, 1},
		"a near-cache's call that failed":      {func(p *phase) { p.cached.failed = 1 }, 1},
		"a reset":                              {func(p *phase) { p.resets = 1 }, 1},
		"a wrong answer":                       {func(p *phase) { p.pinned[2].wrong = "allowed" }, 1},
		"a failure at the replica that died":   {func(p *phase) { p.pinned[0].failed = 1 }, 0},
		"a failure at another replica":         {func(p *phase) { p.pinned[1].failed = 1 }, 1},
		"a slow call to another replica":       {func(p *phase) { p.pinned[1].took = []time.Duration{time.Second} }, 1},
		"a change that failed":                 {func(p *phase) { p.changes[1].failed = 1 }, 1},
		"a slow change":                        {func(p *phase) { p.changes[2].took = []time.Duration{time.Second} }, 1},
		"a change at the replica that died":    {func(p *phase) { p.changes[0].failed = 1 }, 0},
		"a slow call to the replica that died": {func(p *phase) { p.pinned[0].took = []time.Duration{time.Second} }, 0},
	} {
		w := &world{say: func(string, ...any) {}}
		p := good()
		test.spoil(p)
		w.judge(p, f)
		if len(w.broken) != test.want {
			t.Errorf("%s: %q, want %d", name, w.broken, test.want)
		}
	}
	w := &world{}
	w.judgeTold([]told{{loads: 1}, {loads: 1}, {loads: 2}}, []told{{loads: 1, closed: 1}, {loads: 2}, {loads: 2, resets: 1}})
	if len(w.broken) != 3 {
		t.Errorf("%q, want a load, a reset and a connection that was ended", w.broken)
	}
	text := "# TYPE keysvc_store_up gauge\nkeysvc_store_up 1\n# TYPE keysvc_store_loads_total counter\nkeysvc_store_loads_total 3\n"
	if got, err := read(strings.NewReader(text)); err == nil {
		t.Errorf("metrics without resets: %+v", got)
	}
	text += "# TYPE keysvc_session_resets_total counter\nkeysvc_session_resets_total 2\n"
	if got, err := read(strings.NewReader(text)); err != nil || got != (told{up: true, loads: 3, resets: 2}) {
		t.Errorf("%+v, %v", got, err)
	}
	text += "# TYPE keysvc_connections_closed_total counter\nkeysvc_connections_closed_total{reason=\"a\"} 1\nkeysvc_connections_closed_total{reason=\"b\"} 2\n"
	if got, err := read(strings.NewReader(text)); err != nil || got != (told{up: true, loads: 3, resets: 2, closed: 3}) {
		t.Errorf("%+v, %v", got, err)
	}
	at := func(milliseconds int) time.Time { return began.Add(time.Duration(milliseconds) * time.Millisecond) }
	s := series{allowed: []span{{at(0), at(5)}, {at(20), at(30)}, {at(40), at(70)}}}
	if got := s.between(at(10), at(60)); got != 1 {
		t.Errorf("%d calls were allowed between, want 1", got)
	}
}
