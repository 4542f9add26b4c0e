//go:build linux

package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"strings"
	"time"
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

// mutant is a rule that is taken out of keysvc.
type mutant struct {
	name, patch string
	// attacks is a regular expression for the attacks that must break it, and lasts how long each
	// of them needs.
	attacks string
	lasts   time.Duration
	// complaint is a part of what is then found.
	complaint string
}

// readMutant reads a patch. The text before its first file has the lines "attacks:", "time:" and
// "complaint:".
func readMutant(name string) (mutant, error) {
	text, err := patches.ReadFile("mutants/" + name + ".patch")
	if err != nil {
		return mutant{}, fmt.Errorf("no mutant %q; there are %s", name, strings.Join(mutantNames(), ", "))
	}
	read := mutant{name: name, patch: string(text)}
	prose, _, _ := strings.Cut(read.patch, "\n--- ")
	for line := range strings.Lines(prose) {
		if attacks, found := strings.CutPrefix(line, "attacks: "); found {
			read.attacks = strings.TrimSpace(attacks)
		}
		if lasts, found := strings.CutPrefix(line, "time: "); found {
			if read.lasts, err = time.ParseDuration(strings.TrimSpace(lasts)); err != nil {
				return mutant{}, fmt.Errorf("mutant %s: %w", name, err)
			}
		}
	}
	for line := range strings.Lines(prose) {
		if complaint, found := strings.CutPrefix(line, "complaint: "); found {
			read.complaint = strings.TrimSpace(complaint)
		}
	}
	if read.complaint == "" {
		return mutant{}, fmt.Errorf("mutant %s does not say what is found", name)
	}
	if read.attacks == "" || read.lasts == 0 {
		return mutant{}, fmt.Errorf("mutant %s does not say which attacks must break it, or how long they last", name)
	}
	return read, nil
}

// hunt attacks mutants. Each must be broken.
func hunt(ctx context.Context, p plan, wanted string) error {
	names := strings.Split(wanted, ",")
	if wanted == "all" {
		names = mutantNames()
	}
	var survived []string
	for _, name := range names {
		one, err := readMutant(name)
		if err != nil {
			return err
		}
		attacks, err := choose(one.attacks, false, plain)
		if err != nil {
			return fmt.Errorf("mutant %s: %w", name, err)
		}
		fmt.Printf("\nmutant %s\n", name)
		p.lasts = one.lasts
		err = campaign(ctx, p, one.patch, attacks)
		switch {
		case errors.Is(err, errBroken) && strings.Contains(err.Error(), one.complaint):
			fmt.Printf("mutant %s was caught\n", name)
		case err == nil, errors.Is(err, errUndecided), errors.Is(err, errBroken):
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
