package keys

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/problem"
)

func at(text string) time.Time {
	when, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	return when
}

func TestAYearLaterIsTheSameDayOrThe28th(t *testing.T) {
	for from, want := range map[string]string{
		"2026-11-23T12:00:00Z":      "2027-11-23T12:00:00Z",
		"2028-02-29T12:00:00Z":      "2029-02-28T12:00:00Z",
		"2028-02-28T12:00:00Z":      "2029-02-28T12:00:00Z",
		"2027-02-28T23:59:59Z":      "2028-02-28T23:59:59Z",
		"2027-03-01T00:00:00Z":      "2028-03-01T00:00:00Z",
		"2028-02-29T23:30:00-05:00": "2029-03-01T04:30:00Z", // already 1 March in UTC
		"2028-03-01T01:00:00+05:00": "2029-02-28T20:00:00Z", // still 29 February in UTC
	} {
		if got := oneYearAfter(at(from)); !got.Equal(at(want)) {
			t.Errorf("a year after %s is %s, want %s", from, got, want)
		}
	}
}

func TestExpireTimeIsWithinAYear(t *testing.T) {
	now := at("2026-11-23T12:00:00Z")
	year := at("2027-11-23T12:00:00Z")
	for name, c := range map[string]struct {
		asked *time.Time
		want  time.Time
		bad   bool
	}{
		"nothing":               {nil, year, false},
		"an hour":               {new(now.Add(time.Hour)), now.Add(time.Hour), false},
		"an hour, elsewhere":    {new(now.Add(time.Hour).In(time.FixedZone("", 3600))), now.Add(time.Hour), false},
		"exactly a year":        {new(year), year, false},
		"5 minutes over":        {new(year.Add(5 * time.Minute)), year, false},
		"a nanosecond too much": {new(year.Add(5*time.Minute + 1)), year, true},
		"now":                   {new(now), year, true},
		"the past":              {new(now.Add(-time.Second)), year, true},
		"the zero Time":         {new(time.Time{}), year, true},
		"the year 0":            {new(time.Time{}.Add(-1)), year, true},
		"the year 10000":        {new(time.Unix(253402300800, 0)), year, true},
	} {
		var fields problem.Fields
		got := checkExpireTime(&fields, c.asked, now)
		if (fields.Err() != nil) != c.bad || !c.bad && !got.Equal(c.want) {
			t.Errorf("%s: %v, %v", name, got, fields.Err())
		}
	}
}

func TestRotationKeepsTheLifeOfASecretUpToAYear(t *testing.T) {
	secret := func(from, to string) *storagev1.SecretRecord {
		return &storagev1.SecretRecord{CreateTime: timestamppb.New(at(from)), ExpireTime: timestamppb.New(at(to))}
	}
	now := at("2026-11-23T12:00:00Z")
	if got := sameLife(secret("2026-01-01T00:00:00Z", "2026-01-31T00:00:00Z"), now); !got.Equal(now.AddDate(0, 0, 30)) {
		t.Errorf("30 days become %v", got)
	}
	// A year with a 29 February has 366 days, which from now on would be over a year.
	if got := sameLife(secret("2027-06-01T00:00:00Z", "2028-06-01T00:00:00Z"), now); !got.Equal(oneYearAfter(now)) {
		t.Errorf("a long year becomes %v", got)
	}
}

// FuzzPageToken: a list accepts only the exact text that it gave out for the same filters.
func FuzzPageToken(f *testing.F) {
	digest := pageDigest("keys", KeyQuery{WorkspaceID: "acme"})
	f.Add(makePageToken("42", digest))
	f.Add(makePageToken("42", pageDigest("keys", KeyQuery{WorkspaceID: "blue"})))
	f.Add("")
	f.Add("AAAA")
	f.Add(strings.Repeat("A", 2000))
	f.Fuzz(func(t *testing.T, text string) {
		var fields problem.Fields
		cursor := parsePageToken(&fields, text, digest)
		if fields.Err() != nil {
			if cursor != "" {
				t.Errorf("refused, but with cursor %q", cursor)
			}
			return
		}
		if makePageToken(cursor, digest) != text {
			t.Errorf("%q was taken for cursor %q, whose token is another", text, cursor)
		}
	})
}
