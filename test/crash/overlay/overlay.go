// Package overlay writes what `go build -overlay` takes: the laboratory's seam in
// package syscall, and, for a mutant, the product's files with one rule taken out.
package overlay

import (
	"embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

//go:embed calls.go.txt
var calls string

//go:embed mutants/*.patch
var patches embed.FS

// seen lists the functions of package syscall that calls.go.txt stands in for. Each
// is renamed: "write" becomes "realWrite".
var seen = []string{
	"openat", "Close", "read", "pread", "Fstat", "Flock", "write", "pwrite", "Ftruncate", "Truncate", "Fallocate",
	"Fsync", "Fdatasync", "linkat", "Renameat", "unlinkat",
}

// Config says what to lay over what.
type Config struct {
	// Folder receives the files. Required.
	Folder string
	// Root is the root of the repository. Required.
	Root string
	// GoRoot is the toolchain's, as `go env GOROOT` says. Required.
	GoRoot string
	// Mutant is the rule to take out, one of Mutants; empty for none.
	Mutant string
}

// Write writes the overlay and returns the name of its JSON file. A patch or function
// that does not fit what it is laid over is an error.
func Write(config Config) (string, error) {
	replace := make(map[string]string)
	source := filepath.Join(config.GoRoot, "src", "syscall", "zsyscall_linux_"+runtime.GOARCH+".go")
	text, err := os.ReadFile(source)
	if err != nil {
		return "", fmt.Errorf("the laboratory runs on Linux alone: %w", err)
	}
	renamed, err := rename(string(text))
	if err != nil {
		return "", fmt.Errorf("%s: %w", source, err)
	}
	replace[source] = renamed
	replace[filepath.Join(config.GoRoot, "src", "syscall", "keysvc_lab.go")] = calls
	if config.Mutant != "" {
		patch, err := patches.ReadFile("mutants/" + config.Mutant + ".patch")
		if err != nil {
			return "", fmt.Errorf("no mutant %q; there are %s", config.Mutant, strings.Join(Mutants(), ", "))
		}
		files, err := Apply(config.Root, string(patch))
		if err != nil {
			return "", fmt.Errorf("mutant %s: %w", config.Mutant, err)
		}
		for name, content := range files {
			replace[filepath.Join(config.Root, name)] = content
		}
	}
	return write(config.Folder, replace)
}

// write writes the files and the JSON that names them.
func write(folder string, replace map[string]string) (string, error) {
	document := struct{ Replace map[string]string }{make(map[string]string)}
	for _, original := range slices.Sorted(keysOf(replace)) {
		copied := filepath.Join(folder, fmt.Sprintf("%d-%s", len(document.Replace), filepath.Base(original)))
		if err := os.WriteFile(copied, []byte(replace[original]), 0o600); err != nil {
			return "", err
		}
		document.Replace[original] = copied
	}
	encoded, err := json.Marshal(document)
	if err != nil {
		return "", err
	}
	name := filepath.Join(folder, "overlay.json")
	return name, os.WriteFile(name, encoded, 0o600)
}

func keysOf(from map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for key := range from {
			if !yield(key) {
				return
			}
		}
	}
}

// rename renames the functions that are seen.
func rename(text string) (string, error) {
	for _, name := range seen {
		before := "\nfunc " + name + "("
		after := "\nfunc real" + strings.ToUpper(name[:1]) + name[1:] + "("
		if count := strings.Count(text, before); count != 1 {
			return "", fmt.Errorf("%d functions %s, expected one: is the toolchain newer than the laboratory?", count, name)
		}
		text = strings.Replace(text, before, after, 1)
	}
	return text, nil
}

// Mutants returns the names of all mutants.
func Mutants() []string {
	entries, err := patches.ReadDir("mutants")
	if err != nil {
		panic(err) // embedded
	}
	var names []string
	for _, entry := range entries {
		names = append(names, strings.TrimSuffix(entry.Name(), ".patch"))
	}
	return names
}

// Kinds returns the kinds of crashes that must catch a mutant: the line "kinds:" in the text
// before the first file of its patch.
func Kinds(mutant string) (string, error) {
	patch, err := patches.ReadFile("mutants/" + mutant + ".patch")
	if err != nil {
		return "", fmt.Errorf("no mutant %q; there are %s", mutant, strings.Join(Mutants(), ", "))
	}
	prose, _, _ := strings.Cut(string(patch), "\n--- ")
	for line := range strings.Lines(prose) {
		if kinds, found := strings.CutPrefix(line, "kinds: "); found {
			return strings.TrimSpace(kinds), nil
		}
	}
	return "", fmt.Errorf("mutant %s does not say which kinds must catch it", mutant)
}

// Apply applies a patch in the unified format to the files below root and returns
// their new content by name. Line numbers do not count: the text of each hunk must
// occur exactly once.
func Apply(root, patch string) (map[string]string, error) {
	files := make(map[string]string)
	name := ""
	var before, after strings.Builder
	finish := func() error {
		if before.Len() == 0 {
			return nil
		}
		if count := strings.Count(files[name], before.String()); count != 1 {
			return fmt.Errorf("%s: %d places fit the hunk, expected one:\n%s", name, count, before.String())
		}
		files[name] = strings.Replace(files[name], before.String(), after.String(), 1)
		before.Reset()
		after.Reset()
		return nil
	}
	for line := range strings.Lines(patch) {
		switch {
		case strings.HasPrefix(line, "--- "):
		case strings.HasPrefix(line, "+++ "), strings.HasPrefix(line, "@@"):
			if err := finish(); err != nil {
				return nil, err
			}
			if path, found := strings.CutPrefix(line, "+++ "); found {
				name = strings.TrimPrefix(strings.TrimSpace(path), "b/")
				text, err := os.ReadFile(filepath.Join(root, name))
				if err != nil {
					return nil, err
				}
				files[name] = string(text)
			}
		case name == "": // the text before the first file
		case line[0] == '-':
			before.WriteString(line[1:])
		case line[0] == '+':
			after.WriteString(line[1:])
		default:
			text := strings.TrimPrefix(line, " ")
			before.WriteString(text)
			after.WriteString(text)
		}
	}
	if err := finish(); err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("a patch without files")
	}
	return files, nil
}
