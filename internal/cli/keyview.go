package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const keyStatePrefix = "KEY_STATE_"

// keyStates returns the states of keys as the command line has them.
func keyStates() []string {
	var words []string
	for _, number := range slices.Sorted(maps.Keys(keysvcv1.KeyState_name)) {
		if number != 0 {
			words = append(words, enumWord(keysvcv1.KeyState(number), keyStatePrefix))
		}
	}
	return words
}

// liveStates are the states of keys that work, or work again when their member does.
var liveStates = []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_ACTIVE, keysvcv1.KeyState_KEY_STATE_SUSPENDED}

// deadStates are the states of keys that never work again.
var deadStates = []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_EXPIRED, keysvcv1.KeyState_KEY_STATE_REVOKED}

func isLive(key *keysvcv1.Key) bool { return slices.Contains(liveStates, key.GetState()) }

// soon is how long before its expiry a key should be replaced.
const soon = 30 * 24 * time.Hour

func (p *printer) expiresSoon(key *keysvcv1.Key) bool {
	return isLive(key) && key.GetExpireTime() != nil && key.GetExpireTime().AsTime().Before(p.now().Add(soon))
}

// rotationEnd returns the time until which the old token of a key in rotation works; nil if the
// key is not in rotation.
func rotationEnd(key *keysvcv1.Key) *timestamppb.Timestamp {
	if !isLive(key) || len(key.GetSecrets()) < 2 {
		return nil
	}
	end := key.GetSecrets()[1].GetExpireTime()
	if expiry := key.GetExpireTime(); expiry.AsTime().Before(end.AsTime()) {
		return expiry // no token outlives its key
	}
	return end
}

// issuedLocally reports whether a caller of keysvc has drawn a present secret of the key.
func issuedLocally(key *keysvcv1.Key) bool {
	return slices.ContainsFunc(key.GetSecrets(), (*keysvcv1.KeySecret).GetIssuedLocally)
}

// isImported reports whether a present secret of the key is the token of another system.
func isImported(key *keysvcv1.Key) bool {
	return slices.ContainsFunc(key.GetSecrets(), (*keysvcv1.KeySecret).GetImported)
}

// issuedInWords says when a secret was issued, and by whom if it was not keysvc.
func (p *printer) issuedInWords(secret *keysvcv1.KeySecret) string {
	words := "issued " + p.minute(secret.GetCreateTime(), "-")
	if secret.GetIssuedLocally() {
		words += ", locally"
	}
	if secret.GetImported() {
		words = "imported " + p.minute(secret.GetCreateTime(), "-")
	}
	return words
}

// usedInWords says when a secret was last used.
func (p *printer) usedInWords(secret *keysvcv1.KeySecret) string {
	if secret.GetLastUsedTime() == nil {
		return "no use known"
	}
	return "last used " + p.minute(secret.GetLastUsedTime(), "-")
}

// stateWidth is the width of the longest state.
const stateWidth = 9

// keyColumns returns the columns of a list of keys. The workspace is left out if all keys have the
// same.
func keyColumns(withWorkspace bool) []column {
	workspace := column{title: "WORKSPACE", cutTo: 9}
	if !withWorkspace {
		workspace.in = never
	}
	return []column{
		{title: "KEY ID"},
		workspace,
		{title: "MEMBER", cutTo: 8},
		{title: "NAME", cutTo: 6},
		{title: "STATE", minWidth: stateWidth, in: narrowOnly},
		{title: "LAST USED", in: narrowOnly},
		{title: "EXPIRES", in: narrowOnly},
		{title: "STATE", minWidth: stateWidth, in: wideOnly},
		{title: "CREATED", in: wideOnly},
		{title: "CREATED BY", in: wideOnly},
		{title: "LAST USED", in: wideOnly},
		{title: "EXPIRES", in: wideOnly},
		{title: "STOPPED", in: wideOnly},
		{title: "SCOPES", in: wideOnly}, // last, because there may be many
	}
}

// keyRow returns the cells of a key for keyColumns.
func (p *printer) keyRow(key *keysvcv1.Key) []string {
	state := enumWord(key.GetState(), keyStatePrefix)
	fullState := state
	if end := rotationEnd(key); end != nil {
		until := day(end, "")
		if end.AsTime().Sub(p.now()) < 2*24*time.Hour {
			until = end.AsTime().Format(minuteLayout)
		}
		state, fullState = state+", rotating", state+", in rotation until "+until
	}
	if issuedLocally(key) {
		state, fullState = state+", local", fullState+", issued locally"
	}
	if isImported(key) {
		state, fullState = state+", imported", fullState+", with an imported token"
	}
	used, fullUsed := "never used", "never used"
	if last := key.GetLastUsedTime(); last != nil {
		used, fullUsed = p.age(last), day(last, "")+" ("+p.away(last)+")"
	}
	expires, fullExpires := "-", day(key.GetExpireTime(), "-")
	switch {
	case key.GetExpireTime() == nil, key.GetState() == keysvcv1.KeyState_KEY_STATE_REVOKED:
	case p.expiresSoon(key):
		expires = p.ageLeft(key.GetExpireTime()) + ", soon"
		fullExpires += " (soon: " + p.left(key.GetExpireTime()) + ")"
	default:
		expires = p.ageLeft(key.GetExpireTime())
		fullExpires += " (" + p.left(key.GetExpireTime()) + ")"
	}
	return []string{
		key.GetKeyId(), key.GetWorkspaceId(), key.GetMemberId(), key.GetName(),
		state, used, expires,
		fullState, day(key.GetCreateTime(), "-"), cmp.Or(changedBy(key.GetCreatedBy()), "-"), fullUsed, fullExpires,
		cmp.Or(stopWords(key, day(key.GetStopTime(), "")), "-"), strings.Join(key.GetScopes(), ", "),
	}
}

func (p *printer) key(key *keysvcv1.Key) error { return p.write([]byte(p.keyRecord(key))) }

// keyRecord returns a key in full, a line for each field, and then those of more.
func (p *printer) keyRecord(key *keysvcv1.Key, more ...field) string {
	addresses := "anywhere"
	if len(key.GetAllowedCidrs()) > 0 {
		addresses = strings.Join(key.GetAllowedCidrs(), ", ")
	}
	expires := p.deadline(key.GetExpireTime(), "")
	if p.expiresSoon(key) {
		expires = key.GetExpireTime().AsTime().Format(minuteLayout) + ", soon: " + p.left(key.GetExpireTime())
	}
	issuer := ""
	if issuedLocally(key) {
		issuer = "issued locally: a caller of keysvc drew the secret, and keysvc cannot know how well"
	}
	if isImported(key) {
		issuer = "imported: another system issued a token that works; rotate the key to end that"
	}
	fields := []field{
		{"Key", key.GetKeyId()},
		{"Name", key.GetName()},
		{"Workspace", key.GetWorkspaceId()},
		{"Member", key.GetMemberId()},
		{"State", keyStateWords(key)},
		{"Scopes", strings.Join(key.GetScopes(), ", ")},
		{"Usable from", addresses},
		{"Created", p.minute(key.GetCreateTime(), "")},
		{"Created by", changedBy(key.GetCreatedBy())},
		{"Imported", p.minute(key.GetImportTime(), "")},
		{"Last used", p.minute(key.GetLastUsedTime(), "never used")},
		{"Expires", expires},
		{"Revoked", p.minute(key.GetRevokeTime(), "")},
		{"Revoked by", changedBy(key.GetRevokedBy())},
		{"Stopped", stopWords(key, p.minute(key.GetStopTime(), ""))},
		{"Token", issuer},
		{"Labels", joinLabels(key.GetLabels())},
		{"Etag", key.GetEtag()},
	}
	// A key that is not in rotation has one token, which expires with the key.
	if end := rotationEnd(key); end != nil {
		newest, older := key.GetSecrets()[0], key.GetSecrets()[1]
		fields = append(
			fields,
			field{"In rotation", "until " + p.deadline(end, "-") + "; till then two tokens work"},
			field{"New token", fmt.Sprintf("%s; %s; expires %s", p.issuedInWords(newest), p.usedInWords(newest), p.deadline(newest.GetExpireTime(), "-"))},
			field{"Old token", fmt.Sprintf("%s; %s; ends %s", p.issuedInWords(older), p.usedInWords(older), p.deadline(end, "-"))},
		)
	}
	return record(append(fields, more...)...)
}

// changedBy returns who made a change: the caller, and the member that it named; "" for nil.
func changedBy(by *keysvcv1.ChangedBy) string {
	if by.GetActorMemberId() == "" {
		return by.GetCaller()
	}
	return by.GetCaller() + ", for " + by.GetActorMemberId()
}

// stopReasons are why a key stopped, in words.
var stopReasons = map[keysvcv1.StopReason]string{
	keysvcv1.StopReason_STOP_REASON_REVOKED:           "revoked",
	keysvcv1.StopReason_STOP_REASON_REPORTED:          "revoked by its token, which was reported",
	keysvcv1.StopReason_STOP_REASON_EXPIRED:           "expired",
	keysvcv1.StopReason_STOP_REASON_MEMBER_REMOVED:    "its member was removed",
	keysvcv1.StopReason_STOP_REASON_WORKSPACE_REMOVED: "its workspace was removed",
	keysvcv1.StopReason_STOP_REASON_MEMBER_SUSPENDED:  "its member is suspended",
	keysvcv1.StopReason_STOP_REASON_HELD:              "held since the store was restored from a backup",
}

// stopWords returns when and why a key stopped; "" if it works. at is the time in words, "" if it is
// not known.
func stopWords(key *keysvcv1.Key, at string) string {
	reason := key.GetStopReason()
	if reason == keysvcv1.StopReason_STOP_REASON_UNSPECIFIED {
		return ""
	}
	why := stopReasons[reason]
	if why == "" {
		why = enumWord(reason, "STOP_REASON_")
	}
	if at == "" {
		return why
	}
	return at + ": " + why
}

// keyAnswer shows the answer of GetKey: the key, and what it may do now.
func (p *printer) keyAnswer(answer *keysvcv1.GetKeyResponse) error {
	if answer.GetRole() == "" {
		return p.key(answer.GetKey())
	}
	effective := cmp.Or(strings.Join(answer.GetEffectiveScopes(), ", "), "none")
	return p.write([]byte(p.keyRecord(answer.GetKey(), field{"Role now", answer.GetRole()}, field{"Scopes now", effective})))
}

// keyStateWords returns the state of a key, with the reason if no other field shows it.
func keyStateWords(key *keysvcv1.Key) string {
	word := enumWord(key.GetState(), keyStatePrefix)
	switch key.GetState() {
	case keysvcv1.KeyState_KEY_STATE_SUSPENDED:
		return word + ", as its member is; it works again when the member does"
	case keysvcv1.KeyState_KEY_STATE_HELD:
		return word + " since the store was restored from a backup; it works again when it is released"
	case keysvcv1.KeyState_KEY_STATE_REVOKED:
		if key.GetRevokeTime() == nil && key.GetStopReason() == keysvcv1.StopReason_STOP_REASON_UNSPECIFIED {
			return word + ", as its member or workspace was removed"
		}
	case keysvcv1.KeyState_KEY_STATE_UNSPECIFIED, keysvcv1.KeyState_KEY_STATE_ACTIVE, keysvcv1.KeyState_KEY_STATE_EXPIRED:
	}
	return word
}

func joinLabels(annotations map[string]string) string {
	words := make([]string, 0, len(annotations))
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		words = append(words, name+"="+annotations[name])
	}
	return strings.Join(words, ", ")
}
