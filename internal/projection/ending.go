package projection

import (
	"cmp"
	"context"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/scribe-mail/keysvc/internal/giveway"
)

// EndingQuery selects keys that end soon. A key falls due at each of its leads: so long before its
// expire time. At one moment a key has at most one due time, that of the shortest lead which has
// begun.
type EndingQuery struct {
	// Now is the present time. What falls due later is left out.
	Now time.Time
	// Leads are ascending. At least one.
	Leads []time.Duration
	// After is the place in the order of due times and, of equal ones, of key ids that the wanted
	// keys come after. The zero EndingPlace is the beginning.
	After EndingPlace
	// NotEndedBy leaves out keys that expire at that time or before.
	NotEndedBy time.Time
	// UsedSince is from when on a use makes a key one in use, and InUse, if set, selects keys in use,
	// or unused ones.
	UsedSince time.Time
	InUse     *bool
	// Limit is the max number of keys. At least 1.
	Limit int
	// Limited is set if only the keys of the workspaces in Among are wanted, which need not exist.
	Limited bool
	Among   []string
}

// EndingPlace is a place in the list of keys that end soon.
type EndingPlace struct {
	// Due is a due time, and KeyID the id of a key.
	Due   time.Time
	KeyID string
}

// Compare compares two places, as cmp.Compare does.
func (p EndingPlace) Compare(other EndingPlace) int {
	return cmp.Or(p.Due.Compare(other.Due), cmp.Compare(p.KeyID, other.KeyID))
}

// EndingKey is a key that ends soon.
type EndingKey struct {
	EndingPlace

	// WorkspaceID is the key's workspace.
	WorkspaceID string
	// Expire is when the key expires, and Lead the lead that has begun.
	Expire time.Time
	Lead   time.Duration
}

// Ending returns the first keys of a query in their order, and how many keys there are in all. It
// visits every key of the workspaces, gives way as walks do, and keeps no more than twice Limit. A
// key that counts as revoked, or is damaged, does not end soon; a suspended one does. A key that
// comes, changes or goes meanwhile may be missing. The work of the context gives way.
func (p *Projection) Ending(ctx context.Context, query EndingQuery) (first []EndingKey, count int) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	wanted := query.prepare()
	found := firstEnding{limit: query.Limit}
	var room [16]byte
	id := room[:0]
	for number := range p.keysOf(s, query.Limited, query.Among, giveway.From(ctx)) {
		expire, lead := wanted.due(s, number)
		if lead == 0 {
			continue
		}
		due := expire - int64(lead)
		if due == wanted.after || found.isFull() && due >= found.bound { // most keys need no id
			id = s.ids.AppendID(id[:0], number)
			if due == wanted.after && string(id) <= query.After.KeyID {
				continue
			}
			if found.isFull() && (due > found.bound || due == found.bound && string(id) > found.boundID) {
				count++
				continue
			}
		}
		count++
		each := EndingKey{WorkspaceID: s.workspaceOf(s.records.At(number)).id, Expire: time.Unix(0, expire).UTC(), Lead: lead}
		each.Due, each.KeyID = each.Expire.Add(-lead), s.ids.ID(number)
		found.add(each)
	}
	return found.take(), count
}

// endingFilter is an EndingQuery, prepared for many keys. Times are in Unix nanoseconds.
type endingFilter struct {
	leads                       []time.Duration
	now, after, ended, lastLead int64
	usedSince                   time.Time
	inUse                       *bool
}

func (q *EndingQuery) prepare() *endingFilter {
	return &endingFilter{
		leads: q.Leads, now: q.Now.UnixNano(), after: nanosecondsOf(q.After.Due), ended: nanosecondsOf(q.NotEndedBy),
		lastLead: int64(q.Leads[len(q.Leads)-1]), usedSince: q.UsedSince, inUse: q.InUse,
	}
}

// nanosecondsOf returns a time in Unix nanoseconds, or the nearest number for a time that has none, such as
// the zero Time.
func nanosecondsOf(at time.Time) int64 {
	switch {
	case at.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	case at.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return at.UnixNano()
}

// due returns when a key expires, and the lead that has begun; no lead if the key does not belong to the
// query. A key that is due at the place itself may or may not belong to it.
func (f *endingFilter) due(s *state, number uint32) (expire int64, lead time.Duration) {
	key := s.records.At(number)
	if key.ends&(flagDamaged|flagRevoked) != 0 {
		return 0, 0
	}
	expire = s.expireOf(key)
	left := expire - f.now
	if left > f.lastLead || expire <= f.ended {
		return 0, 0
	}
	for _, lead = range f.leads {
		if left <= int64(lead) {
			break
		}
	}
	if expire-int64(lead) < f.after || s.standingOf(key) == standingRevoked {
		return 0, 0
	}
	if f.inUse != nil && *f.inUse == s.words.At(number).Time().Before(f.usedSince) {
		return 0, 0
	}
	return expire, lead
}

// keysOf visits the numbers of the keys of all workspaces, or of some. mutex is held for reading, and
// released between strides.
func (p *Projection) keysOf(s *state, limited bool, among []string, work *giveway.Work) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		s.walks.Add(1)
		defer s.walks.Add(-1)
		if !limited {
			for number := uint32(1); number <= s.highest; number++ {
				if s.has(number) && !yield(number) {
					return
				}
				if number%stride == 0 {
					p.giveWayAs(work)
				}
			}
			return
		}
		for _, id := range among {
			if of := s.workspaces[id]; of != nil {
				for number := range p.inOrder(s, &of.keys) {
					if !yield(number) {
						return
					}
				}
			}
		}
	}
}

// firstEnding keeps the first keys of those that are added.
type firstEnding struct {
	limit int
	kept  []EndingKey
	// bound and boundID are the place that no wanted key comes after, in Unix nanoseconds and by id, once
	// kept had twice limit.
	bound   int64
	boundID string
}

// isFull reports whether bound is set.
func (f *firstEnding) isFull() bool { return f.boundID != "" }

// add adds a key that comes before the bound.
func (f *firstEnding) add(each EndingKey) {
	// Sorting once for limit additions costs less than keeping the list sorted.
	if f.kept = append(f.kept, each); len(f.kept) >= 2*f.limit {
		f.kept = f.take()
		f.bound, f.boundID = f.kept[f.limit-1].Due.UnixNano(), f.kept[f.limit-1].KeyID
	}
}

// take returns the first keys, sorted.
func (f *firstEnding) take() []EndingKey {
	slices.SortFunc(f.kept, func(a, b EndingKey) int { return a.EndingPlace.Compare(b.EndingPlace) })
	return f.kept[:min(len(f.kept), f.limit)]
}

// EndingCounts are active keys that expire within some time, in use and unused.
type EndingCounts struct{ InUse, Unused int64 }

// CountEnding counts, for each of the ascending spans, the active keys that expire within it, apart
// those that were used since a time. It visits every key. The work of the context gives way.
func (p *Projection) CountEnding(ctx context.Context, now time.Time, within []time.Duration, usedSince time.Time) []EndingCounts {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s, counts := p.state, make([]EndingCounts, len(within))
	for number := range p.keysOf(s, false, nil, giveway.From(ctx)) {
		key := s.records.At(number)
		if key.ends&(flagDamaged|flagRevoked) != 0 {
			continue
		}
		left := s.expireOf(key) - now.UnixNano()
		if left <= 0 || left > int64(within[len(within)-1]) || s.standingOf(key) != standingActive {
			continue
		}
		inUse := !s.words.At(number).Time().Before(usedSince)
		for index, span := range within {
			switch {
			case left > int64(span):
			case inUse:
				counts[index].InUse++
			default:
				counts[index].Unused++
			}
		}
	}
	return counts
}
