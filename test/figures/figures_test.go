//go:build linux

package main

import (
	"testing"

	"github.com/scribe-mail/keysvc/test/crash/overlay"
)

// TestPatchFits fails if the program without the barrier cannot be built any more.
func TestPatchFits(t *testing.T) {
	root, err := root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if files, err := overlay.Apply(root, withoutBarrier); err != nil || len(files) != 1 {
		t.Errorf("%d files, %v", len(files), err)
	}
}
