package integrity_test

import (
	"errors"
	"maps"
	"testing"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

func elementOf(id string, payload integrity.Hash) integrity.Element {
	return integrity.ElementOf(storagev1.RecordKind_RECORD_KIND_KEY, "acme", id, payload)
}

// TestExaminationNamesWhatIsWrong has a record of each kind of fault. Of two events that list a record, the
// newer one counts, which is listed first.
func TestExaminationNamesWhatIsWrong(t *testing.T) {
	older, newer := integrity.HashPayload([]byte("older")), integrity.HashPayload([]byte("newer"))
	unreadable := errors.New("checksum")
	e := integrity.NewExamination(elementOf)
	for id, hash := range map[string]integrity.Hash{"right": newer, "stale": older, "surplus": newer, "unlisted": older} {
		e.Stored(id, hash)
	}
	e.Unreadable("unreadable", unreadable)
	e.Unreadable("unreadable and unlisted", unreadable)
	for _, id := range []string{"right", "stale", "missing", "unreadable"} {
		e.List(id, newer[:])
		e.List(id, older[:])
	}
	e.List("surplus", nil)
	e.List("surplus", newer[:])
	e.List("deleted", nil)
	want := map[string]integrity.Verdict{
		"right":                   {Known: true, Element: elementOf("right", newer)},
		"stale":                   {Known: true, Element: elementOf("stale", newer), Problem: integrity.ProblemStale},
		"missing":                 {Known: true, Element: elementOf("missing", newer), Problem: integrity.ProblemMissing},
		"surplus":                 {Problem: integrity.ProblemSurplus},
		"deleted":                 {},
		"unreadable":              {Known: true, Element: elementOf("unreadable", newer), Unreadable: unreadable},
		"unlisted":                {Known: true, Element: elementOf("unlisted", older)},
		"unreadable and unlisted": {Unreadable: unreadable},
	}
	if got := maps.Collect(e.Verdicts()); !maps.Equal(got, want) {
		t.Errorf("the verdicts are\n%v\nwant\n%v", got, want)
	}
	var sum integrity.Sum
	for _, verdict := range want {
		if verdict.Known {
			sum = sum.Add(verdict.Element)
		}
	}
	if got := e.Sum(); got != sum {
		t.Errorf("the sum is %v, want that of the records that should be there, %v", got, sum)
	}
	if e.AllListed() {
		t.Error("all records are listed, although one is not")
	}
	e.List("unlisted", older[:])
	if !e.AllListed() {
		t.Error("not all records are listed")
	}
}

// TestEveryKindHasAName: elements of two kinds with one name would stand for each other.
func TestEveryKindHasAName(t *testing.T) {
	seen := make(map[string]bool)
	for number := range storagev1.RecordKind_name {
		name := integrity.KindName(storagev1.RecordKind(number))
		if name == "" || seen[name] {
			t.Errorf("kind %d has the name %q", number, name)
		}
		seen[name] = true
	}
}
