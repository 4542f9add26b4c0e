package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Document returns the policy as canonical YAML: every field is written, in a fixed layout,
// and lists keep their order. Titles, descriptions and actions are written only if there are any: so
// the document of a policy without them is the one that earlier versions wrote. For a valid policy, Parse of the document returns an equal
// policy. Document uses no YAML library, so that Digest does not depend on its version.
func (p *Policy) Document() []byte {
	var text strings.Builder
	line := func(format string, arguments ...any) { fmt.Fprintf(&text, format+"\n", arguments...) }
	list := func(name string, values []string) {
		if len(values) == 0 {
			line("    %s: []", name)
			return
		}
		line("    %s:", name)
		for _, value := range values {
			line("      - %s", scalar(value))
		}
	}
	words := func(title, description string) {
		if title != "" {
			line("    title: %s", strconv.Quote(title))
		}
		if description != "" {
			line("    description: %s", strconv.Quote(description))
		}
	}

	line("version: %d", formatVersion)
	line("token_prefix: %s", scalar(p.TokenPrefix))
	line("resources:")
	for _, resource := range p.Resources {
		line("  - name: %s", scalar(resource.Name))
		words(resource.Title, resource.Description)
		list("actions", resource.Actions)
	}
	if len(p.Actions) > 0 {
		line("actions:")
	}
	for _, action := range p.Actions {
		line("  - name: %s", scalar(action.Name))
		words(action.Title, action.Description)
	}
	line("roles:")
	for _, role := range p.Roles {
		line("  - name: %s", scalar(role.Name))
		list("scopes", role.Scopes)
	}
	line("limits:")
	line("  live_keys_per_workspace: %d", p.Limits.LiveKeysPerWorkspace)
	line("  scopes_per_key: %d", p.Limits.ScopesPerKey)
	line("  key_name_characters: %d", p.Limits.KeyNameCharacters)
	line("retention_days: %s", days(p.Retention))
	return []byte(text.String())
}

// Digest returns "sha256:" and the SHA-256 of Document in 64 hexadecimal digits.
func (p *Policy) Digest() string {
	sum := sha256.Sum256(p.Document())
	return "sha256:" + hex.EncodeToString(sum[:])
}

// TitlesDigest returns "sha256:" and the SHA-256 of all titles and descriptions in 64 hexadecimal
// digits; "" if there are none. It tells whether they changed.
func (p *Policy) TitlesDigest() string {
	var text strings.Builder
	add := func(kind, name, title, description string) {
		if title != "" || description != "" {
			fmt.Fprintf(&text, "%s %q %q %q\n", kind, name, title, description)
		}
	}
	for _, resource := range p.Resources {
		add("resource", resource.Name, resource.Title, resource.Description)
	}
	for _, action := range p.Actions {
		add("action", action.Name, action.Title, action.Description)
	}
	if text.Len() == 0 {
		return ""
	}
	sum := sha256.Sum256([]byte(text.String()))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// notText has every word that a reader of YAML 1.1 or 1.2 may read as a boolean or as null.
var notText = []string{"y", "yes", "n", "no", "on", "off", "true", "false", "null"}

// scalar returns text as a YAML scalar: plain for a name or scope that every reader reads as
// text, quoted otherwise. YAML has the escapes of Go, so even a text of an invalid policy
// stays on its line.
func scalar(text string) string {
	name, action, isScope := strings.Cut(text, ":")
	plain := validName(name, "_-") && (!isScope || action == everything || validName(action, "_"))
	if plain && !slices.Contains(notText, text) {
		return text
	}
	return strconv.Quote(text)
}
