package keyscreen_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyscreen"
)

func TestScreenHasTheLanguageAndTheTimeZoneOfTheMember(t *testing.T) {
	berlin := time.FixedZone("CET", 3600)
	tag := "de"
	p := newProduct(t, func(config *keyscreen.Config) {
		config.Languages = []*keyscreen.Language{keyscreen.English(), keyscreen.German()}
		config.Locale = func(*http.Request) (string, *time.Location) { return tag, berlin }
	})
	p.newKey("Export", "signatures:read", "signatures:write")
	page := p.get("/").want(http.StatusOK, "API-Schlüssel", "Lesen, Schreiben", "in 12 Monaten", "01.03.2027", "1 Schlüssel")
	if !strings.Contains(page.body, `title="01.03.2027, 13:00 CET"`) || !strings.Contains(page.body, `<html lang="de"`) {
		t.Error("the time zone or the language is not used")
	}
	tag = "xx"
	p.get("/").want(http.StatusOK, "API keys", "Read, Write")
}

func TestLanguageFilesAreChecked(t *testing.T) {
	change := func(edit func(*keyscreen.Language)) string {
		language := keyscreen.German()
		edit(language)
		text, err := json.Marshal(language)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if _, err := keyscreen.ParseLanguage([]byte(change(func(*keyscreen.Language) {}))); err != nil {
		t.Errorf("German: %v", err)
	}
	for want, text := range map[string]string{
		"the message cancel is missing":          change(func(l *keyscreen.Language) { delete(l.Messages, "cancel") }),
		"the message extra is not known":         change(func(l *keyscreen.Language) { l.Messages["extra"] = "x" }),
		"the message time.past has the places":   change(func(l *keyscreen.Language) { l.Messages["time.past"] = "vorher" }),
		"tag is \"\"":                            change(func(l *keyscreen.Language) { l.Tag = "" }),
		"date or date_time is missing":           change(func(l *keyscreen.Language) { l.Date = "" }),
		"unknown field":                          `{"tags": "de"}`,
		"keyscreen: language: unexpected EOF":    `{`,
		"keyscreen: language \"x\": the message": `{"tag": "x", "date": "2", "date_time": "2"}`,
	} {
		if _, err := keyscreen.ParseLanguage([]byte(text)); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestEveryMessageIsUsed: the templates and the code ask for messages that exist, and for all of them.
func TestEveryMessageIsUsed(t *testing.T) {
	var text strings.Builder
	for _, pattern := range []string{"*.go", "templates/*.html"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !strings.HasSuffix(name, "_test.go") {
				content, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				text.Write(content)
			}
		}
	}
	messages := keyscreen.English().Messages
	for _, found := range regexp.MustCompile(`\.T "([a-z0-9_.]+)"|\.T\("([a-z0-9_.]+)"[,)]`).FindAllStringSubmatch(text.String(), -1) {
		if key := found[1] + found[2]; messages[key] == "" {
			t.Errorf("the message %s is not there", key)
		}
	}
	// Keys that are put together.
	built := regexp.MustCompile(`^(view|overlap|expiry|done)\.|\.title$`)
	for key := range messages {
		name := strings.TrimSuffix(strings.TrimSuffix(key, ".one"), ".other")
		if !built.MatchString(key) && !strings.Contains(text.String(), `"`+name+`"`) {
			t.Errorf("the message %s is not used", key)
		}
	}
}

// TestRelativeTimes: a moment after seven days were chosen, the time left is seven days.
func TestRelativeTimes(t *testing.T) {
	p := newProduct(t, nil)
	id, _ := p.newKey("mine", "signatures:read")
	p.post("/keys/"+id+"/replace", map[string][]string{"overlap": {"7d"}})
	for _, step := range []struct {
		after time.Duration
		want  string
	}{
		{0, "in 7 days"},
		{time.Second, "in 7 days"},
		{11 * time.Hour, "in 7 days"},
		{13 * time.Hour, "in 6 days"},
		{6*24*time.Hour + 10*time.Hour, "in 14 hours"},
		{7*24*time.Hour - 90*time.Second, "in 2 minutes"},
		{7*24*time.Hour - time.Second, "in 1 minute"},
	} {
		after, want := step.after, step.want
		later := tableAfter(p, after)
		if !strings.Contains(later, "("+want+")") {
			t.Errorf("after %s: %q is not in\n%s", after, want, later)
		}
	}
}

// tableAfter returns the table as it is a time after the start.
func tableAfter(p *product, after time.Duration) string {
	p.clock.Advance(testTime.Add(after).Sub(p.clock.Now()))
	return p.get("/").text()
}
