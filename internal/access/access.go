// Package access says what a caller of keysvc may do: rights, and the workspaces that each right
// holds for. It knows neither gRPC nor how a caller proves who it is. Every zero value allows
// nothing.
package access

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
)

// Right is what a method needs and a caller may have. No right implies another one. Nobody has
// the zero Right.
type Right uint8

// The rights.
const (
	// Nobody is what methods that are not in the table need. No caller has it.
	Nobody Right = iota
	// Anyone is what health needs. Every caller has it, known or not.
	Anyone
	// Known is what reading the policy needs, waiting until caches have applied a change,
	// reflection and channelz. Every known caller has it, for all workspaces.
	Known
	// Validate allows asking for decisions, and being told about changes.
	Validate
	// Read allows reading keys, members and workspaces.
	Read
	// Issue allows creating, rotating and updating keys.
	Issue
	// IssueLocal allows creating and rotating keys whose secret the caller has drawn.
	IssueLocal
	// Revoke allows revoking keys and ending rotations.
	Revoke
	// Report allows revoking the key of a leaked token.
	Report
	// Directory allows putting and removing members.
	Directory
	// Audit allows reading audit events and explanations.
	Audit
	// Administer allows applying policies, removing workspaces, settings and backups.
	Administer

	rights
)

// names are the names that operators write. Nobody, Anyone and Known cannot be written.
var names = [rights]string{
	Nobody: "nobody", Anyone: "anyone", Known: "known", Validate: "validate", Read: "read", Issue: "issue",
	IssueLocal: "issue_local", Revoke: "revoke", Report: "report", Directory: "directory", Audit: "audit",
	Administer: "administer",
}

// String returns the right's name, as operators write it.
func (r Right) String() string {
	if r < rights {
		return names[r]
	}
	return names[Nobody]
}

// Rights returns the rights that a caller can be given, in the order of the contract.
func Rights() []Right {
	var all []Right
	for right := Validate; right < rights; right++ {
		all = append(all, right)
	}
	return all
}

// ParseRight returns the right of a name. It reports whether the name is that of a right that
// can be given.
func ParseRight(name string) (Right, bool) {
	for _, right := range Rights() {
		if names[right] == name {
			return right, true
		}
	}
	return Nobody, false
}

// Workspaces is a set of workspaces: all, or some by name. The zero Workspaces is empty. It is
// not changed once it is made.
type Workspaces struct {
	all bool
	// some has the names, sorted, each once; empty if all is set.
	some []string
}

// All returns the set of all workspaces, those to come included, and of what belongs to no
// workspace, such as the policy.
func All() Workspaces { return Workspaces{all: true} }

// Only returns a set of workspaces by name. An empty name is left out, because it stands for what
// belongs to no workspace.
func Only(workspaceIDs ...string) Workspaces {
	some := slices.DeleteFunc(slices.Clone(workspaceIDs), func(id string) bool { return id == "" })
	slices.Sort(some)
	return Workspaces{some: slices.Compact(some)}
}

// Has reports whether a workspace is in the set. The empty id stands for what belongs to no
// workspace, and only All has it.
func (w Workspaces) Has(workspaceID string) bool {
	if w.all {
		return true
	}
	_, found := slices.BinarySearch(w.some, workspaceID)
	return found
}

// IsAll reports whether the set is All.
func (w Workspaces) IsAll() bool { return w.all }

// IsEmpty reports whether no workspace is in the set.
func (w Workspaces) IsEmpty() bool { return !w.all && len(w.some) == 0 }

// Names returns the names of a set that is not All, sorted; nil for All.
func (w Workspaces) Names() []string { return slices.Clone(w.some) }

// Equal reports whether two sets have the same workspaces.
func (w Workspaces) Equal(other Workspaces) bool {
	return w.all == other.all && slices.Equal(w.some, other.some)
}

// Union returns the set of the workspaces that are in either set.
func (w Workspaces) Union(other Workspaces) Workspaces {
	if w.all || other.all {
		return All()
	}
	return Only(slices.Concat(w.some, other.some)...)
}

// FingerprintLength is the length of a fingerprint, in bytes.
const FingerprintLength = 16

// Fingerprint returns FingerprintLength bytes that differ for sets that differ; nil for All. A near-cache
// echoes it when it resumes, so that entries of workspaces that its caller no longer sees are dropped.
func (w Workspaces) Fingerprint() []byte {
	if w.all {
		return nil
	}
	hash := sha256.New()
	hash.Write([]byte("keysvc workspaces v1\x00"))
	for _, each := range w.some {
		hash.Write(binary.BigEndian.AppendUint16(nil, uint16(len(each)))) //nolint:gosec // ids have at most 128 bytes
		hash.Write([]byte(each))
	}
	return hash.Sum(nil)[:FingerprintLength]
}

// String returns "all workspaces", "no workspace", or the names with commas.
func (w Workspaces) String() string {
	switch {
	case w.all:
		return "all workspaces"
	case len(w.some) == 0:
		return "no workspace"
	}
	return strings.Join(w.some, ", ")
}

// Grants are the rights of a caller, each with its workspaces. The zero Grants has no right. It
// must not be copied into two that are then changed.
type Grants struct{ of [rights]Workspaces }

// Everything returns the grants of a caller that may do everything.
func Everything() *Grants {
	grants := new(Grants)
	for _, right := range Rights() {
		grants.of[right] = All()
	}
	return grants
}

// Add gives a right for further workspaces. Rights that cannot be given are ignored. Call it only
// before the grants are shared.
func (g *Grants) Add(right Right, workspaces Workspaces) {
	if right >= Validate && right < rights {
		g.of[right] = g.of[right].Union(workspaces)
	}
}

// For returns the workspaces that a right holds for; empty for nil grants and for a right that
// the caller does not have. For Known it is All, because what needs it belongs to no workspace.
func (g *Grants) For(right Right) Workspaces {
	switch {
	case g == nil || right == Nobody || right >= rights:
		return Workspaces{}
	case right == Anyone || right == Known:
		return All()
	}
	return g.of[right]
}

// May reports whether the caller has a right, for some workspace at least. Of nil grants only
// Anyone.
func (g *Grants) May(right Right) bool {
	return right == Anyone || !g.For(right).IsEmpty()
}
