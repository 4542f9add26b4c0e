package keys

import (
	"net/netip"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
)

// The functions of this file report whether a change only takes something away. Such a change is
// also made while the disk is full. A change that is not known to take something away is refused
// then, because it would use up the room of the changes that do.

// narrowsKey reports whether a key can do less after a change than before it, and nothing that it
// could not do before. A rotation without an overlap counts, because it ends all earlier secrets.
func narrowsKey(before, after *storagev1.KeyRecord) bool {
	rest := proto.CloneOf(before)
	rest.ChangeSequence, rest.RequestIds = after.GetChangeSequence(), after.GetRequestIds()
	rest.Scopes, rest.AllowedCidrs, rest.Labels = after.GetScopes(), after.GetAllowedCidrs(), after.GetLabels()
	rest.Secrets, rest.RevokeTime = after.GetSecrets(), after.GetRevokeTime()
	rest.RevokedBy, rest.Reported = after.GetRevokedBy(), after.GetReported()
	if before.GetRevokeTime() != nil || !proto.Equal(rest, after) {
		return false
	}
	scopes := decide.NewScopes(after.GetScopes()...)
	if len(scopes.Without(decide.NewScopes(before.GetScopes()...))) > 0 ||
		!withinPrefixes(after.GetAllowedCidrs(), before.GetAllowedCidrs()) ||
		!withinSecrets(after.GetSecrets(), before.GetSecrets()) {
		return false
	}
	for name, value := range after.GetLabels() {
		if had, found := before.GetLabels()[name]; !found || had != value {
			return false
		}
	}
	same := proto.CloneOf(before)
	same.ChangeSequence, same.RequestIds = after.GetChangeSequence(), after.GetRequestIds()
	return !proto.Equal(same, after)
}

// withinSecrets reports whether all secrets of a key are among those that it had, or whether one
// new secret replaces all of them.
func withinSecrets(after, before []*storagev1.SecretRecord) bool {
	kept := 0
	for _, secret := range after {
		for _, had := range before {
			if proto.Equal(secret, had) {
				kept++
				break
			}
		}
	}
	return kept == len(after) || kept == 0 && len(after) == 1
}

// withinPrefixes reports whether every address that the prefixes after allow is allowed by those
// before. An empty list allows every address.
func withinPrefixes(after, before []string) bool {
	if len(before) == 0 {
		return true
	}
	if len(after) == 0 {
		return false
	}
	for _, text := range after {
		inner, err := netip.ParsePrefix(text)
		if err != nil || !withinOne(inner, before) {
			return false
		}
	}
	return true
}

// withinOne reports whether a prefix lies within one of the outer prefixes.
func withinOne(inner netip.Prefix, outer []string) bool {
	for _, text := range outer {
		prefix, err := netip.ParsePrefix(text)
		if err == nil && prefix.Bits() <= inner.Bits() && prefix.Contains(inner.Addr()) {
			return true
		}
	}
	return false
}

// narrowsMember reports whether the keys of a member can do less after a change than before it, and
// nothing that they could not do before. before is nil for a member that is not stored.
func narrowsMember(before, after *storagev1.MemberRecord, active *projection.Policy) bool {
	if before.GetIncarnation() != after.GetIncarnation() || before == nil || active == nil {
		return false
	}
	was, is := standing(before), standing(after)
	if is == 0 {
		return was > 0
	}
	had, has := active.Role(before.GetRole()), active.Role(after.GetRole())
	if is > was || len(has.Without(had)) > 0 {
		return false
	}
	return is < was || len(had.Without(has)) > 0
}

// standing returns a number for the state of a member: the more the state allows, the greater it is.
func standing(member *storagev1.MemberRecord) int {
	switch member.GetState() {
	case storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE:
		return 2
	case storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED:
		return 1
	case storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED, storagev1.MemberRecordState_MEMBER_RECORD_STATE_UNSPECIFIED:
	}
	return 0
}

// narrowsPolicy reports whether a policy allows less than the active one, and nothing that the active
// one does not allow.
func narrowsPolicy(active *projection.Policy, wanted *policy.Policy) bool {
	if wanted.TokenPrefix != active.TokenPrefix || wanted.Retention > active.Retention ||
		wanted.Limits.LiveKeysPerWorkspace > active.Limits.LiveKeysPerWorkspace ||
		wanted.Limits.ScopesPerKey > active.Limits.ScopesPerKey ||
		wanted.Limits.KeyNameCharacters > active.Limits.KeyNameCharacters ||
		len(decide.Scopes(wanted.Scopes()).Without(active.Catalogue)) > 0 {
		return false
	}
	less := len(active.Catalogue.Without(wanted.Scopes())) > 0
	for _, role := range wanted.Roles {
		scopes, _ := wanted.RoleScopes(role.Name)
		had := active.Role(role.Name)
		if !active.HasRole(role.Name) || len(decide.Scopes(scopes).Without(had)) > 0 {
			return false
		}
		less = less || len(had.Without(scopes)) > 0
	}
	return less || len(wanted.Roles) < len(active.Roles)
}
