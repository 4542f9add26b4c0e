package storage

// Wrapper is a store, or a role of one, that passes calls on to another one inside it. A Wrapper offers
// the optional behaviours of the store inside, those and no others: see As.
//
// A Wrapper implements an optional behaviour itself if it must see or change those calls. It must do so
// for every behaviour whose users ask for it instead of a method that the Wrapper changes, or
// the calls would pass it by: LoadViews is a Load, LocalBarrier is a Barrier, and Fence is a change like
// Commit. TestWrappersPassEveryBehaviourOn finds every Wrapper and every behaviour, and checks both rules.
type Wrapper interface {
	// Unwrap returns the store inside.
	Unwrap() any
}

// As returns a store's optional behaviour T and reports whether the store has it. A Wrapper has a
// behaviour if the store inside has it; the result is the Wrapper's own implementation if there is one.
// Never look for a behaviour with a type assertion: a Wrapper would hide it, and over a store that
// several processes share, a hidden Fencer breaks R5 of docs/replication.md.
func As[T any](store any) (behaviour T, has bool) {
	own, implements := store.(T)
	wrapper, is := store.(Wrapper)
	if !is {
		return own, implements
	}
	inside, has := As[T](wrapper.Unwrap())
	if has && implements {
		return own, true
	}
	return inside, has
}
