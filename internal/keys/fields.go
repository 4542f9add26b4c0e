package keys

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/token"
)

// Bounds of what a caller may send.
const (
	// MaxIDLength is how many characters the id of a workspace or member may have.
	MaxIDLength = 128
	// MaxRequestIDLength is how many characters a request id may have.
	MaxRequestIDLength = 64
	// MaxLabels is how many labels a key may have.
	MaxLabels = 32
	// MaxLabelKeyLength and MaxLabelValueLength bound a label, in bytes.
	MaxLabelKeyLength   = 63
	MaxLabelValueLength = 255
	// MaxCIDRs is how many address rules a key may have.
	MaxCIDRs = 32
	// DefaultPageSize and MaxPageSize are how many keys or members a page has.
	DefaultPageSize = 50
	MaxPageSize     = 1000
)

// The descriptions below do not repeat what the caller sent, because people paste tokens into
// the wrong field. Text is repeated only if its form rules out that it is a token.

// checkID checks the product's own id of a workspace or member.
func checkID(fields *problem.Fields, field, id string) {
	checkCharacters(fields, field, id, MaxIDLength)
}

// checkOptionalID is checkID for an id that may be left out.
func checkOptionalID(fields *problem.Fields, field, id string) {
	if id != "" {
		checkID(fields, field, id)
	}
}

// CheckWorkspaceID checks the workspace that a validation names; empty means any workspace.
func CheckWorkspaceID(fields *problem.Fields, id string) {
	checkOptionalID(fields, "workspace_id", id)
}

// checkRequestID checks a request id, which may be left out.
func checkRequestID(fields *problem.Fields, id *string) {
	if id != nil {
		checkCharacters(fields, "request_id", *id, MaxRequestIDLength)
	}
}

// checkActor checks the member on whose behalf a change is made, who may be left out.
func checkActor(fields *problem.Fields, actor audit.Actor) {
	if actor.MemberID != nil {
		checkID(fields, "actor_member_id", *actor.MemberID)
	}
}

func checkCharacters(fields *problem.Fields, field, text string, limit int) {
	switch {
	case refuseToken(fields, field, text):
	case text == "":
		fields.Add(field, "is missing; 1 to %d characters of [A-Za-z0-9._:@-] are required", limit)
	case len(text) > limit:
		fields.Add(field, "has %d bytes; 1 to %d characters of [A-Za-z0-9._:@-] are allowed", len(text), limit)
	case strings.IndexFunc(text, notInID) >= 0:
		fields.Add(field, "has a character that is not allowed; 1 to %d characters of [A-Za-z0-9._:@-] are", limit)
	}
}

// refuseToken refuses text that holds a token, and reports whether it did. Text of a caller is
// stored and shown, and nobody may find a credential there.
func refuseToken(fields *problem.Fields, field, text string) bool {
	if !token.In(text) {
		return false
	}
	fields.Add(field, "holds what looks like a token; keep it secret, and consider it leaked")
	return true
}

func notInID(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("._:@-", r)
}

// checkKeyID checks the public identifier of a key.
func checkKeyID(fields *problem.Fields, id string) {
	switch {
	case id == "":
		fields.Add("key_id", "is missing; the key's 16 characters of [0-9A-Za-z] are required")
	case !token.ValidID(id):
		fields.Add("key_id", "is not a key id: 16 characters of [0-9A-Za-z]; never send a whole token here")
	}
}

// checkScopes checks scopes against the policy and returns them sorted.
func checkScopes(fields *problem.Fields, scopes []string, active *projection.Policy) []string {
	if len(scopes) == 0 {
		fields.Add("scopes", "is empty; 1 to %d scopes are required", active.Limits.ScopesPerKey)
		return nil
	}
	if len(scopes) > active.Limits.ScopesPerKey {
		fields.Add("scopes", "has %d scopes; 1 to %d are allowed", len(scopes), active.Limits.ScopesPerKey)
		return nil
	}
	seen := make(map[string]bool, len(scopes))
	for index, scope := range scopes {
		field := fmt.Sprintf("scopes[%d]", index)
		switch {
		case strings.Contains(scope, "*"):
			fields.Add(field, "is a wildcard; a key lists its scopes one by one")
		case !policy.ValidScopeName(scope):
			fields.Add(field, "%s", policy.UnknownScope(scope, nil, ""))
		case !active.Catalogue.Contains(scope):
			fields.AddAs(problem.ScopeUnknown, field, "%s", policy.UnknownScope(scope, active.Catalogue, policy.WhereScopesAreListed))
		case seen[scope]:
			fields.Add(field, "%q is listed twice; each scope is allowed once", scope)
		}
		seen[scope] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// checkRole checks the name of a role against the policy.
func checkRole(fields *problem.Fields, role string, active *projection.Policy) {
	if role == "" {
		fields.Add("role", "is missing; one of the policy's is required: %s", roleNames(active))
	} else if !active.HasRole(role) {
		fields.AddAs(problem.RoleUnknown, "role", "is not in the policy, which has: %s", roleNames(active))
	}
}

func roleNames(active *projection.Policy) string {
	names := make([]string, 0, len(active.Roles))
	for _, role := range active.Roles {
		names = append(names, role.Name)
	}
	return strings.Join(names, ", ")
}

// checkLabels checks the annotations of a key.
func checkLabels(fields *problem.Fields, labels map[string]string) {
	if len(labels) > MaxLabels {
		fields.Add("labels", "has %d labels; at most %d are allowed", len(labels), MaxLabels)
		return
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		value := labels[key]
		switch {
		case refuseToken(fields, "labels", key), refuseToken(fields, "labels", value):
		case key == "":
			fields.Add("labels", "has an empty key; 1 to %d bytes of [A-Za-z0-9._/-] are required", MaxLabelKeyLength)
		case len(key) > MaxLabelKeyLength:
			fields.Add("labels", "has a key of %d bytes; 1 to %d are allowed", len(key), MaxLabelKeyLength)
		case strings.IndexFunc(key, notInLabelKey) >= 0:
			fields.Add("labels", "has a key with a character that is not allowed; [A-Za-z0-9._/-] are")
		case len(value) > MaxLabelValueLength:
			fields.Add("labels", "has a value of %d bytes; at most %d are allowed", len(value), MaxLabelValueLength)
		case !utf8.ValidString(value) || hasUnseen(value):
			fields.Add("labels", "has a value with an invisible or unprintable character; printable ones and the space are allowed")
		}
	}
}

func notInLabelKey(r rune) bool { return notInID(r) && r != '/' || r == ':' || r == '@' }

// checkCIDRs checks address rules and returns them in canonical form, without repetitions.
func checkCIDRs(fields *problem.Fields, cidrs []string) []string {
	if len(cidrs) > MaxCIDRs {
		fields.Add("allowed_cidrs", "has %d entries; at most %d are allowed", len(cidrs), MaxCIDRs)
		return nil
	}
	var canonical []string
	for index, cidr := range cidrs {
		field := fmt.Sprintf("allowed_cidrs[%d]", index)
		prefix, err := netip.ParsePrefix(cidr)
		switch {
		case err != nil:
			fields.Add(field, "is not a prefix; an IPv4 or IPv6 prefix is required, e.g. 192.0.2.0/24 or 2001:db8::/32")
		case prefix.Addr().Is4In6():
			fields.Add(field, "is an IPv4 address mapped into IPv6; write the IPv4 prefix")
		case prefix.Masked() != prefix:
			fields.Add(field, "has bits beyond its length; %s is the prefix", prefix.Masked())
		case !slices.Contains(canonical, prefix.String()):
			canonical = append(canonical, prefix.String())
		}
	}
	return canonical
}

// clockTolerance is how far beyond a year an expire time may lie, because the caller's clock may
// be ahead. Such an expire time is set back to a year from now.
const clockTolerance = 5 * time.Minute

// checkTime checks a time that may be left out, and returns it in UTC.
func checkTime(fields *problem.Fields, field string, asked *time.Time) *time.Time {
	if asked == nil {
		return nil
	}
	at := asked.UTC()
	if at.Year() < 1 || at.Year() > 9999 {
		fields.Add(field, "is not a time between the years 1 and 9999")
		return nil
	}
	return &at
}

// checkExpireTime checks the expire time that a caller wants for a secret that is issued now, and
// returns the one that the secret gets; nil asks for a year.
func checkExpireTime(fields *problem.Fields, wanted *time.Time, now time.Time) time.Time {
	year := oneYearAfter(now)
	asked := checkTime(fields, "expire_time", wanted)
	switch {
	case asked == nil:
		return year
	case !asked.After(now):
		fields.Add("expire_time", "is not in the future; a time up to %s is allowed", year.Format(time.RFC3339))
	case asked.After(year.Add(clockTolerance)):
		fields.Add("expire_time", "is over a year ahead; a time up to %s is allowed", year.Format(time.RFC3339))
	case asked.After(year):
		return year
	}
	return asked.Truncate(time.Microsecond)
}

// days returns a duration of whole days in words.
func days(duration time.Duration) string {
	return fmt.Sprintf("%d days", duration/(24*time.Hour))
}

// oneYearAfter returns the same moment one calendar year later, in UTC. A year after 29
// February is 28 February.
func oneYearAfter(now time.Time) time.Time {
	now = now.UTC()
	later := now.AddDate(1, 0, 0)
	if later.Day() != now.Day() {
		later = later.AddDate(0, 0, -later.Day())
	}
	return later
}

// pageSize returns how many keys or members a page may have (AIP-158).
func pageSize(fields *problem.Fields, asked int) int {
	switch {
	case asked < 0:
		fields.Add("page_size", "is negative; 0 (for %d) to %d are allowed", DefaultPageSize, MaxPageSize)
		return 0
	case asked == 0:
		return DefaultPageSize
	}
	return min(asked, MaxPageSize)
}
