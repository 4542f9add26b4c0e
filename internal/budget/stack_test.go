package budget

import (
	"runtime"
	"runtime/debug"
	"testing"
	"unsafe"
)

// A goroutine whose stack grows is moved: then the address of what lies on the stack changes.
func TestAStackThatHasGrownHasRoomForAValidation(t *testing.T) {
	// A collection of garbage would make the stack small again.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	runtime.GC()
	type places struct{ begin, grown, used uintptr }
	seen := make(chan places)
	go func() {
		var here byte
		var found places
		found.begin = uintptr(unsafe.Pointer(&here))
		growStack()
		found.grown = uintptr(unsafe.Pointer(&here))
		useStack()
		found.used = uintptr(unsafe.Pointer(&here))
		seen <- found
	}()
	found := <-seen
	if found.grown == found.begin {
		t.Error("the stack of a new goroutine has not grown")
	}
	if found.used != found.grown {
		t.Errorf("the stack grows again for %d bytes", validationBytes)
	}
}

// validationBytes is what a validation takes of the stack, at most, from the gate on.
const validationBytes = 5 << 10

//go:noinline
func useStack() {
	var used [validationBytes]byte
	useAll(&used)
}

//go:noinline
func useAll(used *[validationBytes]byte) { used[0] = 1 }
