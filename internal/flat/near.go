package flat

// HoldNear is Hold for an id that probably has the number guess: looking there costs less than finding
// the id. A load that comes in the order in which the numbers were given guesses each of them.
func (s *IDs) HoldNear(id string, guess uint32, by Holder) (number uint32, before bool) {
	packed, is := Pack(id)
	if is && s.joinIf(packed, guess, by, &before) {
		return guess, before
	}
	return s.Hold(id, by)
}

// joinIf makes a holder hold a number that has an id and is held by another holder. It reports whether
// the number is one.
func (s *IDs) joinIf(id ID, number uint32, by Holder, before *bool) bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if number == 0 || number > s.ids.Highest() || *s.ids.At(number) != id || !s.isHeld(number) {
		return false
	}
	if _, other := s.otherNames[number]; other { // its ID is that of sixteen zeros
		return false
	}
	*before = s.join(number, by)
	return true
}

// isHeld reports whether any holder holds a number.
func (s *IDs) isHeld(number uint32) bool {
	for by := range holders {
		if s.holds(number, by) {
			return true
		}
	}
	return false
}
