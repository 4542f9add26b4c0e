//go:build linux

package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"strings"
)

//go:embed mutants
var patches embed.FS

// mutantNames returns the names of all mutants.
func mutantNames() []string {
	entries, err := patches.ReadDir("mutants")
	if err != nil {
		panic(err) // embedded
	}
	var names []string
	for _, entry := range entries {
		if name, found := strings.CutSuffix(entry.Name(), ".patch"); found {
			names = append(names, name)
		}
	}
	return names
}

// mutant returns a mutant's patch, and the attacks that must break it: the line "attacks:" in the
// text before the first file of the patch.
func mutant(name string) (patch, attacks string, err error) {
	text, err := patches.ReadFile("mutants/" + name + ".patch")
	if err != nil {
		return "", "", fmt.Errorf("no mutant %q; there are %s", name, strings.Join(mutantNames(), ", "))
	}
	prose, _, _ := strings.Cut(string(text), "\n--- ")
	for line := range strings.Lines(prose) {
		if attacks, found := strings.CutPrefix(line, "attacks: "); found {
			return string(text), strings.TrimSpace(attacks), nil
		}
	}
	return "", "", fmt.Errorf("mutant %s does not say which attacks must break it", name)
}

// hunt attacks mutants. Each must be broken.
func hunt(ctx context.Context, p plan, wanted string) error {
	names := strings.Split(wanted, ",")
	if wanted == "all" {
		names = mutantNames()
	}
	var survived []string
	for _, name := range names {
		patch, expression, err := mutant(name)
		if err != nil {
			return err
		}
		attacks, err := choose(expression, false)
		if err != nil {
			return fmt.Errorf("mutant %s: %w", name, err)
		}
		fmt.Printf("\nmutant %s\n", name)
		err = campaign(ctx, p, patch, attacks)
		switch {
		case errors.Is(err, errBroken):
			fmt.Printf("mutant %s was caught\n", name)
		case err == nil, errors.Is(err, errUndecided):
			fmt.Printf("mutant %s SURVIVED\n", name)
			survived = append(survived, name)
		default:
			return fmt.Errorf("mutant %s: %w", name, err)
		}
	}
	if len(survived) > 0 {
		return fmt.Errorf("mutants that survived: %s", strings.Join(survived, ", "))
	}
	return nil
}
