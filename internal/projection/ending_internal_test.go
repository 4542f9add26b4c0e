package projection

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"
)

var measuredLeads = []time.Duration{24 * time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour}

// TestMeasureEnding prints how long it takes to look for keys that end soon, and how much it allocates. It
// fails for no figure.
func TestMeasureEnding(t *testing.T) {
	if *measure == 0 {
		t.Skip("prints figures; run with -measure 1000000")
	}
	p := New(newPopulation(t, *measure), nil)
	if _, err := p.Load(context.Background()); err != nil {
		t.Fatal(err)
	}
	end := diffTime.AddDate(1, 0, 0)
	for name, now := range map[string]time.Time{"none falls due": diffTime, "all fall due": end.Add(-time.Hour)} {
		query := EndingQuery{Now: now, Leads: measuredLeads, UsedSince: now.AddDate(0, 0, -30), Limit: 100}
		for what, look := range map[string]func(){
			"a page":   func() { p.Ending(t.Context(), query) },
			"counting": func() { p.CountEnding(t.Context(), now, measuredLeads, query.UsedSince) },
		} {
			var took []time.Duration
			for range 11 {
				began := time.Now()
				look()
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			fmt.Printf("%s, %s, %d keys: %s (%s to %s), %.0f allocations\n", name, what, *measure, took[5], took[0], took[10], testing.AllocsPerRun(1, look))
		}
	}
}
