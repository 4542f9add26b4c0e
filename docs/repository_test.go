package docs_test

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// root is the root of the repository, from the folder of this test.
const root = ".."

// A repository is what the checks know of the files that git tracks, and of new ones that git
// does not ignore.
type repository struct {
	// files has the path of each file from the root, with slashes, and folders that of each
	// folder that holds one; "." is the root.
	files, folders map[string]bool
	// read returns a file's text.
	read func(path string) string
	// targets has the targets of the Makefile.
	targets map[string]bool
	// tests has, for each folder, the names of its tests, benchmarks, examples and fuzz targets.
	tests map[string][]string
}

// checkout returns the repository that this test is in.
func checkout(t *testing.T) repository {
	t.Helper()
	// safe.directory: the checkout of a container often belongs to another user.
	list := exec.CommandContext(t.Context(), "git", "-c", "safe.directory=*", "-C", root,
		"ls-files", "-z", "--cached", "--others", "--exclude-standard")
	output, err := list.Output()
	if err != nil {
		t.Fatalf("%v: %v; the check of the docs needs a git checkout", list, err)
	}
	var paths []string
	for _, name := range strings.Split(strings.TrimRight(string(output), "\x00"), "\x00") {
		// A file that was deleted is listed until the deletion is staged.
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			paths = append(paths, name)
		}
	}
	return newRepository(paths, func(name string) string {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	})
}

var (
	target   = regexp.MustCompile(`(?m)^([a-z][a-z-]*):(?:[^=]|$)`)
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz|Example)\w*)\(`)
)

// newRepository returns the repository of these files.
func newRepository(paths []string, read func(path string) string) repository {
	r := repository{
		files: map[string]bool{}, folders: map[string]bool{}, read: read,
		targets: map[string]bool{}, tests: map[string][]string{},
	}
	for _, name := range paths {
		r.files[name] = true
		for folder := path.Dir(name); !r.folders[folder]; folder = path.Dir(folder) {
			r.folders[folder] = true
		}
		if strings.HasSuffix(name, "_test.go") {
			for _, found := range testFunc.FindAllStringSubmatch(read(name), -1) {
				r.tests[path.Dir(name)] = append(r.tests[path.Dir(name)], found[1])
			}
		}
	}
	if r.files["Makefile"] {
		for _, found := range target.FindAllStringSubmatch(read("Makefile"), -1) {
			r.targets[found[1]] = true
		}
	}
	return r
}

// exists reports whether path, from the root, is a file or a folder.
func (r repository) exists(path string) bool { return r.files[path] || r.folders[path] }

// pages returns the Markdown files, by path.
func (r repository) pages() map[string]page {
	pages := map[string]page{}
	for name := range r.files {
		if strings.HasSuffix(name, ".md") {
			pages[name] = parse(name, r.read(name))
		}
	}
	return pages
}
