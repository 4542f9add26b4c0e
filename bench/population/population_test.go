package population_test

import (
	"path/filepath"
	"testing"

	"github.com/scribe-mail/keysvc/bench/population"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// TestFilledStoreIsSoundAndItsTokensAreGood checks a store as `keysvc check` does, then serves it.
func TestFilledStoreIsSoundAndItsTokensAreGood(t *testing.T) {
	const keys = 1_234
	path := filepath.Join(t.TempDir(), "keysvc.db")
	if err := population.Fill(path, keys, nil); err != nil {
		t.Fatal(err)
	}
	report, err := boltstore.Check(t.Context(), path)
	if err != nil || len(report.Problems) > 0 {
		t.Fatal(err, report.Problems)
	}
	if report.Keys != keys || report.Members != 124 || report.Workspaces != 13 || report.AuditEvents != keys+124 {
		t.Errorf("%d keys, %d members, %d workspaces, %d events", report.Keys, report.Members, report.Workspaces, report.AuditEvents)
	}
	server := servertest.Start(t, servertest.Options{File: path})
	validations := keysvcv1.NewValidationServiceClient(server.Conn)
	spread, err := population.Spread(100, keys)
	if err != nil {
		t.Fatal(err)
	}
	overlapping, limited := 0, 0
	for _, key := range spread {
		texts := []string{key.Token.Reveal()}
		if !key.Overlapping.IsZero() {
			overlapping++
			texts = append(texts, key.Overlapping.Reveal())
		}
		if len(key.Networks) > 0 {
			limited++
		}
		for _, text := range texts {
			answer, err := validations.ValidateKey(t.Context(), &keysvcv1.ValidateKeyRequest{
				Token: text, RequiredScope: population.Scope, ClientAddress: population.Address,
			})
			if err != nil || answer.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED || answer.GetPrincipal().GetMemberId() != key.MemberID {
				t.Fatal(key.Number, answer, err)
			}
		}
	}
	if overlapping != 10 || limited != 10 {
		t.Errorf("of 100 keys %d are in rotation and %d are limited to networks", overlapping, limited)
	}
}

func TestSpreadTakesDifferentKeysOfTheWholePopulation(t *testing.T) {
	for _, among := range []int{1, 7, 999, 1_000, 1_005, 1_234, 1_000_000} {
		spread, err := population.Spread(1_000, among)
		if err != nil {
			t.Fatal(err)
		}
		seen := make(map[int]bool)
		for _, key := range spread {
			if key.Number < 0 || key.Number >= among || seen[key.Number] {
				t.Fatalf("among %d: key %d, again or of no key", among, key.Number)
			}
			seen[key.Number] = true
		}
		if last := spread[len(spread)-1].Number; len(spread) != min(1_000, among) || last < among-among/500-10 {
			t.Errorf("among %d: %d keys, the last is %d", among, len(spread), last)
		}
	}
}
