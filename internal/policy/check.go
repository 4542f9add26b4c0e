package policy

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/scribe-mail/keysvc/internal/strictyaml"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	maxNameLength = 64
	maxScopes     = 1000
	maxRoles      = 100
	maxRetention  = 3650 * Day

	maxLiveKeysPerWorkspace = 1_000_000
	maxScopesPerKey         = 1000
	maxKeyNameCharacters    = 1024

	// maxTitle and maxDescription are in characters.
	maxTitle       = 64
	maxDescription = 256

	// maxDocument bounds the canonical document, in bytes, so that the record and its audit
	// event fit into one commit of the store (512 KiB).
	maxDocument = 256 << 10
)

const (
	allowedName     = "allowed are 1 to 64 characters of a-z, 0-9 and _, the first a letter"
	allowedRoleName = "allowed are 1 to 64 characters of a-z, 0-9, _ and -, the first a letter"
	allowedScope    = "allowed are resource:action, resource:* and *"

	allowedRetention = "allowed are 1 to 3650 whole days"
)

// Validate returns nil if the policy is valid, and otherwise an Errors with every mistake.
// Parse calls it; call it for a policy from elsewhere. Validate fills in no defaults: a limit
// of zero is a mistake.
func (p *Policy) Validate() error {
	var found mistakes
	p.check(&found)
	return found.Err()
}

// check applies the rules for the contents of a policy, wherever it came from.
func (p *Policy) check(found *mistakes) {
	if !token.ValidPrefix(p.TokenPrefix) {
		found.Add("token_prefix", "is %s, allowed are 2 to 12 characters of a-z and 0-9, the first a letter", strictyaml.Quote(p.TokenPrefix))
	}
	p.checkResources(found)
	p.checkActions(found)
	p.checkRoles(found)
	checkRange(found, "limits.live_keys_per_workspace", p.Limits.LiveKeysPerWorkspace, maxLiveKeysPerWorkspace)
	checkRange(found, "limits.scopes_per_key", p.Limits.ScopesPerKey, maxScopesPerKey)
	checkRange(found, "limits.key_name_characters", p.Limits.KeyNameCharacters, maxKeyNameCharacters)
	if p.Retention < Day || p.Retention > maxRetention || p.Retention%Day != 0 {
		found.Add("retention_days", "is %s, %s", days(p.Retention), allowedRetention)
	}
	// A policy that passes the other rules is small enough to be written out.
	if found.Len() == 0 {
		if size := len(p.Document()); size > maxDocument {
			found.Add(strictyaml.Document, "has %d bytes in canonical form, allowed are up to %d", size, maxDocument)
		}
	}
}

func (p *Policy) checkResources(found *mistakes) {
	if len(p.Resources) == 0 {
		found.Add("resources", "has none, at least one is needed")
	}
	firsts, scopes := map[string]string{}, 0
	for i, resource := range p.Resources {
		path := fmt.Sprintf("resources[%d]", i)
		checkName(found, firsts, path+".name", resource.Name, "_", allowedName)
		if len(resource.Actions) == 0 {
			found.Add(path+".actions", "has none, at least one is needed")
		}
		checkWords(found, path, resource.Title, resource.Description)
		scopes += len(resource.Actions)
		firstActions := map[string]string{}
		for j, action := range resource.Actions {
			checkName(found, firstActions, fmt.Sprintf("%s.actions[%d]", path, j), action, "_", allowedName)
		}
	}
	if scopes > maxScopes {
		found.Add("resources", "has %d scopes in all, allowed are up to %d", scopes, maxScopes)
	}
}

// checkActions checks the titles of actions.
func (p *Policy) checkActions(found *mistakes) {
	known := map[string]bool{}
	for _, resource := range p.Resources {
		for _, action := range resource.Actions {
			known[action] = true
		}
	}
	wholeCatalogue := !found.AnyUnread("resources")
	firsts := map[string]string{}
	for i, action := range p.Actions {
		path := fmt.Sprintf("actions[%d]", i)
		checkName(found, firsts, path+".name", action.Name, "_", allowedName)
		if wholeCatalogue && validName(action.Name, "_") && !known[action.Name] {
			found.Add(path+".name", "is %s, but no resource has this action, allowed are those under resources", strictyaml.Quote(action.Name))
		}
		checkWords(found, path, action.Title, action.Description)
	}
}

// checkWords checks the title and the description of the thing at a path.
func checkWords(found *mistakes, path, title, description string) {
	checkText(found, path+".title", title, maxTitle)
	checkText(found, path+".description", description, maxDescription)
}

// checkText checks a text for people. The text is not repeated: it may be a token.
func checkText(found *mistakes, field, text string, maximum int) {
	switch count := utf8.RuneCountInString(text); {
	case token.In(text):
		found.Add(field, "holds what looks like a token, allowed are words for people")
	case count > maximum:
		found.Add(field, "has %d characters, allowed are up to %d", count, maximum)
	case !utf8.ValidString(text):
		found.Add(field, "is not valid UTF-8, allowed is UTF-8 only")
	case strings.ContainsFunc(text, showsNothing):
		found.Add(field, "has a control, invisible or other unprintable character, allowed are printable ones and the space")
	case text != strings.TrimSpace(text):
		found.Add(field, "begins or ends with a space, allowed are spaces inside")
	}
}

// blank is the empty pattern of Braille, which counts as a symbol and shows nothing.
const blank = '\u2800'

// showsNothing reports whether a character shows nothing at its place. Unlike in the names of keys,
// joiners and variation selectors are refused everywhere: the few who write policies can do without.
func showsNothing(r rune) bool {
	return r == blank || !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

func (p *Policy) checkRoles(found *mistakes) {
	switch {
	case len(p.Roles) == 0:
		found.Add("roles", "has none, at least one is needed")
	case len(p.Roles) > maxRoles:
		found.Add("roles", "has %d, allowed are up to %d", len(p.Roles), maxRoles)
	}
	catalogue := map[string]bool{everything: true}
	for _, resource := range p.Resources {
		catalogue[scopeName(resource.Name, everything)] = true
		for _, action := range resource.Actions {
			catalogue[scopeName(resource.Name, action)] = true
		}
	}
	// If a part of the catalogue could not be read, most scopes would be reported as missing.
	wholeCatalogue := !found.AnyUnread("resources")

	firsts := map[string]string{}
	for i, role := range p.Roles {
		path := fmt.Sprintf("roles[%d]", i)
		checkName(found, firsts, path+".name", role.Name, "_-", allowedRoleName)
		firstScopes := map[string]string{}
		for j, scope := range role.Scopes {
			field := fmt.Sprintf("%s.scopes[%d]", path, j)
			if first, repeated := firstScopes[scope]; repeated {
				found.Add(field, "is %s, as is %s already; each may be there once", strictyaml.Quote(scope), first)
				continue
			}
			firstScopes[scope] = field
			if problem := scopeProblem(scope, catalogue, wholeCatalogue); problem != "" {
				found.Add(field, "is %s, %s", strictyaml.Quote(scope), problem)
			}
		}
	}
}

// scopeProblem returns what is wrong with a scope of a role, or "". catalogue has every scope
// that is allowed. If whole is false, a part of catalogue is missing, and only the form of the
// scope is checked.
func scopeProblem(scope string, catalogue map[string]bool, whole bool) string {
	name, action, _ := strings.Cut(scope, ":")
	switch {
	case scope == everything:
		return ""
	case !ValidScopeName(scope) && (action != everything || !validName(name, "_")):
		return "which is malformed, " + allowedScope
	case !whole || catalogue[scope]:
		return ""
	case !catalogue[scopeName(name, everything)]:
		return fmt.Sprintf("but there is no resource %q, allowed are those under resources", name)
	}
	return fmt.Sprintf("but %s has no action %q, allowed are those under resources", name, action)
}

// checkName checks the form of a name, and that the name is not used twice: firsts maps each name
// to the first field that has it.
func checkName(found *mistakes, firsts map[string]string, field, name, also, allowed string) {
	switch first, repeated := firsts[name]; {
	case name == "":
		found.Add(field, "is missing or empty, %s", allowed)
	case !validName(name, also):
		found.Add(field, "is %s, %s", strictyaml.Quote(name), allowed)
	case repeated:
		found.Add(field, "is %s, as is %s already; each may be there once", strictyaml.Quote(name), first)
	default:
		firsts[name] = field
	}
}

func checkRange(found *mistakes, field string, value, maximum int) {
	if value < 1 || value > maximum {
		found.Add(field, "is %d, allowed are 1 to %d", value, maximum)
	}
}

// days returns a duration as a number of days if it is whole days.
func days(duration time.Duration) string {
	if duration%Day == 0 {
		return fmt.Sprint(int64(duration / Day))
	}
	return duration.String()
}
