package restore

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/token"
)

// outcome is what became of a record.
type outcome struct {
	// narrowed says what is taken away again, and widened what was added since and is not.
	narrowed, widened []string
	// unclear is set if not everything is known.
	unclear bool
}

func (o *outcome) narrow(what string) { o.narrowed = appendNew(o.narrowed, what) }
func (o *outcome) widen(what string)  { o.widened = appendNew(o.widened, what) }

func appendNew(list []string, word string) []string {
	if slices.Contains(list, word) {
		return list
	}
	return append(list, word)
}

// narrowedKey is a key of a backup on its way through the events since.
type narrowedKey struct {
	outcome
	// record is what the restored store gets: the key of the backup, less what was taken away by any
	// event.
	record *storagev1.KeyRecord
	// scopes, cidrs and secrets are those of the key as it was served, after the events so far.
	scopes, cidrs []string
	secrets       []secretSince
	// rotated is set if the backup's newest secret is not the newest any more, and newest is the one
	// after it.
	rotated bool
	newest  secretSince
}

// secretSince is a secret as events tell it.
type secretSince struct {
	created, expires, overlap string
	// stored is the index of the secret in the backup; -1 if the backup does not have it.
	stored int
}

// narrowKey returns the key of a backup with everything taken away that the events took away. A hash of
// a secret that is not in the backup is drawn by random: nobody knows a token that matches it.
func narrowKey(stored *storagev1.KeyRecord, altered []*alteration, random func() ([]byte, error)) (*narrowedKey, error) {
	k := &narrowedKey{record: proto.CloneOf(stored)}
	k.restart(stored)
	for _, event := range altered {
		switch {
		case event.action == restarts:
			k.restart(stored)
		case event.deleted:
			// It was purged, so it was dead. It must not come back if a clock goes back, either.
			if k.record.GetRevokeTime() == nil {
				k.record.RevokeTime, k.record.RevokedBy = timestamppb.New(event.time), event.by
				k.narrow("purged")
			}
		default:
			k.unclear = k.unclear || event.unclear
			k.event(event)
		}
	}
	return k, k.putSecrets(stored, random)
}

// restart makes the key as it was served that of the backup.
func (k *narrowedKey) restart(stored *storagev1.KeyRecord) {
	k.scopes, k.cidrs, k.secrets = stored.GetScopes(), stored.GetAllowedCidrs(), nil
	for index, secret := range stored.GetSecrets() {
		k.secrets = append(k.secrets, secretSince{
			created: stamp(secret.GetCreateTime()), expires: stamp(secret.GetExpireTime()), overlap: stamp(secret.GetOverlapEndTime()), stored: index,
		})
	}
}

// event applies one event.
func (k *narrowedKey) event(event *alteration) {
	var created, expires, overlaps *storagev1.FieldChange
	for _, field := range event.fields {
		switch name := field.GetField(); name {
		case "scopes":
			k.setScopes(field)
		case "allowed_cidrs":
			k.setCIDRs(field)
		case "revoke_time":
			k.revoke(event, field)
		case "reported":
			k.record.Reported = k.record.GetReported() || slices.Contains(field.GetAfter(), "true")
		case "hold_time":
			if at, ok := timeOf(field.GetAfter()); ok && k.record.GetHoldTime() == nil {
				k.record.HoldTime = at
				k.narrow("held")
			} else if !ok {
				k.widen("released")
			}
		case "secrets.create_time":
			created = field
		case "secrets.expire_time":
			expires = field
		case "secrets.overlap_end_time":
			overlaps = field
		case "name":
			k.widen("name")
		case "create_time", "request_ids", "secrets.issued_locally":
		default:
			if strings.HasPrefix(name, "labels.") {
				k.widen("labels")
				continue
			}
			k.unclear = true // a field of a later version
		}
	}
	if created != nil || expires != nil || overlaps != nil {
		k.setSecrets(event, created, expires, overlaps)
	}
}

func (k *narrowedKey) setScopes(field *storagev1.FieldChange) {
	k.unclear = k.unclear || !slices.Equal(field.GetBefore(), k.scopes)
	before, after := decide.NewScopes(k.scopes...), decide.NewScopes(field.GetAfter()...)
	if len(after.Without(before)) > 0 {
		k.widen("scopes")
	}
	had := decide.NewScopes(k.record.GetScopes()...)
	if left := had.Intersect(after); len(left) < len(had) {
		k.record.Scopes = left
		k.narrow("scopes")
	}
	k.scopes = field.GetAfter()
}

func (k *narrowedKey) setCIDRs(field *storagev1.FieldChange) {
	k.unclear = k.unclear || !slices.Equal(field.GetBefore(), k.cidrs)
	k.cidrs = field.GetAfter()
	if len(k.cidrs) == 0 {
		k.widen("allowed_cidrs")
		return
	}
	both, ok := intersect(k.record.GetAllowedCidrs(), k.cidrs)
	if !ok {
		// No address is left, or there are too many rules. The newest rules are stored, and the key is
		// held, because a rule for no address cannot be stored.
		both, k.unclear = k.cidrs, true
	}
	if !slices.Equal(both, k.record.GetAllowedCidrs()) {
		k.record.AllowedCidrs = both
		k.narrow("allowed_cidrs")
	} else {
		k.widen("allowed_cidrs")
	}
}

// maxPrefixes is how many address rules a key may have.
const maxPrefixes = 32

// intersect returns the prefixes of the addresses that both lists allow. An empty list allows every
// address. It returns false if the result is empty or too long, or a prefix cannot be read.
func intersect(one, other []string) (both []string, ok bool) {
	if len(one) == 0 {
		return other, len(other) <= maxPrefixes
	}
	for _, first := range one {
		for _, second := range other {
			a, errA := netip.ParsePrefix(first)
			b, errB := netip.ParsePrefix(second)
			if errA != nil || errB != nil {
				return nil, false
			}
			if !a.Overlaps(b) {
				continue
			}
			inner := first
			if b.Bits() > a.Bits() {
				inner = second
			}
			both = appendNew(both, inner)
		}
	}
	return both, len(both) > 0 && len(both) <= maxPrefixes
}

func (k *narrowedKey) revoke(event *alteration, field *storagev1.FieldChange) {
	at, ok := timeOf(field.GetAfter())
	switch {
	case !ok:
		k.unclear = true // no event undoes a revocation
	case k.record.GetRevokeTime() == nil:
		k.record.RevokeTime, k.record.RevokedBy = at, event.by
		k.narrow("revoked")
	}
}

// setSecrets takes over the secrets after an event.
func (k *narrowedKey) setSecrets(event *alteration, created, expires, overlaps *storagev1.FieldChange) {
	// 1. Each list that the event does not have is as it was before.
	had := k.secrets
	list := func(field *storagev1.FieldChange, count int, of func(secretSince) string) ([]string, bool) {
		before := make([]string, len(had))
		for index, secret := range had {
			before[index] = of(secret)
		}
		if field == nil {
			return before, len(before) == count
		}
		return padded(field.GetAfter(), count), slices.Equal(padded(field.GetBefore(), len(had)), before) &&
			(len(field.GetAfter()) == 0 || len(field.GetAfter()) == count)
	}
	count := len(had)
	if created != nil {
		count = len(created.GetAfter())
	}
	newCreated, ok1 := list(created, count, func(s secretSince) string { return s.created })
	newExpires, ok2 := list(expires, count, func(s secretSince) string { return s.expires })
	newOverlaps, ok3 := list(overlaps, count, func(s secretSince) string { return s.overlap })
	if overlaps == nil && !ok3 && !slices.ContainsFunc(had, func(s secretSince) bool { return s.overlap != "" }) {
		newOverlaps, ok3 = make([]string, count), true // none had one, and none has
	}
	if !ok1 || !ok2 || !ok3 || len(newExpires) != count || len(newOverlaps) != count || len(newCreated) != count {
		k.unclear = true
		return
	}
	// 2. A secret keeps the time at which it was issued. Only a repair of the clock changes it, and
	// leaves the order as it is.
	k.secrets = make([]secretSince, count)
	for index := range k.secrets {
		k.secrets[index] = secretSince{created: newCreated[index], expires: newExpires[index], overlap: newOverlaps[index], stored: -1}
		same := func(s secretSince) bool { return s.created == newCreated[index] }
		if event.action == storagev1.AuditAction_AUDIT_ACTION_CLOCK_REPAIRED && index < len(had) {
			k.secrets[index].stored = had[index].stored
		} else if found := slices.IndexFunc(had, same); found >= 0 {
			k.secrets[index].stored = had[found].stored
			k.unclear = k.unclear || slices.ContainsFunc(had[found+1:], same)
		}
	}
	if count == 0 || k.secrets[0].stored != 0 {
		k.rotated = true
		if count > 0 && k.secrets[0].stored < 0 {
			k.newest = k.secrets[0]
		}
	}
	// 3. What a secret of the backup has lost.
	for index, secret := range k.record.GetSecrets() {
		at := slices.IndexFunc(k.secrets, func(s secretSince) bool { return s.stored == index })
		if at < 0 {
			if !ended(secret) {
				k.narrow("secret ended")
			}
			secret.OverlapEndTime = timestamppb.New(time.Unix(0, 0))
			continue
		}
		k.shorten(secret, k.secrets[at])
	}
}

// padded returns a list that events leave out if all of its values are empty.
func padded(list []string, count int) []string {
	if len(list) == 0 {
		return make([]string, count)
	}
	return list
}

// shorten gives a secret of the backup the earlier ends.
func (k *narrowedKey) shorten(secret *storagev1.SecretRecord, now secretSince) {
	if expires, ok := parse(now.expires); !ok {
		k.unclear = true
	} else if expires.AsTime().Before(secret.GetExpireTime().AsTime()) {
		secret.ExpireTime = expires
		k.narrow("expires earlier")
	}
	if now.overlap == "" {
		return
	}
	if overlap, ok := parse(now.overlap); !ok {
		k.unclear = true
	} else if secret.GetOverlapEndTime() == nil || overlap.AsTime().Before(secret.GetOverlapEndTime().AsTime()) {
		secret.OverlapEndTime = overlap
		k.narrow("secret ends")
	}
}

// ended reports whether setSecrets has ended a secret.
func ended(secret *storagev1.SecretRecord) bool {
	return secret.GetOverlapEndTime() != nil && secret.GetOverlapEndTime().AsTime().Unix() == 0
}

// putSecrets puts the secrets together: the newest one, and the one that still matches beside it.
func (k *narrowedKey) putSecrets(stored *storagev1.KeyRecord, random func() ([]byte, error)) error {
	kept := slices.DeleteFunc(slices.Clone(k.record.GetSecrets()), ended)
	if !k.rotated {
		k.record.Secrets = kept
		return nil
	}
	// The newest secret is not in the backup. One that nobody knows takes its place, so that the older
	// one ends when it would have, and the key can be rotated as any other.
	hash, err := random()
	if err != nil {
		return err
	}
	newest := &storagev1.SecretRecord{Scheme: uint32(token.SchemeVerifier), Hash: hash}
	var ok1, ok2 bool
	newest.CreateTime, ok1 = parse(k.newest.created)
	newest.ExpireTime, ok2 = parse(k.newest.expires)
	if !ok1 || !ok2 {
		k.unclear = true
		newest.CreateTime, newest.ExpireTime = stored.GetSecrets()[0].GetCreateTime(), stored.GetSecrets()[0].GetExpireTime()
	}
	k.record.Secrets = []*storagev1.SecretRecord{newest}
	for _, secret := range kept {
		if len(k.record.Secrets) == 1 && secret.GetOverlapEndTime() != nil {
			k.record.Secrets = append(k.record.Secrets, secret)
		}
	}
	k.widen("new secret")
	return nil
}

// stamp returns a time as events have it, "" for none.
func stamp(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	return at.AsTime().Format(time.RFC3339Nano)
}

// parse returns the time of a text of an event, and reports whether it is one.
func parse(text string) (*timestamppb.Timestamp, bool) {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return nil, false
	}
	return timestamppb.New(at), true
}

// timeOf returns the time of a field with one value, and reports whether it has one.
func timeOf(values []string) (*timestamppb.Timestamp, bool) {
	if len(values) != 1 {
		return nil, false
	}
	return parse(values[0])
}
