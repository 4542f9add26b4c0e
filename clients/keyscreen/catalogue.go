package keyscreen

import (
	"slices"
	"strings"
)

// readAction is the action that the choice "read only" is made of.
const readAction = "read"

// resource is one resource of the policy, as people see it, with some of its actions.
type resource struct {
	Title, Description string
	Actions            []action
}

// action is one action of a resource.
type action struct {
	Scope, Title, Description string
	// Name is for people who hear the screen: it says the resource as well.
	Name string
	// Checked is whether the box is checked.
	Checked bool
	// Lost is whether a key was granted the scope, and its member's role does not have it now.
	Lost bool
}

// catalogue returns the resources of the policy with those actions whose scopes are in a list, in the
// policy's order. Scopes that the policy does not have come last, by their names.
func (v *visit) catalogue(scopes []string) []resource {
	var found []resource
	rest := slices.Clone(scopes)
	for _, known := range v.viewer.policy.GetResources() {
		shown := resource{Title: v.resourceTitle(known.GetName(), known.GetTitle()), Description: known.GetDescription()}
		for _, name := range known.GetActions() {
			scope := known.GetName() + ":" + name
			if index := slices.Index(rest, scope); index >= 0 {
				rest = slices.Delete(rest, index, index+1)
				shown.Actions = append(shown.Actions, v.action(scope, shown.Title, name))
			}
		}
		if len(shown.Actions) > 0 {
			found = append(found, shown)
		}
	}
	for _, scope := range rest {
		name, act, _ := strings.Cut(scope, ":")
		title := v.resourceTitle(name, "")
		found = append(found, resource{Title: title, Actions: []action{v.action(scope, title, act)}})
	}
	return found
}

func (v *visit) resourceTitle(name, title string) string {
	switch own := v.language.Titles["resource."+name]; {
	case own != "":
		return own
	case title != "":
		return title
	}
	return spelt(name)
}

func (v *visit) action(scope, resourceTitle, name string) action {
	shown := action{Scope: scope, Title: spelt(name)}
	for _, known := range v.viewer.policy.GetActions() {
		if known.GetName() == name {
			shown.Description = known.GetDescription()
			if known.GetTitle() != "" {
				shown.Title = known.GetTitle()
			}
		}
	}
	if own := v.language.Titles["action."+name]; own != "" {
		shown.Title = own
	}
	shown.Name = v.T("scope", "resource", resourceTitle, "action", shown.Title)
	return shown
}

// spelt makes a title of a name: "smart_fields" is "Smart fields".
func spelt(name string) string {
	if name == "" {
		return name
	}
	return strings.ToUpper(name[:1]) + strings.ReplaceAll(name[1:], "_", " ")
}

// readOnly returns those scopes that only read.
func readOnly(scopes []string) []string {
	return slices.DeleteFunc(slices.Clone(scopes), func(scope string) bool { return !strings.HasSuffix(scope, ":"+readAction) })
}
