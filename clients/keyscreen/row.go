package keyscreen

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const (
	// soon is how long before its end a key is said to expire soon.
	soon = 30 * 24 * time.Hour
	// unused is how long a key was not used that is said to be unused.
	unused = 90 * 24 * time.Hour
	// lately is how long ago a use is a reason not to end a secret.
	lately = 7 * 24 * time.Hour
)

// moment is a time as people see it. The zero moment is never.
type moment struct {
	// Machine is the time by RFC 3339; empty for never.
	Machine string
	// Exact and Date are the time, and its date, in the zone of the visit.
	Exact, Date string
	// Relative says how far it is from now.
	Relative string
}

// moment returns how a time is shown.
func (v *visit) moment(at *timestamppb.Timestamp) moment {
	if at == nil {
		return moment{}
	}
	when := at.AsTime().In(v.zone)
	return moment{
		Machine: when.Format(time.RFC3339), Exact: when.Format(v.language.DateTime + " MST"), Date: when.Format(v.language.Date),
		Relative: v.language.relative(when, v.now),
	}
}

// row is a key as the table shows it.
type row struct {
	ID, Name string
	// Label names the key for people who hear its actions.
	Resources      []resource
	ScopeCount     int
	CreatedBy      string
	ActsAs         string // empty if it is CreatedBy
	Created        moment
	LastUsed       moment
	Expires        moment
	State, Class   string
	Tags           []string
	Secrets        []secret // those of a key in rotation, newest first
	MayReplace     bool
	MayRevoke      bool
	MayFinish      bool
	Own, Ended     bool
	UsedLately     bool // the older secret of a key in rotation
	OlderIsUnknown bool // whether the older secret has no known use, and the key has one
}

// secret is one of two secrets of a key in rotation.
type secret struct {
	Title    string
	Issued   moment
	Expires  moment
	LastUsed moment
}

// live returns the secrets of a key that still match, newest first.
func (v *visit) live(key *keysvcv1.Key) []*keysvcv1.KeySecret {
	return slices.DeleteFunc(slices.Clone(key.GetSecrets()), func(known *keysvcv1.KeySecret) bool {
		return !v.now.Before(known.GetExpireTime().AsTime())
	})
}

// rows returns keys as the table shows them.
func (v *visit) rows(keys []*keysvcv1.Key) []row {
	var members []string
	for _, key := range keys {
		members = append(members, key.GetMemberId())
		if actor := key.GetCreatedBy().GetActorMemberId(); actor != "" {
			members = append(members, actor)
		}
	}
	names := v.names(members)
	rows := make([]row, 0, len(keys))
	for _, key := range keys {
		rows = append(rows, v.row(key, names))
	}
	return rows
}

func (v *visit) row(key *keysvcv1.Key, names map[string]string) row {
	called := func(member string) string {
		switch {
		case member == v.viewer.member:
			return v.T("you")
		case names[member] != "":
			return names[member]
		}
		return member
	}
	state := key.GetState()
	shown := row{
		ID: key.GetKeyId(), Name: key.GetName(),
		Resources: v.catalogue(key.GetScopes()), ScopeCount: len(key.GetScopes()),
		Created: v.moment(key.GetCreateTime()), LastUsed: v.moment(key.GetLastUsedTime()), Expires: v.moment(key.GetExpireTime()),
		Own:   v.own(key),
		Ended: state == keysvcv1.KeyState_KEY_STATE_REVOKED || state == keysvcv1.KeyState_KEY_STATE_EXPIRED,
	}
	shown.CreatedBy, shown.ActsAs = v.T("unknown"), called(key.GetMemberId())
	if actor := key.GetCreatedBy().GetActorMemberId(); actor != "" {
		shown.CreatedBy = called(actor)
	}
	if shown.ActsAs == shown.CreatedBy {
		shown.ActsAs = ""
	}
	if shown.Own && !v.viewer.outdated {
		for index := range shown.Resources {
			for which := range shown.Resources[index].Actions {
				act := &shown.Resources[index].Actions[which]
				act.Lost = !slices.Contains(v.viewer.assignable, act.Scope)
			}
		}
	}
	v.state(&shown, key)
	return shown
}

// endsSoon reports whether a key ends within soon, and has lived for more than half of its time: a key
// that was made for 30 days needs no attention on its first day.
func (v *visit) endsSoon(key *keysvcv1.Key) bool {
	end, begin := key.GetExpireTime().AsTime(), key.GetCreateTime().AsTime()
	if secrets := v.live(key); len(secrets) > 0 {
		begin = secrets[0].GetCreateTime().AsTime()
	}
	return end.Before(v.soonEnd()) && v.now.Sub(begin) >= end.Sub(v.now)
}

// state fills in what depends on whether a key works.
func (v *visit) state(shown *row, key *keysvcv1.Key) {
	switch key.GetState() {
	case keysvcv1.KeyState_KEY_STATE_ACTIVE:
		shown.State, shown.Class = v.T("state.active"), "active"
		if v.endsSoon(key) {
			shown.State, shown.Class = v.T("state.expiring"), "expiring"
		}
	case keysvcv1.KeyState_KEY_STATE_SUSPENDED:
		shown.State, shown.Class = v.T("state.suspended"), "suspended"
	case keysvcv1.KeyState_KEY_STATE_EXPIRED:
		shown.State, shown.Class = v.T("state.expired"), "expired"
	case keysvcv1.KeyState_KEY_STATE_REVOKED:
		shown.State, shown.Class = v.T("state.revoked"), "revoked"
	case keysvcv1.KeyState_KEY_STATE_HELD:
		shown.State, shown.Class = v.T("state.held"), "held"
	case keysvcv1.KeyState_KEY_STATE_UNSPECIFIED:
		fallthrough
	default: // of a newer keysvc
		shown.State, shown.Class = v.T("state.unknown"), "unknown"
	}
	if key.GetImportTime() != nil {
		shown.Tags = append(shown.Tags, v.T("state.imported"))
	}
	shown.MayReplace = shown.Own && key.GetState() == keysvcv1.KeyState_KEY_STATE_ACTIVE
	shown.MayRevoke = !shown.Ended
	secrets := v.live(key)
	if shown.Ended || len(secrets) < 2 {
		return
	}
	shown.MayFinish = true
	shown.Tags = append(shown.Tags, v.T("state.rotating"))
	for index, known := range secrets {
		title := v.T("secret.new")
		if index > 0 {
			title = v.T("secret.old")
			used := known.GetLastUsedTime()
			shown.UsedLately = used != nil && v.now.Sub(used.AsTime()) < lately
			shown.OlderIsUnknown = used == nil && key.GetLastUsedTime() != nil && secrets[0].GetLastUsedTime() == nil
		}
		shown.Secrets = append(shown.Secrets, secret{
			Title: title, Issued: v.moment(known.GetCreateTime()), Expires: v.moment(known.GetExpireTime()), LastUsed: v.moment(known.GetLastUsedTime()),
		})
	}
}
