package policy

import (
	"fmt"
	"time"

	"github.com/scribe-mail/keysvc/internal/strictyaml"
)

const (
	formatVersion = 1

	// maxFile bounds the text of a policy, in bytes.
	maxFile = 1 << 20
)

// Parse reads a policy from a YAML document such as scribe.yaml. token_prefix, limits and
// retention_days have defaults and can be left out, as can titles, descriptions and the actions at
// the top; every other field is required, and unknown fields are refused. filename is for messages only.
//
// The error is an Errors with every mistake, each with its position.
func Parse(filename string, data []byte) (*Policy, error) {
	if filename == "" {
		filename = "policy"
	}
	root, found := strictyaml.Parse(filename, data, strictyaml.Form{MaxBytes: maxFile, Expected: "version, resources and roles"})
	if !root.Present() {
		return nil, found.Err()
	}
	p := readPolicy(root, found)
	p.check(found)
	if err := found.Err(); err != nil {
		return nil, err
	}
	return p, nil
}

// readPolicy takes a Policy out of a document. Mistakes of form go to found; the rules for
// what a policy means are checked later.
func readPolicy(root strictyaml.Value, found *mistakes) *Policy {
	p := &Policy{
		TokenPrefix: DefaultTokenPrefix,
		Limits: Limits{
			LiveKeysPerWorkspace: DefaultLiveKeysPerWorkspace,
			ScopesPerKey:         DefaultScopesPerKey,
			KeyNameCharacters:    DefaultKeyNameCharacters,
		},
		Retention: DefaultRetention,
	}
	fields := root.Mapping("version", "token_prefix", "resources", "actions", "roles", "limits", "retention_days")
	if fields == nil {
		return p
	}
	if version := fields["version"]; !version.Present() {
		found.Add("version", "is missing, allowed is %d", formatVersion)
	} else if number, ok := version.Number(); ok && number != formatVersion {
		found.Add("version", "is %d, allowed is %d", number, formatVersion)
	}
	if prefix := fields["token_prefix"]; prefix.Present() {
		p.TokenPrefix = prefix.Text()
	}
	for _, resource := range fields["resources"].List() {
		p.Resources = append(p.Resources, readResource(resource))
	}
	for _, action := range fields["actions"].List() {
		p.Actions = append(p.Actions, readAction(action))
	}
	for i, role := range fields["roles"].List() {
		p.Roles = append(p.Roles, readRole(role, i, found))
	}
	readLimits(fields["limits"], &p.Limits)
	if days := fields["retention_days"]; days.Present() {
		if number, ok := days.Number(); ok {
			p.Retention = time.Duration(number) * Day
			if number < 1 || number > int(maxRetention/Day) { // the product may have overflowed
				days.Refuse("is %d, %s", number, allowedRetention)
			}
		}
	}
	return p
}

func readResource(value strictyaml.Value) Resource {
	fields := value.Mapping("name", "title", "description", "actions")
	return Resource{
		Name: fields["name"].Text(), Actions: fields["actions"].Texts(),
		Title: fields["title"].Text(), Description: fields["description"].Text(),
	}
}

func readAction(value strictyaml.Value) Action {
	fields := value.Mapping("name", "title", "description")
	return Action{Name: fields["name"].Text(), Title: fields["title"].Text(), Description: fields["description"].Text()}
}

func readRole(value strictyaml.Value, index int, found *mistakes) Role {
	fields := value.Mapping("name", "scopes")
	if !fields["scopes"].Present() {
		found.Add(fmt.Sprintf("roles[%d].scopes", index), "is missing, allowed is a list, [] for none")
	}
	return Role{Name: fields["name"].Text(), Scopes: fields["scopes"].Texts()}
}

func readLimits(value strictyaml.Value, limits *Limits) {
	targets := map[string]*int{
		"live_keys_per_workspace": &limits.LiveKeysPerWorkspace,
		"scopes_per_key":          &limits.ScopesPerKey,
		"key_name_characters":     &limits.KeyNameCharacters,
	}
	fields := value.Mapping("live_keys_per_workspace", "scopes_per_key", "key_name_characters")
	for name, field := range fields {
		if number, ok := field.Number(); ok {
			*targets[name] = number
		}
	}
}
