package keyscreen

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Language is how the screen speaks. A file of one is JSON with these fields; English is the model.
type Language struct {
	// Tag is the tag of the language by BCP 47, such as "en" or "de".
	Tag string `json:"tag"`
	// Date and DateTime are the forms of dates, and of dates with a time, as layouts of Go's package time:
	// the time "02 Jan 2006 15:04" stands for itself. Names of months are English, so other languages
	// should use numbers, such as "02.01.2006 15:04".
	Date     string `json:"date"`
	DateTime string `json:"date_time"`
	// Messages are the texts, by key. {n} and the like stand for what is put in. A key that ends in ".one"
	// is for the number 1, and ".other" for every other number. All keys of English are required, with the
	// same places.
	Messages map[string]string `json:"messages"`
	// Titles replace titles of the policy: "resource.NAME", "action.NAME". May be empty.
	Titles map[string]string `json:"titles"`
}

//go:embed languages/*.json
var languageFiles embed.FS

// English returns the language that is used by default. The caller may change its copy.
func English() *Language { return builtIn("en") }

// German returns German. The caller may change its copy.
func German() *Language { return builtIn("de") }

func builtIn(tag string) *Language {
	text, err := languageFiles.ReadFile("languages/" + tag + ".json")
	if err != nil {
		panic(err) // it was embedded when the program was built
	}
	language := new(Language)
	if err := json.Unmarshal(text, language); err != nil {
		panic(err)
	}
	return language
}

// ParseLanguage reads the file of a language. The error names every key that is missing, not known, or
// has other places than in English.
func ParseLanguage(text []byte) (*Language, error) {
	language := new(Language)
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(language); err != nil {
		return nil, fmt.Errorf("keyscreen: language: %w", err)
	}
	return language, language.check()
}

var placePattern = regexp.MustCompile(`\{[a-z]+\}`)

// places returns the places of a message, sorted.
func places(message string) string {
	found := placePattern.FindAllString(message, -1)
	slices.Sort(found)
	return strings.Join(slices.Compact(found), " ")
}

// check returns what is wrong with a language.
func (l *Language) check() error {
	var wrong []error
	if l.Tag == "" || strings.Trim(l.Tag, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
		wrong = append(wrong, fmt.Errorf("tag is %q; letters, digits and - are allowed", l.Tag))
	}
	if l.Date == "" || l.DateTime == "" {
		wrong = append(wrong, errors.New("date or date_time is missing"))
	}
	model := English().Messages
	for _, key := range slices.Sorted(maps.Keys(model)) {
		switch message, has := l.Messages[key]; {
		case !has || message == "":
			wrong = append(wrong, fmt.Errorf("the message %s is missing", key))
		case places(message) != places(model[key]) && !strings.HasSuffix(key, ".one"):
			wrong = append(wrong, fmt.Errorf("the message %s has the places %q; %q are required", key, places(message), places(model[key])))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(l.Messages)) {
		if _, has := model[key]; !has {
			wrong = append(wrong, fmt.Errorf("the message %s is not known", key))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("keyscreen: language %q: %w", l.Tag, errors.Join(wrong...))
	}
	return nil
}

// has reports whether there is a message.
func (l *Language) has(key string) bool { return l.Messages[key] != "" }

// text returns a message. arguments are names of places and what is put there, in pairs.
func (l *Language) text(key string, arguments ...any) string {
	message := l.Messages[key]
	if message == "" {
		return key // a fault of ours, which a test finds
	}
	if len(arguments) == 0 {
		return message
	}
	pairs := make([]string, 0, len(arguments))
	for index := 0; index+1 < len(arguments); index += 2 {
		pairs = append(pairs, fmt.Sprintf("{%v}", arguments[index]), fmt.Sprint(arguments[index+1]))
	}
	return strings.NewReplacer(pairs...).Replace(message)
}

// count returns a message about a number.
func (l *Language) count(key string, n int) string {
	if n == 1 {
		return l.text(key+".one", "n", n)
	}
	return l.text(key+".other", "n", n)
}

// duration returns a length of time in words, in its largest unit, rounded to the nearest.
func (l *Language) duration(d time.Duration) string {
	const day, month = 24 * time.Hour, 30 * 24 * time.Hour
	switch {
	case d.Round(time.Minute) < time.Hour:
		return l.count("time.minutes", max(int(d.Round(time.Minute)/time.Minute), 1))
	case d.Round(time.Hour) < day:
		return l.count("time.hours", int(d.Round(time.Hour)/time.Hour))
	case d.Round(day) < 2*month:
		return l.count("time.days", int(d.Round(day)/day))
	default:
		return l.count("time.months", int(d.Round(month)/month))
	}
}

// relative returns how far a time is from now, in words.
func (l *Language) relative(at, now time.Time) string {
	switch d := at.Sub(now); {
	case d > -time.Minute && d <= 0:
		return l.text("time.now")
	case d > 0:
		return l.text("time.future", "time", l.duration(d))
	default:
		return l.text("time.past", "time", l.duration(-d))
	}
}
