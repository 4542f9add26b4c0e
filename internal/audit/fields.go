package audit

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
)

// The functions of this file return the fields in which two records differ, for
// AuditRecord.fields. They name the fields that they know, one by one, so that a new field of a
// record, which may be a secret, is not recorded by chance. Lists of the result are those of the
// records.

// differences collects fields.
type differences []*storagev1.FieldChange

// list adds a field with several values if it was altered.
func (d *differences) list(field string, before, after []string) {
	if !slices.Equal(before, after) {
		*d = append(*d, &storagev1.FieldChange{Field: field, Before: before, After: after})
	}
}

// text adds a field with one value; empty is not set.
func (d *differences) text(field, before, after string) {
	if before != after {
		*d = append(*d, &storagev1.FieldChange{Field: field, Before: one(before), After: one(after)})
	}
}

func one(value string) []string {
	if value == "" {
		return nil
	}
	return []string{value}
}

// time adds a time.
func (d *differences) time(field string, before, after *timestamppb.Timestamp) {
	if !sameTime(before, after) {
		d.text(field, stamp(before), stamp(after))
	}
}

func sameTime(one, other *timestamppb.Timestamp) bool {
	return (one == nil) == (other == nil) && one.GetSeconds() == other.GetSeconds() && one.GetNanos() == other.GetNanos()
}

// stamp returns a time as text, "" for none.
func stamp(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	return at.AsTime().Format(time.RFC3339Nano)
}

// number returns a number as text, "" for 0.
func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// flag returns "true", or "" for false.
func flag(set bool) string {
	if set {
		return "true"
	}
	return ""
}

// KeyFields returns what a change altered in a key. before is nil for a new key.
func KeyFields(before, after *storagev1.KeyRecord) []*storagev1.FieldChange {
	altered := make(differences, 0, 6)
	altered.text("name", before.GetName(), after.GetName())
	altered.list("scopes", before.GetScopes(), after.GetScopes())
	altered.labels(before.GetLabels(), after.GetLabels())
	altered.list("allowed_cidrs", before.GetAllowedCidrs(), after.GetAllowedCidrs())
	altered.time("create_time", before.GetCreateTime(), after.GetCreateTime())
	altered.time("import_time", before.GetImported().GetImportTime(), after.GetImported().GetImportTime())
	altered.time("revoke_time", before.GetRevokeTime(), after.GetRevokeTime())
	altered.time("hold_time", before.GetHoldTime(), after.GetHoldTime())
	altered.text("reported", flag(before.GetReported()), flag(after.GetReported()))
	if !slices.Equal(before.GetRequestIds(), after.GetRequestIds()) {
		altered.list("request_ids", without(before.GetRequestIds(), after.GetRequestIds()), without(after.GetRequestIds(), before.GetRequestIds()))
	}
	altered.secrets(before.GetSecrets(), after.GetSecrets())
	return altered
}

// ImportedFields returns what was imported: the member and the fields of each key.
func ImportedFields(keys []*storagev1.KeyRecord) []*storagev1.FieldChange {
	var imported differences
	for _, key := range keys {
		imported.text("keys."+key.GetKeyId()+".member_id", "", key.GetMemberId())
		imported = append(imported, FieldsOfKey(nil, key)...)
	}
	return imported
}

// FieldsOfKey is KeyFields for an event that changes several keys: the names of the fields begin with
// "keys." and the key's id.
func FieldsOfKey(before, after *storagev1.KeyRecord) []*storagev1.FieldChange {
	altered := KeyFields(before, after)
	for _, field := range altered {
		field.Field = "keys." + after.GetKeyId() + "." + field.GetField()
	}
	return altered
}

// labels adds labels, one by one.
func (d *differences) labels(before, after map[string]string) {
	if len(before)+len(after) == 0 || maps.Equal(before, after) {
		return
	}
	names := maps.Clone(before)
	if names == nil {
		names = make(map[string]string, len(after))
	}
	maps.Copy(names, after)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		had, hadAny := before[name]
		has, hasAny := after[name]
		if had == has && hadAny == hasAny {
			continue
		}
		altered := &storagev1.FieldChange{Field: "labels." + name}
		if hadAny { // a label may be empty, and is set then
			altered.Before = []string{had}
		}
		if hasAny {
			altered.After = []string{has}
		}
		*d = append(*d, altered)
	}
}

// without returns the values that are not in others.
func without(values, others []string) []string {
	var rest []string
	for _, value := range values {
		if !slices.Contains(others, value) {
			rest = append(rest, value)
		}
	}
	return rest
}

// secrets adds what is known about secrets: their times, and who drew them.
func (d *differences) secrets(before, after []*storagev1.SecretRecord) {
	created := (*storagev1.SecretRecord).GetCreateTime
	expires := (*storagev1.SecretRecord).GetExpireTime
	overlaps := (*storagev1.SecretRecord).GetOverlapEndTime
	for _, field := range []struct {
		name string
		time func(*storagev1.SecretRecord) *timestamppb.Timestamp
	}{
		{"secrets.create_time", created}, {"secrets.expire_time", expires}, {"secrets.overlap_end_time", overlaps},
	} {
		if !slices.EqualFunc(before, after, func(one, other *storagev1.SecretRecord) bool { return sameTime(field.time(one), field.time(other)) }) {
			text := func(secret *storagev1.SecretRecord) string { return stamp(field.time(secret)) }
			d.list(field.name, each(before, text), each(after, text))
		}
	}
	local := func(secret *storagev1.SecretRecord) string { return flag(secret.GetIssuedLocally()) }
	if slices.ContainsFunc(before, (*storagev1.SecretRecord).GetIssuedLocally) || slices.ContainsFunc(after, (*storagev1.SecretRecord).GetIssuedLocally) {
		d.list("secrets.issued_locally", each(before, local), each(after, local))
	}
}

// each returns a text for each secret; nil if all of them are empty.
func each(secrets []*storagev1.SecretRecord, text func(*storagev1.SecretRecord) string) []string {
	values, set := make([]string, len(secrets)), false
	for index, secret := range secrets {
		values[index] = text(secret)
		set = set || values[index] != ""
	}
	if !set {
		return nil
	}
	return values
}

// memberStates are the states of members as events name them: as the API does.
var memberStates = map[storagev1.MemberRecordState]string{
	storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE:    "MEMBER_STATE_ACTIVE",
	storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED: "MEMBER_STATE_SUSPENDED",
	storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED:   "MEMBER_STATE_REMOVED",
}

// MemberFields returns what a change altered in a member. before is nil for a new member. It leaves
// out when the record was changed, because every event has that.
func MemberFields(before, after *storagev1.MemberRecord) []*storagev1.FieldChange {
	var altered differences
	altered.text("member.role", before.GetRole(), after.GetRole())
	altered.text("member.state", memberStates[before.GetState()], memberStates[after.GetState()])
	altered.text("member.source_version", number(before.GetSourceVersion()), number(after.GetSourceVersion()))
	altered.time("member.create_time", before.GetCreateTime(), after.GetCreateTime())
	return altered
}

// RepairedMemberFields returns what a repair of the clock altered in a member.
func RepairedMemberFields(before, after *storagev1.MemberRecord) []*storagev1.FieldChange {
	altered := differences(MemberFields(before, after))
	altered.time("member.update_time", before.GetUpdateTime(), after.GetUpdateTime())
	altered.time("member.state_time", before.GetStateTime(), after.GetStateTime())
	return altered
}

// WorkspaceFields returns what a change altered in a workspace. before is nil for a new workspace.
func WorkspaceFields(before, after *storagev1.WorkspaceRecord) []*storagev1.FieldChange {
	var altered differences
	altered.time("workspace.create_time", before.GetCreateTime(), after.GetCreateTime())
	altered.time("workspace.remove_time", before.GetRemoveTime(), after.GetRemoveTime())
	altered.text("workspace.removal_source_version", number(before.GetRemovalSourceVersion()), number(after.GetRemovalSourceVersion()))
	return altered
}

// PurgedFields returns what was purged: the name and member of each key, and the role and state of
// each member.
func PurgedFields(keys []*storagev1.KeyRecord, members []*storagev1.MemberRecord) []*storagev1.FieldChange {
	var purged differences
	for _, key := range keys {
		purged.text("keys."+key.GetKeyId()+".name", key.GetName(), "")
		purged.text("keys."+key.GetKeyId()+".member_id", key.GetMemberId(), "")
	}
	for _, member := range members {
		purged.text("members."+member.GetMemberId()+".role", member.GetRole(), "")
		purged.text("members."+member.GetMemberId()+".state", memberStates[member.GetState()], "")
	}
	return purged
}

// PolicyFields returns what a change altered in the policy. before is nil for the first policy. The
// scopes of roles are the effective ones, without "*".
func PolicyFields(before, after *policy.Policy, retiredBefore, retiredAfter []string) []*storagev1.FieldChange {
	var altered differences
	none := &policy.Policy{}
	if before == nil {
		before = none
	}
	altered.text("token_prefix", before.TokenPrefix, after.TokenPrefix)
	altered.list("catalogue", before.Scopes(), after.Scopes())
	// Titles and descriptions decide nothing, and all of them would not fit: the event tells only that
	// they changed.
	altered.text("titles", before.TitlesDigest(), after.TitlesDigest())
	names := make(map[string]bool)
	for _, role := range slices.Concat(before.Roles, after.Roles) {
		names[role.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		had, hadAny := before.RoleScopes(name)
		has, hasAny := after.RoleScopes(name)
		if hadAny != hasAny { // a role may have no scopes
			altered.text("roles."+name, exists(hadAny), exists(hasAny))
		}
		altered.list("roles."+name+".scopes", had, has)
	}
	for _, limit := range []struct {
		name          string
		before, after int
	}{
		{"limits.live_keys_per_workspace", before.Limits.LiveKeysPerWorkspace, after.Limits.LiveKeysPerWorkspace},
		{"limits.scopes_per_key", before.Limits.ScopesPerKey, after.Limits.ScopesPerKey},
		{"limits.key_name_characters", before.Limits.KeyNameCharacters, after.Limits.KeyNameCharacters},
		{"retention_days", int(before.Retention / policy.Day), int(after.Retention / policy.Day)},
	} {
		altered.text(limit.name, number(int64(limit.before)), number(int64(limit.after)))
	}
	altered.list("retired_scopes", retiredBefore, retiredAfter)
	return altered
}

// SettingsFields returns what a change altered in the settings that all servers share. before is nil
// for the first ones.
func SettingsFields(before, after *storagev1.SettingsRecord) []*storagev1.FieldChange {
	var altered differences
	duration := func(of *durationpb.Duration) string {
		if of == nil {
			return ""
		}
		return of.AsDuration().String()
	}
	altered.text("staleness", duration(before.GetStaleness()), duration(after.GetStaleness()))
	schema := func(of *storagev1.SettingsRecord) string {
		if of.GetSchema() == 0 {
			return ""
		}
		return strconv.Itoa(int(of.GetSchema()))
	}
	altered.text("schema", schema(before), schema(after))
	altered.text("previous_staleness", duration(before.GetPreviousStaleness()), duration(after.GetPreviousStaleness()))
	return altered
}

// exists returns a word for a thing that is there, and "" otherwise.
func exists(there bool) string {
	if there {
		return "exists"
	}
	return ""
}

// FieldBytes returns about how many bytes the fields of an event take.
func FieldBytes(fields []*storagev1.FieldChange) int {
	total := 0
	for _, field := range fields {
		total += len(field.GetField()) + 8
		for _, values := range [][]string{field.GetBefore(), field.GetAfter()} {
			for _, value := range values {
				total += len(value) + 4
			}
		}
	}
	return total
}

// Cut leaves values out of the fields of an event, until they take at most limit bytes: the last
// values of each field that is larger than its share, and marks these fields.
func Cut(event *storagev1.AuditRecord, limit int) {
	fields := event.GetFields()
	if len(fields) == 0 || FieldBytes(fields) <= limit {
		return
	}
	// A field that is smaller than its share leaves the rest to the larger ones, so the fields are
	// looked at by size.
	order := slices.Clone(fields)
	size := func(field *storagev1.FieldChange) int { return FieldBytes([]*storagev1.FieldChange{field}) }
	slices.SortStableFunc(order, func(one, other *storagev1.FieldChange) int { return size(one) - size(other) })
	kept := make(map[*storagev1.FieldChange]*storagev1.FieldChange)
	for index, field := range order {
		share := max(0, limit) / (len(order) - index)
		if size(field) > share {
			kept[field] = cutField(field, share)
			limit -= size(kept[field])
			continue
		}
		kept[field] = field
		limit -= size(field)
	}
	for index, field := range fields {
		fields[index] = kept[field]
	}
}

// cutField returns a field with as many of its first values as fit into limit bytes: half of the
// room for those before, and the rest for those after.
func cutField(field *storagev1.FieldChange, limit int) *storagev1.FieldChange {
	cut := &storagev1.FieldChange{Field: field.GetField()}
	room := limit - FieldBytes([]*storagev1.FieldChange{cut})
	keep := func(values []string, room int) []string {
		for index, value := range values {
			if room -= len(value) + 4; room < 0 {
				return values[:index]
			}
		}
		return values
	}
	cut.Before = keep(field.GetBefore(), room/2)
	for _, value := range cut.GetBefore() {
		room -= len(value) + 4
	}
	cut.After = keep(field.GetAfter(), room)
	cut.BeforeOmitted = int32(len(field.GetBefore()) - len(cut.GetBefore())) //nolint:gosec // below the number of scopes
	cut.AfterOmitted = int32(len(field.GetAfter()) - len(cut.GetAfter()))    //nolint:gosec // see above
	return cut
}
