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

// mutant is a rule that is taken out of keysvc. complaint is a part of what is said when it is caught.
type mutant struct{ patch, complaint string }

// readMutant reads a patch. The text before its first file has the line "complaint:".
func readMutant(name string) (mutant, error) {
	text, err := patches.ReadFile("mutants/" + name + ".patch")
	if err != nil {
		return mutant{}, fmt.Errorf("no mutant %q; there are %s", name, strings.Join(mutantNames(), ", "))
	}
	prose, _, _ := strings.Cut(string(text), "\n--- ")
	for line := range strings.Lines(prose) {
		if complaint, found := strings.CutPrefix(line, "complaint: "); found {
			return mutant{string(text), strings.TrimSpace(complaint)}, nil
		}
	}
	return mutant{}, fmt.Errorf("mutant %s does not say what is said when it is caught", name)
}

// hunt plays campaigns against mutants. Each must be caught.
func hunt(ctx context.Context, p plan, wanted string) error {
	names := strings.Split(wanted, ",")
	if wanted == "all" {
		names = mutantNames()
	}
	var survived, report []string
	for _, name := range names {
		one, err := readMutant(name)
		if err != nil {
			return err
		}
		began := time.Now()
		err = campaign(ctx, p, one.patch)
		switch {
		case errors.Is(err, errBroken) && strings.Contains(err.Error(), one.complaint):
			line, _, _ := strings.Cut(err.Error(), "\n")
			report = append(report, fmt.Sprintf("%s: caught in %.0f s: %s", name, time.Since(began).Seconds(), line))
		case err == nil, errors.Is(err, errBroken):
			report = append(report, fmt.Sprintf("%s: SURVIVED: %v", name, err))
			survived = append(survived, name)
		default:
			return fmt.Errorf("mutant %s: %w", name, err)
		}
		fmt.Println(report[len(report)-1])
	}
	if len(survived) > 0 {
		return fmt.Errorf("mutants that survived: %s", strings.Join(survived, ", "))
	}
	return nil
}
