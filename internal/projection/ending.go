package projection

import (
	"cmp"
	"iter"
	"slices"
	"time"
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
// comes, changes or goes meanwhile may be missing.
func (p *Projection) Ending(query EndingQuery) (first []EndingKey, count int) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	found := firstEnding{limit: query.Limit}
	for number := range p.keysOf(s, query.Limited, query.Among) {
		each, due := query.due(s, number)
		if !due {
			continue
		}
		if found.isFull() && each.Due.After(found.bound.Due) { // most keys need no id
			count++
			continue
		}
		each.KeyID = s.ids.ID(number)
		if each.EndingPlace.Compare(query.After) <= 0 {
			continue
		}
		count++
		each.WorkspaceID = s.workspaceOf(s.records.At(number)).id
		found.add(each)
	}
	return found.take(), count
}

// due returns when a key falls due, without its ids, and reports whether it may belong to the query.
func (q EndingQuery) due(s *state, number uint32) (EndingKey, bool) {
	key := s.records.At(number)
	if key.ends&(flagDamaged|flagRevoked) != 0 {
		return EndingKey{}, false
	}
	expire := s.expireOf(key)
	left := expire - q.Now.UnixNano()
	index := slices.IndexFunc(q.Leads, func(lead time.Duration) bool { return left <= int64(lead) })
	if index < 0 {
		return EndingKey{}, false
	}
	each := EndingKey{Expire: time.Unix(0, expire).UTC(), Lead: q.Leads[index]}
	each.Due = each.Expire.Add(-each.Lead)
	if each.Due.Before(q.After.Due) || !each.Expire.After(q.NotEndedBy) || s.standingOf(key) == standingRevoked {
		return EndingKey{}, false
	}
	return each, q.InUse == nil || *q.InUse == !s.words.At(number).Time().Before(q.UsedSince)
}

// keysOf visits the numbers of the keys of all workspaces, or of some. mutex is held for reading, and
// released between strides.
func (p *Projection) keysOf(s *state, limited bool, among []string) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		s.walks.Add(1)
		defer s.walks.Add(-1)
		if !limited {
			for number := uint32(1); number <= s.highest; number++ {
				if s.has(number) && !yield(number) {
					return
				}
				if number%stride == 0 {
					p.giveWay()
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
	// bound is the place that no wanted key comes after, once kept had more than limit.
	bound EndingPlace
}

// isFull reports whether bound is set.
func (f *firstEnding) isFull() bool { return f.bound.KeyID != "" }

func (f *firstEnding) add(each EndingKey) {
	if f.isFull() && each.EndingPlace.Compare(f.bound) > 0 {
		return
	}
	// Sorting once for limit additions costs less than keeping the list sorted.
	if f.kept = append(f.kept, each); len(f.kept) >= 2*f.limit {
		f.kept = f.take()
		f.bound = f.kept[f.limit-1].EndingPlace
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
// those that were used since a time. It visits every key, and gives way as walks do.
func (p *Projection) CountEnding(now time.Time, within []time.Duration, usedSince time.Time) []EndingCounts {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s, counts := p.state, make([]EndingCounts, len(within))
	for number := range p.keysOf(s, false, nil) {
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
