package condition_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/condition"
	"github.com/scribe-mail/keysvc/internal/storage"
)

var now = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

// well returns a server that nothing is wrong with.
func well() *condition.Condition {
	return &condition.Condition{
		Now:         now,
		Sessions:    condition.Sessions{Open: 79, Limit: 100},
		Store:       &storage.Status{DiskFreeBytes: 10 << 30, DiskBytes: 100 << 30, Sink: storage.Follower{On: true}, Anchor: storage.Follower{On: true}},
		Clock:       condition.Clock{Purges: true, WallAhead: -time.Minute},
		Certificate: &condition.Certificate{Start: now.AddDate(0, 0, -300), End: now.AddDate(0, 0, 14)},
	}
}

// inCluster returns the server with a store in a cluster.
func inCluster(c *condition.Condition) *condition.Condition {
	c.Store = &storage.Status{Members: make([]storage.StoreMember, 3)}
	return c
}

// broken has for each kind of problem what breaks a server that was well, and a part of the text.
var broken = map[string]struct {
	breaks func(*condition.Condition)
	text   string
}{
	"read-only":      {func(c *condition.Condition) { c.ReadOnly = true }, "no change is made"},
	"stopping":       {func(c *condition.Condition) { c.Stopping = true }, "stopping"},
	"disk-silent":    {func(c *condition.Condition) { *c.Store = storage.Status{Silent: true} }, "not answered"},
	"store-down":     {func(c *condition.Condition) { c.Store.Down = true }, "no change is made"},
	"disk-full":      {func(c *condition.Condition) { c.Store.Full, c.Store.DiskFreeBytes = true, 0 }, "is full"},
	"etcd-down":      {func(c *condition.Condition) { *c = *inCluster(c); c.Store.Down = true }, "Nothing can be read"},
	"etcd-exhausted": {func(c *condition.Condition) { *c = *inCluster(c); c.Store.Full, c.Store.Exhausted = true, true }, "not even a revoke"},
	"etcd-full":      {func(c *condition.Condition) { *c = *inCluster(c); c.Store.Full = true }, "nine tenths"},
	"etcd-member-silent": {func(c *condition.Condition) {
		*c = *inCluster(c)
		c.Store.Members[1].Silent = true
	}, "1 of the 3 members"},
	"sink-failing":    {func(c *condition.Condition) { c.Store.Sink.Failing = true }, "audit sink"},
	"sink-full":       {func(c *condition.Condition) { c.Store.Sink.Full = true }, "audit sink"},
	"anchor-failing":  {func(c *condition.Condition) { c.Store.Anchor.Failing = true }, "nobody notices"},
	"policy-damaged":  {func(c *condition.Condition) { c.Damaged, c.PolicyDamaged = 1, true }, "no token"},
	"records-damaged": {func(c *condition.Condition) { c.Damaged = 2 }, "2 records cannot"},
	"clock-jumped": {func(c *condition.Condition) {
		c.Clock = condition.Clock{Jumped: true, WallAhead: 3 * time.Hour, Purges: true}
	}, "3 hours ahead"},
	"clock-apart":       {func(c *condition.Condition) { c.Clock.Apart = -2 * time.Hour }, "2 hours behind this server's"},
	"certificate-ended": {func(c *condition.Condition) { c.Certificate.End = now }, "has ended"},
	"sessions-full":     {func(c *condition.Condition) { c.Sessions.Open = 100 }, "All 100"},
	"store-rolled-back": {func(c *condition.Condition) { c.Sessions.Ahead = 1 }, "1 near-cache knew"},
	"disk-nearly-full":  {func(c *condition.Condition) { c.Store.DiskFreeBytes = 511 << 20 }, "511 MiB"},
	"backups-failing":   {func(c *condition.Condition) { c.BackupFailures = 2 }, "2 backups failed"},
	"file-refused":      {func(c *condition.Condition) { c.FilesRefused = []string{"callers file"} }, "callers file"},
	"authority-ended": {func(c *condition.Condition) {
		c.Authorities = []condition.Authority{{Certificate: condition.Certificate{Start: now.AddDate(-1, 0, 0), End: now.AddDate(1, 0, 0)}}, {TrustDomain: "prod.example", Certificate: condition.Certificate{End: now}}}
	}, "prod.example has ended"},
	"authority-ends-soon": {func(c *condition.Condition) {
		c.Authorities = []condition.Authority{{Certificate: condition.Certificate{Start: now.AddDate(-1, 0, 0), End: now.AddDate(0, 0, 14).Add(-time.Second)}}}
	}, "in 13 days"},
	"notices-waiting":       {func(c *condition.Condition) { c.NoticeFailures, c.NoticesWaiting = 5, 2 }, "2 notices wait"},
	"keys-held":             {func(c *condition.Condition) { c.States = &condition.States{Held: 2} }, "keys are held: 2 keys"},
	"certificate-ends-soon": {func(c *condition.Condition) { c.Certificate.End = now.AddDate(0, 0, 14).Add(-time.Second) }, "in 13 days"},
	"sessions-nearly-full":  {func(c *condition.Condition) { c.Sessions.Open = 80 }, "80 of 100"},
	"clock-behind":          {func(c *condition.Condition) { c.Clock.WallAhead = -2 * time.Minute }, "2 minutes behind"},
	"purging-off":           {func(c *condition.Condition) { c.Clock.Purges = false }, "purges nothing"},
}

func TestEachProblemIsReportedAlone(t *testing.T) {
	t.Parallel()
	if wrong := well().Problems(); len(wrong) != 0 {
		t.Fatalf("nothing is wrong, and it reports %+v", wrong)
	}
	for _, id := range condition.Kinds() {
		example, has := broken[id]
		if !has {
			t.Errorf("%s has no example here", id)
			continue
		}
		c := well()
		example.breaks(c)
		wrong := c.Problems()
		if len(wrong) != 1 || wrong[0].ID != id || !strings.Contains(wrong[0].Description, example.text) || wrong[0].Action == "" {
			t.Errorf("%s: got %+v", id, wrong)
		}
	}
}

func TestErrorsComeBeforeWarnings(t *testing.T) {
	t.Parallel()
	c := well()
	c.Clock.Purges, c.Store.Full, c.Sessions.Open, c.Store.Sink.Failing = false, true, 90, true
	var ids []string
	for _, problem := range c.Problems() {
		ids = append(ids, fmt.Sprint(problem.Severity, " ", problem.ID))
	}
	if want := []string{"2 disk-full", "2 sink-failing", "1 sessions-nearly-full", "1 purging-off"}; !slices.Equal(ids, want) {
		t.Errorf("got %q, want %q", ids, want)
	}
}

// TestBoundsFitSmallDisksAndShortCertificates: a volume of 500 MiB is not always nearly full, and a
// certificate for an hour does not always end soon.
func TestBoundsFitSmallDisksAndShortCertificates(t *testing.T) {
	t.Parallel()
	c := well()
	c.Store.DiskBytes, c.Store.DiskFreeBytes = 500<<20, 60<<20
	c.Certificate.Start, c.Certificate.End = now.Add(-30*time.Minute), now.Add(30*time.Minute)
	if wrong := c.Problems(); len(wrong) != 0 {
		t.Errorf("got %+v", wrong)
	}
	c.Store.DiskFreeBytes, c.Certificate.End = 49<<20, now.Add(9*time.Minute)
	if wrong := c.Problems(); len(wrong) != 2 {
		t.Errorf("got %+v", wrong)
	}
}

func TestServerWithoutTLSAndWithAnotherStoreIsJudged(t *testing.T) {
	t.Parallel()
	c := well()
	c.Store, c.Certificate = nil, nil
	if wrong := c.Problems(); len(wrong) != 0 {
		t.Errorf("got %+v", wrong)
	}
}

// TestEveryProblemIsInTheDocumentation compares the kinds with the table of docs/operations.md.
func TestEveryProblemIsInTheDocumentation(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(page), "| problem | ")
	table, _, _ := strings.Cut(after, "\n\n")
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(table, -1) {
		documented = append(documented, row[1])
	}
	if !slices.Equal(documented, condition.Kinds()) {
		t.Errorf("docs/operations.md has %q\nwant %q", documented, condition.Kinds())
	}
}
