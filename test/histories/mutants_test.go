//go:build linux

package main

import (
	"path/filepath"
	"testing"

	"github.com/scribe-mail/keysvc/test/crash/overlay"
)

// TestEveryMutantApplies lays every mutant over the product as it is now. A mutant that no longer applies fails here, before a
// campaign is begun.
func TestEveryMutantApplies(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range mutantNames() {
		one, err := readMutant(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := overlay.Apply(root, one.patch); err != nil {
			t.Errorf("mutant %s: %v", name, err)
		}
	}
}
