package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/scribe-mail/keysvc/internal/strictyaml"
)

// kind is the type of a setting: how its text is read and written, and which values are
// allowed. A setting has one text; a repeated setting has any number of texts.
type kind struct {
	// name is shown for the value in the help of a flag: "int", "duration", "bool", …
	name string
	// allowed names the allowed values, for people; "" if the setting's own text names them.
	allowed string
	// words are the values that can be completed; nil if there are too many.
	words []string
	// repeated is set for a list.
	repeated bool
	// read returns the texts of a YAML value. ok is false if the value has a wrong type; the
	// mistake is then recorded in the Mistakes of the document.
	read func(value strictyaml.Value) (texts []string, ok bool)
	// set changes the settings to the texts. It changes nothing if it returns an error.
	set func(settings *Settings, texts []string) error
	// texts returns the texts that set would need for the value that the settings have.
	texts func(settings *Settings) []string
	// check returns an error if the settings have a value that is not allowed. set checks
	// too; check is for settings that code has changed.
	check func(settings *Settings) error
	// copy copies the value.
	copy func(to, from *Settings)
}

// scalar returns a kind with one value. parse reads a text, format writes a text, and check
// says what is wrong with a value.
func scalar[T any](
	name string, field func(*Settings) *T,
	parse func(string) (T, error), format func(T) string, check func(T) error,
	read func(strictyaml.Value) ([]string, bool),
) kind {
	return kind{
		name: name,
		read: read,
		set: func(settings *Settings, texts []string) error {
			value, err := parse(texts[len(texts)-1]) // of a flag that is repeated, the last one
			if err != nil {
				return err
			}
			if err := check(value); err != nil {
				return err
			}
			*field(settings) = value
			return nil
		},
		texts: func(settings *Settings) []string { return []string{format(*field(settings))} },
		check: func(settings *Settings) error { return check(*field(settings)) },
		copy:  func(to, from *Settings) { *field(to) = *field(from) },
	}
}

// anyValue allows every value.
func anyValue[T any](T) error { return nil }

// text is any text that check accepts.
func text(field func(*Settings) *string, check func(string) error) kind {
	same := func(text string) (string, error) { return text, nil }
	return scalar("string", field, same, func(text string) string { return text }, check, readText)
}

// boolean is true or false.
func boolean(field func(*Settings) *bool) kind {
	parse := func(text string) (bool, error) {
		value, err := strconv.ParseBool(text)
		if err != nil {
			return false, fmt.Errorf("is %s, allowed are true and false", strictyaml.Quote(text))
		}
		return value, nil
	}
	k := scalar("bool", field, parse, strconv.FormatBool, anyValue, readBool)
	k.allowed = "true or false"
	return k
}

// number is a whole number from minimum to maximum.
func number(field func(*Settings) *int, minimum, maximum int) kind {
	allowed := fmt.Sprintf("%d to %d", minimum, maximum)
	parse := func(text string) (int, error) {
		value, err := strconv.Atoi(text)
		if err != nil {
			return 0, fmt.Errorf("is %s, allowed are %s, in decimal digits", strictyaml.Quote(text), allowed)
		}
		return value, nil
	}
	check := func(value int) error {
		if value < minimum || value > maximum {
			return fmt.Errorf("is %d, allowed are %s", value, allowed)
		}
		return nil
	}
	k := scalar("int", field, parse, strconv.Itoa, check, readNumber)
	k.allowed = allowed
	return k
}

// duration is a time from minimum to maximum, as in 1m30s.
func duration(field func(*Settings) *time.Duration, minimum, maximum time.Duration) kind {
	allowed := shortDuration(minimum) + " to " + shortDuration(maximum)
	parse := func(text string) (time.Duration, error) {
		value, err := time.ParseDuration(text)
		if err != nil {
			return 0, fmt.Errorf("is %s, allowed are %s, written as in 1m30s", strictyaml.Quote(text), allowed)
		}
		return value, nil
	}
	check := func(value time.Duration) error {
		if value < minimum || value > maximum {
			return fmt.Errorf("is %s, allowed are %s", value, allowed)
		}
		return nil
	}
	k := scalar("duration", field, parse, shortDuration, check, readDuration)
	k.allowed = allowed
	return k
}

// optionalDuration is a duration that may be missing; its value is 0 then.
func optionalDuration(field func(*Settings) *time.Duration, minimum, maximum time.Duration) kind {
	given := duration(field, minimum, maximum)
	k := given
	k.set = func(settings *Settings, texts []string) error {
		if texts[len(texts)-1] == "" {
			*field(settings) = 0
			return nil
		}
		return given.set(settings, texts)
	}
	k.texts = func(settings *Settings) []string {
		if *field(settings) == 0 {
			return []string{""}
		}
		return given.texts(settings)
	}
	k.check = func(settings *Settings) error {
		if *field(settings) == 0 {
			return nil
		}
		return given.check(settings)
	}
	return k
}

// shortDuration writes 1h for 1h0m0s.
func shortDuration(value time.Duration) string {
	text := value.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// level is a level of the log.
func level(field func(*Settings) *slog.Level) kind {
	words := []string{"debug", "info", "warn", "error"}
	parse := func(text string) (slog.Level, error) {
		var value slog.Level
		if err := value.UnmarshalText([]byte(text)); err != nil {
			return 0, fmt.Errorf("is %s, allowed %s", strictyaml.Quote(text), list(words))
		}
		return value, nil
	}
	format := func(value slog.Level) string { return strings.ToLower(value.String()) }
	k := scalar("level", field, parse, format, anyValue, readText)
	k.allowed, k.words = strings.Join(words, ", "), words
	return k
}

// fileMode is a mode in octal digits that lets the owner read and write, and nobody execute.
func fileMode(field func(*Settings) *fs.FileMode) kind {
	const allowed = "0600 to 0666, in octal digits"
	parse := func(text string) (fs.FileMode, error) {
		mode, err := strconv.ParseUint(text, 8, 32)
		if err != nil {
			return 0, fmt.Errorf("is %s, allowed are %s", strictyaml.Quote(text), allowed)
		}
		return fs.FileMode(mode), nil
	}
	format := func(mode fs.FileMode) string { return fmt.Sprintf("%04o", uint32(mode)) }
	check := func(mode fs.FileMode) error {
		if mode&^0o666 != 0 || mode&0o600 != 0o600 {
			return fmt.Errorf("is %s, allowed are %s", format(mode), allowed)
		}
		return nil
	}
	read := func(value strictyaml.Value) ([]string, bool) {
		text, ok := value.TextOf(`a mode in quotes, as in "0660"`)
		return []string{text}, ok
	}
	k := scalar("mode", field, parse, format, check, read)
	k.allowed = allowed
	return k
}

// word is one of a few words.
func word[T ~string](field func(*Settings) *T, allowed ...T) kind {
	words := make([]string, len(allowed))
	for i, value := range allowed {
		words[i] = string(value)
	}
	check := func(value T) error {
		if !slices.Contains(allowed, value) {
			return fmt.Errorf("is %s, allowed %s", strictyaml.Quote(string(value)), list(words))
		}
		return nil
	}
	parse := func(text string) (T, error) { return T(text), nil }
	k := scalar("word", field, parse, func(value T) string { return string(value) }, check, readText)
	k.allowed, k.words = strings.Join(words, ", "), words
	return k
}

// repeated is a list of values, each with one text.
func repeated[T fmt.Stringer](name string, field func(*Settings) *[]T, parse func(string) (T, error), check func(T) error) kind {
	return kind{
		name:     name,
		repeated: true,
		read:     readTexts,
		set: func(settings *Settings, texts []string) error {
			var values []T
			for _, text := range texts {
				value, err := parse(text)
				if err != nil {
					return err
				}
				values = append(values, value)
			}
			*field(settings) = values
			return nil
		},
		texts: func(settings *Settings) []string {
			var texts []string
			for _, value := range *field(settings) {
				texts = append(texts, value.String())
			}
			return texts
		},
		check: func(settings *Settings) error {
			for _, value := range *field(settings) {
				if err := check(value); err != nil {
					return err
				}
			}
			return nil
		},
		copy: func(to, from *Settings) { *field(to) = slices.Clone(*field(from)) },
	}
}

// notEmpty refuses "".
func notEmpty(what string) func(string) error {
	return func(text string) error {
		if text == "" {
			return errors.New("is empty, it must name " + what)
		}
		return nil
	}
}

func readText(value strictyaml.Value) ([]string, bool) {
	text, ok := value.TextOK()
	return []string{text}, ok
}

// readDuration reads a text. People forget the unit, and YAML then has a number.
func readDuration(value strictyaml.Value) ([]string, bool) {
	text, ok := value.TextOf("a time with its unit, as in 1m30s")
	return []string{text}, ok
}

func readTexts(value strictyaml.Value) ([]string, bool) {
	elements := value.List()
	texts, ok := make([]string, 0, len(elements)), elements != nil
	for _, element := range elements {
		text, isText := element.TextOK()
		texts, ok = append(texts, text), ok && isText
	}
	return texts, ok
}

func readNumber(value strictyaml.Value) ([]string, bool) {
	number, ok := value.Number()
	return []string{strconv.Itoa(number)}, ok
}

func readBool(value strictyaml.Value) ([]string, bool) {
	truth, ok := value.Bool()
	return []string{strconv.FormatBool(truth)}, ok
}

// list writes "are a, b and c", or "is a" for a single word.
func list(words []string) string {
	last := len(words) - 1
	if last == 0 {
		return "is " + words[0]
	}
	return "are " + strings.Join(words[:last], ", ") + " and " + words[last]
}
