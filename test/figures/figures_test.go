//go:build linux

package main

import (
	"testing"

	"github.com/scribe-mail/keysvc/test/crash/overlay"
)

// TestProgramWithoutTheBarrierCanBeBuilt fails if the patch that takes the barrier out does not fit the source any more.
func TestProgramWithoutTheBarrierCanBeBuilt(t *testing.T) {
	root, err := root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if files, err := overlay.Apply(root, withoutBarrier); err != nil || len(files) != 1 {
		t.Errorf("%d files, %v", len(files), err)
	}
}
