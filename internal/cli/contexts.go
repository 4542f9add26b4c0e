package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/scribe-mail/keysvc/internal/strictyaml"
	"github.com/scribe-mail/keysvc/internal/transport"
)

// maxContextsBytes bounds the file of contexts.
const maxContextsBytes = 1 << 20

// contextName is what a context may be called.
var contextName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// clientContext is a server, and how to be a caller of it.
type clientContext struct {
	name string
	// values are the settings, by the names of their flags.
	values map[string]string
}

// contexts is the file of contexts.
type contexts struct {
	file    string
	current string
	list    []*clientContext
}

// contextFields are the settings that a context may have.
func contextFields() []string {
	var names []string
	for _, variable := range transport.Variables() {
		names = append(names, variable.Flag)
	}
	return append(names, workspaceFlagName)
}

// contextsFile returns the path of the file of contexts.
func (a *app) contextsFile() (string, error) {
	folder := a.Getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(folder) { // the XDG Base Directory Specification wants other values ignored
		home := a.Getenv("HOME")
		if !filepath.IsAbs(home) {
			return "", errNoConfigFolder
		}
		folder = filepath.Join(home, ".config")
	}
	return filepath.Join(folder, "keysvc", "contexts.yaml"), nil
}

// readContexts reads the file of contexts. Without a file there are none. A file that others may
// change is refused, because it says whom a token is sent to.
func (a *app) readContexts() (*contexts, error) {
	file, err := a.contextsFile()
	if err != nil {
		return &contexts{}, nil //nolint:nilerr // there is no such file
	}
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return &contexts{file: file}, nil
	case err != nil:
		return nil, fmt.Errorf("contexts: %w", err)
	case info.Mode().Perm()&0o022 != 0:
		return nil, &commandLineError{fmt.Sprintf("%s: others may change it (mode %04o); it says whom a token is sent to. Look at it, then: chmod 600 %[1]s", file, info.Mode().Perm())}
	case info.Size() > maxContextsBytes:
		return nil, &commandLineError{fmt.Sprintf("%s: has %s, allowed are up to %d", file, count(info.Size(), "byte"), maxContextsBytes)}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("contexts: %w", err)
	}
	return parseContexts(file, text)
}

// parseContexts reads the text of a file of contexts. The error has every mistake, with line and
// column.
func parseContexts(file string, text []byte) (*contexts, error) {
	root, mistakes := strictyaml.Parse(file, text, strictyaml.Form{MaxBytes: maxContextsBytes, AllowEmpty: true})
	fields := root.Mapping("current", "contexts")
	c := &contexts{file: file, current: fields["current"].Text()}
	for _, element := range fields["contexts"].List() {
		one := &clientContext{values: map[string]string{}}
		parts := element.Mapping(append([]string{"name"}, contextFields()...)...)
		if parts == nil {
			continue
		}
		one.name = parts["name"].Text()
		switch {
		case !parts["name"].Present():
			element.Refuse("has no name, each context needs one")
		case one.name != "" && !contextName.MatchString(one.name):
			parts["name"].Refuse("is %s, allowed are up to 64 letters, digits, dots, dashes and underscores", strictyaml.Quote(one.name))
		case c.find(one.name) != nil:
			parts["name"].Refuse("is %s, which another context has already", strictyaml.Quote(one.name))
		}
		for _, name := range contextFields() {
			if value := parts[name].Text(); value != "" {
				one.values[name] = value
			}
		}
		c.list = append(c.list, one)
	}
	if c.current != "" && c.find(c.current) == nil {
		mistakes.Add("current", "is %s, which is none of the contexts", strictyaml.Quote(c.current))
	}
	if err := mistakes.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

// find returns the context of a name; nil if no context has it.
func (c *contexts) find(name string) *clientContext {
	for _, one := range c.list {
		if one.name == name {
			return one
		}
	}
	return nil
}

// known lists the names of the contexts, for a message about one that there is not.
func (c *contexts) known() string {
	if len(c.list) == 0 {
		return "; there is none yet: keysvc context set makes one"
	}
	names := make([]string, len(c.list))
	for index, one := range c.list {
		names[index] = one.name
	}
	return "; there are: " + strings.Join(names, ", ")
}

// write replaces the file, with mode 0600, in a folder of mode 0700.
func (c *contexts) write() error {
	text, err := c.yaml()
	if err != nil {
		return err
	}
	folder := filepath.Dir(c.file)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return fmt.Errorf("contexts: %w", err)
	}
	next, err := os.CreateTemp(folder, ".contexts-*") // its mode is 0600
	if err != nil {
		return fmt.Errorf("contexts: %w", err)
	}
	_, err = next.Write(text)
	if err = errors.Join(err, next.Close()); err == nil {
		err = os.Rename(next.Name(), c.file)
	}
	if err != nil {
		return fmt.Errorf("contexts: %w", errors.Join(err, os.Remove(next.Name())))
	}
	return nil
}

// yaml returns the text of the file.
func (c *contexts) yaml() ([]byte, error) {
	elements := make([]json.RawMessage, len(c.list))
	for index, one := range c.list {
		fields := []string{`"name":` + quoted(one.name)}
		for _, name := range contextFields() {
			if value := one.values[name]; value != "" {
				fields = append(fields, quoted(name)+":"+quoted(value))
			}
		}
		elements[index] = json.RawMessage("{" + strings.Join(fields, ",") + "}")
	}
	document, err := json.Marshal(struct {
		Current  string            `json:"current,omitempty"`
		Contexts []json.RawMessage `json:"contexts"`
	}{c.current, elements})
	if err != nil {
		return nil, err
	}
	text, err := yamlFromJSON(document)
	if err != nil {
		return nil, err
	}
	return append([]byte("# Written by keysvc context.\n"), text...), nil
}

func quoted(text string) string {
	encoded, err := json.Marshal(text)
	if err != nil {
		return `""` // a string can always be encoded
	}
	return string(encoded)
}
