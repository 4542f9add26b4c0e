package flat

// together is how many ids HoldAll looks up together.
const together = 32

// HoldAll makes a holder hold ids, as Hold does one after the other. added is called for each id in
// turn, with its index, its number and whether the holder held it before; it must not call the IDs.
//
// At millions of ids each place in memory is a cache miss. HoldAll reads the places of several ids
// first, so that the processor waits for all of them at once.
func (s *IDs) HoldAll(ids []ID, by Holder, added func(index int, number uint32, before bool)) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	var hashes [together]uint64
	for first := 0; first < len(ids); first += together {
		some := ids[first:min(first+together, len(ids))]
		for index := range some {
			hashes[index] = s.hash(some[index])
			s.warmed += s.index.peek(hashes[index])
		}
		for index := range some {
			number := s.find(some[index], hashes[index])
			if number == 0 {
				number = s.ids.Add()
				*s.ids.At(number) = some[index]
				s.index.Insert(hashes[index], number, s.hashOf)
			}
			added(first+index, number, s.join(number, by))
		}
	}
}

// peek reads the place where a search for a hash begins.
func (x *Index) peek(hash uint64) uint32 {
	slots := x.segments[hash>>x.shift].slots
	if len(slots) == 0 {
		return 0
	}
	return slots[home(hash, slots)]
}
