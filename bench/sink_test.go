package bench

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// TestMeasureSink prints how many keys 64 callers create a second in 64 workspaces, with an audit
// sink and without. Both stores are on one disk, and take turns.
func TestMeasureSink(t *testing.T) {
	if testing.Short() || !*measure {
		t.Skip("prints figures only; ask for them with -measure")
	}
	const rounds, slice = 61, 300 * time.Millisecond
	plain := start(t, newStore(t))
	defer plain.close()
	sunk := startWith(t, newStore(t), boltstore.Config{Create: boltstore.CreateIfAbsent, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Sink: filepath.Join(t.TempDir(), "audit.jsonl")})
	defer sunk.close()
	for _, p := range []*process{plain, sunk} {
		p.raiseLimit(t)
		for number := range callers {
			_, err := p.manager.PutMember(context.Background(), actor, &keysvcv1.PutMemberRequest{
				WorkspaceId: fmt.Sprint("w", number), MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	var ratios, off, on []float64
	for range rounds {
		without, with := plain.createFor(t, slice), sunk.createFor(t, slice)
		off, on, ratios = append(off, without), append(on, with), append(ratios, with/without)
	}
	for _, sample := range [][]float64{off, on, ratios} {
		slices.Sort(sample)
	}
	t.Logf("creates a second, %d callers, median of %d: %.0f without a sink, %.0f with one; with/without %.3f (from %.3f to %.3f)",
		callers, rounds, off[rounds/2], on[rounds/2], ratios[rounds/2], ratios[0], ratios[rounds-1])
}

// createFor creates keys for a time, and returns how many it created a second.
func (p *process) createFor(t *testing.T, slice time.Duration) float64 {
	t.Helper()
	began := time.Now()
	counts := make([]int, callers)
	var workers sync.WaitGroup
	for caller := range callers {
		workers.Go(func() {
			for time.Since(began) < slice {
				if _, err := p.life(fmt.Sprint("w", caller), false); err != nil {
					t.Error(err)
					return
				}
				counts[caller]++
			}
		})
	}
	workers.Wait()
	total := 0
	for _, count := range counts {
		total += count
	}
	return float64(total) / time.Since(began).Seconds()
}
