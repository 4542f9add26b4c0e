package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const keyStatePrefix = "KEY_STATE_"

// keyStates returns the states that keys can be in, as people write them.
func keyStates() []string {
	var words []string
	for _, number := range slices.Sorted(maps.Keys(keysvcv1.KeyState_name)) {
		if number != 0 {
			words = append(words, enumWord(keysvcv1.KeyState(number), keyStatePrefix))
		}
	}
	return words
}

// liveStates are those of keys that work, or will again.
var liveStates = []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_ACTIVE, keysvcv1.KeyState_KEY_STATE_SUSPENDED}

func isLive(key *keysvcv1.Key) bool { return slices.Contains(liveStates, key.GetState()) }

// soon is when people should begin to replace a key.
const soon = 30 * 24 * time.Hour

func (p *printer) expiresSoon(key *keysvcv1.Key) bool {
	return isLive(key) && key.GetExpireTime() != nil && key.GetExpireTime().AsTime().Before(p.now().Add(soon))
}

// rotationEnd returns until when the old one of a key's two tokens works; nil if the
// key is not in rotation.
func rotationEnd(key *keysvcv1.Key) *timestamppb.Timestamp {
	if !isLive(key) || len(key.GetSecrets()) < 2 {
		return nil
	}
	end := key.GetSecrets()[1].GetExpireTime()
	if expiry := key.GetExpireTime(); expiry.AsTime().Before(end.AsTime()) {
		return expiry // which ends all of them
	}
	return end
}

// keyHeader is the first line of a list of keys; the workspace is left out where all
// have the same.
func keyHeader(withWorkspace bool) []string {
	header := []string{"KEY ID", "WORKSPACE", "MEMBER", "NAME", stateHeader, "CREATED", "LAST USED", "EXPIRES", "SCOPES"}
	if !withWorkspace {
		header = slices.Delete(header, 1, 2)
	}
	return header
}

// keyRow is a key's line in a list. Scopes come last, as there may be many.
func (p *printer) keyRow(key *keysvcv1.Key, withWorkspace bool) []string {
	const most = 6
	scopes := key.GetScopes()
	text := strings.Join(scopes[:min(most, len(scopes))], ", ")
	if len(scopes) > most {
		text += fmt.Sprintf(" and %d more", len(scopes)-most)
	}
	state := enumWord(key.GetState(), keyStatePrefix)
	if end := rotationEnd(key); end != nil {
		until := day(end, "")
		if end.AsTime().Sub(p.now()) < 2*24*time.Hour {
			until = end.AsTime().Format(minuteLayout)
		}
		state += ", in rotation until " + until
	}
	used := "never used"
	if last := key.GetLastUsedTime(); last != nil {
		used = day(last, "") + " (" + p.away(last) + ")"
	}
	expires := day(key.GetExpireTime(), "-")
	switch {
	case key.GetExpireTime() == nil, key.GetState() == keysvcv1.KeyState_KEY_STATE_REVOKED:
	case p.expiresSoon(key):
		expires += " (soon: " + p.left(key.GetExpireTime()) + ")"
	default:
		expires += " (" + p.left(key.GetExpireTime()) + ")"
	}
	row := []string{
		key.GetKeyId(), key.GetWorkspaceId(), key.GetMemberId(), key.GetName(),
		state, day(key.GetCreateTime(), "-"), used, expires, text,
	}
	if !withWorkspace {
		row = slices.Delete(row, 1, 2)
	}
	return row
}

func (p *printer) key(key *keysvcv1.Key) error { return p.write([]byte(p.keyRecord(key))) }

// keyRecord is all there is to know of a key.
func (p *printer) keyRecord(key *keysvcv1.Key) string {
	addresses := "anywhere"
	if len(key.GetAllowedCidrs()) > 0 {
		addresses = strings.Join(key.GetAllowedCidrs(), ", ")
	}
	expires := p.deadline(key.GetExpireTime(), "")
	if p.expiresSoon(key) {
		expires = key.GetExpireTime().AsTime().Format(minuteLayout) + ", soon: " + p.left(key.GetExpireTime())
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
		{"Last used", p.minute(key.GetLastUsedTime(), "never used")},
		{"Expires", expires},
		{"Revoked", p.minute(key.GetRevokeTime(), "")},
		{"Labels", joinLabels(key.GetLabels())},
		{"Etag", key.GetEtag()},
	}
	// The one token of a key that is not in rotation lives as long as the key does.
	if end := rotationEnd(key); end != nil {
		newest, older := key.GetSecrets()[0], key.GetSecrets()[1]
		fields = append(
			fields,
			field{"In rotation", "until " + p.deadline(end, "-") + "; till then two tokens work"},
			field{"New token", fmt.Sprintf("issued %s; expires %s", p.minute(newest.GetCreateTime(), "-"), p.deadline(newest.GetExpireTime(), "-"))},
			field{"Old token", fmt.Sprintf("issued %s; ends %s", p.minute(older.GetCreateTime(), "-"), p.deadline(end, "-"))},
		)
	}
	return record(fields...)
}

// keyStateWords returns the state and, where the rest of the record does not tell it,
// why.
func keyStateWords(key *keysvcv1.Key) string {
	word := enumWord(key.GetState(), keyStatePrefix)
	switch key.GetState() {
	case keysvcv1.KeyState_KEY_STATE_SUSPENDED:
		return word + ", as its member is; it works again when the member does"
	case keysvcv1.KeyState_KEY_STATE_REVOKED:
		if key.GetRevokeTime() == nil {
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
