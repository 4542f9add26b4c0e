package cli

import (
	"maps"
	"slices"
	"strings"
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

func TestListOfKeysHasCommentsAndNothingButIDs(t *testing.T) {
	ids, err := parseKeyIDs(strings.NewReader("# held since the restore\n9fQ2mXc7Lr0TzB4w\n\n  VXH6gz35rInRE3Ep # ann's\r\n9fQ2mXc7Lr0TzB4w"), "held.txt")
	if want := []string{"9fQ2mXc7Lr0TzB4w", "VXH6gz35rInRE3Ep"}; err != nil || !slices.Equal(slices.Sorted(maps.Keys(ids)), want) {
		t.Errorf("got %v, %v", ids, err)
	}
	_, err = parseKeyIDs(strings.NewReader("9fQ2mXc7Lr0TzB4w\nscribe_ksk1_secret\n"), "held.txt")
	if err == nil || !strings.Contains(err.Error(), "held.txt:2: not a key id") || strings.Contains(err.Error(), "secret") {
		t.Errorf("a token: %v", err)
	}
}

func TestReleasePlanCutsLongLists(t *testing.T) {
	plan := &releasePlan{others: make([]string, maxListedKeys+2)}
	for range maxListedKeys + 1 {
		plan.keys = append(plan.keys, &keysvcv1.Key{KeyId: "9fQ2mXc7Lr0TzB4w"})
	}
	text := plan.text()
	if strings.Count(text, "\n") != 2*maxListedKeys+3 || !strings.Contains(text, "… and 1 more\n") || !strings.HasSuffix(text, "1001 to release, 1002 left out\n") {
		t.Errorf("%d lines: %s", strings.Count(text, "\n"), text[len(text)-200:])
	}
}

func FuzzParseKeyIDs(f *testing.F) {
	f.Add("9fQ2mXc7Lr0TzB4w\n# comment\n")
	f.Fuzz(func(t *testing.T, text string) {
		ids, err := parseKeyIDs(strings.NewReader(text), "list")
		for id := range ids {
			if !token.ValidID(id) || !strings.Contains(text, id) {
				t.Errorf("%q is not an id of the text", id)
			}
		}
		if err == nil && strings.Contains(text, "_ksk1_") && !strings.Contains(text, "#") {
			t.Errorf("a token was taken for an id: %q", text)
		}
	})
}
