//go:build linux

package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/scribe-mail/keysvc/test/crash/overlay"
	"github.com/scribe-mail/keysvc/test/trio"
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

// mutant is a rule that is taken out of keysvc or of its client.
type mutant struct {
	name, patch string
	// arguments are further arguments of the campaign. complaints are parts of what is said when the mutant is caught; one of them suffices.
	arguments, complaints []string
}

// readMutant reads a patch. The text before its first file has lines "complaint:", and perhaps a line "arguments:", where + stands for a space
// in an argument.
func readMutant(name string) (mutant, error) {
	text, err := patches.ReadFile("mutants/" + name + ".patch")
	if err != nil {
		return mutant{}, fmt.Errorf("no mutant %q; there are %s", name, strings.Join(mutantNames(), ", "))
	}
	read := mutant{name: name, patch: string(text)}
	prose, _, _ := strings.Cut(read.patch, "\n--- ")
	for line := range strings.Lines(prose + "\n") {
		if complaint, found := strings.CutPrefix(line, "complaint: "); found {
			read.complaints = append(read.complaints, strings.TrimSpace(complaint))
		}
		if arguments, found := strings.CutPrefix(line, "arguments: "); found {
			for each := range strings.FieldsSeq(arguments) {
				read.arguments = append(read.arguments, strings.ReplaceAll(each, "+", " "))
			}
		}
	}
	if len(read.complaints) == 0 {
		return mutant{}, fmt.Errorf("mutant %s does not say what is said when it is caught", name)
	}
	return read, nil
}

// hunt plays campaigns against mutants, each in a program of its own, because some are of the client. Each must be caught.
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
		said, err := one.catch(ctx, p)
		if err != nil {
			return fmt.Errorf("mutant %s: %w", name, err)
		}
		if !strings.HasPrefix(said, "caught") {
			survived = append(survived, name)
		}
		report = append(report, name+": "+said)
		fmt.Println(report[len(report)-1])
	}
	fmt.Printf("\n%s\n", strings.Join(report, "\n"))
	if len(survived) > 0 {
		return fmt.Errorf("mutants that survived: %s", strings.Join(survived, ", "))
	}
	return nil
}

// catch plays a campaign against the mutant, and says if it was caught.
func (m mutant) catch(ctx context.Context, p plan) (string, error) {
	folder, err := os.MkdirTemp("", "histories-mutant-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(folder)
	own, err := m.build(ctx, folder)
	if err != nil {
		return "", err
	}
	etcd := p.etcd
	if etcd == "" {
		programs, err := trio.Build(ctx)
		if err != nil {
			return "", err
		}
		etcd = programs.Etcd
	}
	arguments := append([]string{
		"-keysvc", filepath.Join(folder, "keysvc"), "-etcd", etcd, "-keep", folder,
		"-histories", strconv.Itoa(p.histories), "-operations", strconv.Itoa(p.operations), "-together", strconv.Itoa(p.together), "-seed", strconv.FormatUint(p.seed, 10),
	}, m.arguments...)
	command := exec.CommandContext(ctx, own, arguments...)
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	began := time.Now()
	output, err := command.CombinedOutput()
	said := string(output)
	_, complaint, _ := strings.Cut(said, "\nerror: ")
	ended := (*exec.ExitError)(nil)
	switch {
	case err == nil:
		return "SURVIVED: nothing was found", nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case !errors.As(err, &ended) || ended.ExitCode() != statusBroken:
		return "", fmt.Errorf("%w: %s", err, said[max(0, len(said)-2000):])
	case !slices.ContainsFunc(m.complaints, func(each string) bool { return strings.Contains(complaint, each) }):
		return "SURVIVED: " + complaint, nil
	}
	first := strings.SplitN(complaint, "\n", 3)
	return fmt.Sprintf("caught in %.0f s: %s: %s", time.Since(began).Seconds(), first[0], strings.TrimSpace(strings.Join(first[1:min(2, len(first))], ""))), nil
}

// build builds keysvc with the patch laid over. It returns the path of this program, which has the patch as well if it is about the
// client.
func (m mutant) build(ctx context.Context, folder string) (own string, err error) {
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	tests := filepath.Dir(strings.TrimSpace(string(module)))
	root := filepath.Dir(tests)
	patched, err := overlay.Apply(root, m.patch)
	if err != nil {
		return "", err
	}
	document := struct{ Replace map[string]string }{make(map[string]string)}
	for name, text := range patched {
		copied := filepath.Join(folder, fmt.Sprintf("%d-%s", len(document.Replace), filepath.Base(name)))
		if err := os.WriteFile(copied, []byte(text), 0o600); err != nil {
			return "", err
		}
		document.Replace[filepath.Join(root, name)] = copied
	}
	encoded, err := json.Marshal(document)
	if err != nil {
		return "", err
	}
	list := filepath.Join(folder, "overlay.json")
	if err := os.WriteFile(list, encoded, 0o600); err != nil {
		return "", err
	}
	programs := map[string][2]string{"keysvc": {root, "./cmd/keysvc"}}
	// This program is built anew only if the mutant is in it.
	listed, err := exec.CommandContext(ctx, "go", "-C", tests, "list", "-deps", "-f", "{{.Dir}}", "./histories").Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	folders := strings.Split(string(listed), "\n")
	own, err = os.Executable()
	if err != nil {
		return "", err
	}
	for name := range patched {
		if slices.Contains(folders, filepath.Join(root, filepath.Dir(name))) {
			own = filepath.Join(folder, "histories")
			programs["histories"] = [2]string{tests, "./histories"}
		}
	}
	for program, source := range programs {
		command := exec.CommandContext(ctx, "go", "-C", source[0], "build", "-buildvcs=false", "-overlay="+list, "-o", filepath.Join(folder, program), source[1])
		if text, err := command.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w\n%s", source[1], err, text)
		}
	}
	return own, nil
}
