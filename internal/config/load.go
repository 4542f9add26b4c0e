package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/scribe-mail/keysvc/internal/strictyaml"
)

const (
	// FileFlag is the flag that names the configuration file, without dashes.
	FileFlag = "config"
	// FileVariable is the environment variable that names it.
	FileVariable = "KEYSVC_CONFIG"

	// maxFile bounds the text of a configuration file, in bytes.
	maxFile = 1 << 20
)

// OriginKind is the kind of source that a value came from.
type OriginKind int

// The sources, in the order of precedence: a later one wins over an earlier one.
const (
	// FromDefault is for a value that no source has.
	FromDefault OriginKind = iota
	// FromFile is for a value of the configuration file.
	FromFile
	// FromVariable is for a value of an environment variable.
	FromVariable
	// FromFlag is for a value of the command line.
	FromFlag
)

// Origin is where a value came from.
type Origin struct {
	Kind OriginKind
	// Name is the flag with its dashes, the variable, or the file; "" for a default.
	Name string
	// Line and Column are the position in the file, from 1; Column is 0 if it is not known.
	Line, Column int
}

// String returns "--max-streams", "KEYSVC_MAX_STREAMS", "keysvc.yaml:3" or "default".
func (o Origin) String() string {
	switch o.Kind {
	case FromFlag, FromVariable:
		return o.Name
	case FromFile:
		return fmt.Sprintf("%s:%d", o.Name, o.Line)
	case FromDefault:
	}
	return "default"
}

// position returns "file:line:column", as editors and compilers have it.
func (o Origin) position() string {
	if o.Column == 0 {
		return o.String()
	}
	return fmt.Sprintf("%s:%d:%d", o.Name, o.Line, o.Column)
}

// Source is where Load looks for settings.
type Source struct {
	// Defaults has the values of the settings that no source gives. Required.
	Defaults Settings
	// Flags has the texts of each flag that was given, by name without dashes, in the order
	// of the command line. FileFlag is one of them.
	Flags map[string][]string
	// Getenv reads an environment variable; nil means there are none. An empty variable counts
	// as not set, so that a script can pass on a variable that it may not have.
	Getenv func(name string) string
	// ReadFile reads the configuration file; nil means os.ReadFile.
	ReadFile func(name string) ([]byte, error)
}

// Loaded has settings, and the origin of each.
type Loaded struct {
	Settings Settings
	// File is the configuration file; "" if none was named.
	File string

	origins map[string]Origin
}

// Origin returns where the setting of that name came from.
func (l Loaded) Origin(name string) Origin { return l.origins[name] }

// Errors is every mistake that Load found, at least one.
type Errors []*FieldError

// Error returns one line for each mistake.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, mistake := range e {
		lines[i] = mistake.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the mistakes to errors.Is and errors.As.
func (e Errors) Unwrap() []error {
	list := make([]error, len(e))
	for i, mistake := range e {
		list[i] = mistake
	}
	return list
}

// Load reads the file, the variables and the flags; a flag wins over a variable, a variable
// over the file, and the file over the default. Every value that is given must be allowed,
// even if another source overrides it. Variables that belong to no setting are ignored; fields
// of the file that belong to no setting are mistakes. Load can be called again, and then
// returns what the sources have at that time.
//
// The error is an Errors if settings are wrong. If the file cannot be read, it wraps the error
// of ReadFile.
func (s Source) Load() (Loaded, error) {
	l := loader{loaded: Loaded{Settings: s.Defaults, origins: map[string]Origin{}}}
	getenv := s.Getenv
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	// From the weakest source to the strongest: the value that is set last wins.
	l.loaded.File = getenv(FileVariable)
	if texts, given := s.Flags[FileFlag]; given {
		l.loaded.File = texts[len(texts)-1]
	}
	if l.loaded.File != "" {
		if err := l.takeFile(l.loaded.File, s.ReadFile); err != nil {
			return Loaded{}, err
		}
	}
	for _, setting := range table {
		if value := getenv(setting.Variable()); value != "" {
			texts := []string{value}
			if setting.Repeated() {
				texts = splitList(value)
			}
			l.take(setting, texts, Origin{Kind: FromVariable, Name: setting.Variable()})
		}
	}
	for _, setting := range table {
		if texts, given := s.Flags[setting.Name]; given {
			l.take(setting, texts, Origin{Kind: FromFlag, Name: "--" + setting.Name})
		}
	}
	if len(l.mistakes) == 0 {
		l.validate()
	}
	if len(l.mistakes) > 0 {
		return Loaded{}, l.mistakes
	}
	return l.loaded, nil
}

// splitList splits a variable at its commas. Spaces around an element do not count.
func splitList(value string) []string {
	texts := strings.Split(value, ",")
	for i, text := range texts {
		texts[i] = strings.TrimSpace(text)
	}
	return texts
}

// loader is one call of Load.
type loader struct {
	loaded   Loaded
	mistakes Errors
}

// take sets a setting to a value of a source.
func (l *loader) take(setting Setting, texts []string, origin Origin) {
	if err := setting.set(&l.loaded.Settings, texts); err != nil {
		l.mistakes = append(l.mistakes, &FieldError{Field: setting.Name, Origin: origin, Problem: err.Error()})
		return
	}
	l.loaded.origins[setting.Name] = origin
}

// takeFile sets what the configuration file has. A file of comments alone is allowed.
func (l *loader) takeFile(file string, readFile func(string) ([]byte, error)) error {
	if readFile == nil {
		readFile = os.ReadFile
	}
	text, err := readFile(file)
	if err != nil {
		return fmt.Errorf("reading the configuration file: %w", err)
	}
	root, found := strictyaml.Parse(file, text, strictyaml.Form{MaxBytes: maxFile, AllowEmpty: true})
	names := make([]string, len(table))
	for i, setting := range table {
		names[i] = setting.Name
	}
	fields := root.Mapping(names...)
	for _, setting := range table {
		value := fields[setting.Name]
		if !value.Present() {
			continue
		}
		texts, ok := setting.kind.read(value)
		if !ok {
			continue // the mistake is in found
		}
		if err := setting.set(&l.loaded.Settings, texts); err != nil {
			value.Refuse("%s", err)
			continue
		}
		l.loaded.origins[setting.Name] = Origin{Kind: FromFile, Name: file, Line: value.Line(), Column: value.Column()}
	}
	l.mistakes = append(l.mistakes, mistakesOfFile(table, found.Err())...)
	return nil
}

// mistakesOfFile turns the Errors of a file into those of settings.
func mistakesOfFile(settings []Setting, err error) Errors {
	var wrong strictyaml.Errors
	if !errors.As(err, &wrong) {
		return nil
	}
	mistakes := make(Errors, len(wrong))
	for i, mistake := range wrong {
		mistakes[i] = &FieldError{
			Field:   mistake.Field,
			Origin:  Origin{Kind: FromFile, Name: mistake.File, Line: mistake.Line, Column: mistake.Column},
			Problem: mistake.Problem,
		}
		if isSecret(settings, mistake.Field) { // the problem may repeat a value of a wrong type
			mistakes[i].Problem = errSecret.Error()
		}
	}
	return mistakes
}

// isSecret reports whether a field of the file is a secret, or an element of one.
func isSecret(settings []Setting, field string) bool {
	name, _, _ := strings.Cut(field, "[")
	return slices.ContainsFunc(settings, func(setting Setting) bool { return setting.Name == name && setting.Secret })
}

// validate checks the rules that concern several settings.
func (l *loader) validate() {
	err := l.loaded.Settings.Validate()
	if err == nil {
		return
	}
	wrong, isField := errors.AsType[*FieldError](err)
	if !isField {
		wrong = &FieldError{Field: strictyaml.Document, Problem: err.Error()}
	}
	wrong.Origin = l.loaded.origins[wrong.Field]
	l.mistakes = append(l.mistakes, wrong)
}
