package budget

// stackBytes is about how much stack a validation needs beyond what grpc has used before it.
const stackBytes = 4 << 10

// growStack makes the stack of this goroutine large enough for a validation. A call for which there is
// no worker of grpc gets a new goroutine, with a small stack: to let it grow here, while there is
// little on it to copy, costs less than half of what it costs later. With a large stack this costs
// some 50 ns.
//
//go:noinline
func growStack() {
	var room [stackBytes]byte
	touch(&room)
}

// touch keeps the compiler from leaving room out.
//
//go:noinline
func touch(room *[stackBytes]byte) { room[0] = 1 }
