//go:build linux

package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"slices"
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
	// disks are the disks on which it must be caught. complaints are parts of what is said when it is
	// caught; one of them suffices.
	disks      []string
	complaints []string
}

// saidBy reports whether an error complains of the mutant.
func (m mutant) saidBy(err error) bool {
	return slices.ContainsFunc(m.complaints, func(complaint string) bool { return strings.Contains(err.Error(), complaint) })
}

// readMutant reads a patch. The text before its first file has the lines "disks:" and "complaint:".
func readMutant(name string) (mutant, error) {
	text, err := patches.ReadFile("mutants/" + name + ".patch")
	if err != nil {
		return mutant{}, fmt.Errorf("no mutant %q; there are %s", name, strings.Join(mutantNames(), ", "))
	}
	read := mutant{name: name, patch: string(text)}
	prose, _, _ := strings.Cut(read.patch, "\n--- ")
	for line := range strings.Lines(prose) {
		if disks, found := strings.CutPrefix(line, "disks: "); found {
			read.disks = strings.Split(strings.TrimSpace(disks), ",")
		}
	}
	for line := range strings.Lines(prose + "\n") {
		if complaint, found := strings.CutPrefix(line, "complaint: "); found {
			read.complaints = append(read.complaints, strings.TrimSpace(complaint))
		}
	}
	if len(read.disks) == 0 || len(read.complaints) == 0 {
		return mutant{}, fmt.Errorf("mutant %s does not say on which disks it is caught, or what is then said", name)
	}
	return read, nil
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
		fmt.Printf("\nmutant %s\n", name)
		p.disks = one.disks
		began := time.Now()
		err = campaign(ctx, p, one.patch)
		switch {
		case errors.Is(err, errBroken) && one.saidBy(err):
			report = append(report, fmt.Sprintf("%s: caught in %.0f s: %s", name, time.Since(began).Seconds(), firstLine(err)))
		case err == nil, errors.Is(err, errBroken), errors.Is(err, errNoDisk):
			report = append(report, fmt.Sprintf("%s: SURVIVED: %v", name, err))
			survived = append(survived, name)
		default:
			return fmt.Errorf("mutant %s: %w", name, err)
		}
		fmt.Println(report[len(report)-1])
	}
	fmt.Printf("\n%s\n", strings.Join(report, "\n"))
	if len(survived) > 0 {
		return fmt.Errorf("mutants that survived: %s", strings.Join(survived, ", "))
	}
	return nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
