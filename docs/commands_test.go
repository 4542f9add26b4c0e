package docs_test

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocsNameWhatExists checks inline code and code blocks: paths from the root, make targets,
// and the packages and tests of go commands. Docs are easily forgotten when a test is renamed.
func TestDocsNameWhatExists(t *testing.T) {
	r := checkout(t)
	for _, problem := range missing(r, r.pages()) {
		t.Error(problem)
	}
}

// elsewhere holds paths of other repositories that look like ours.
var elsewhere = map[string]bool{
	"proto/notes/v1/notes.proto": true, // of the service that docs/protect-your-service.md makes
}

// missing returns "file:line: problem" for each name in code that is not there. The changelog is
// left out: it may name what has gone since.
func missing(r repository, pages map[string]page) []string {
	var problems []string
	report := func(p page, at excerpt, problem string) {
		if problem != "" {
			problems = append(problems, fmt.Sprintf("%s:%d: %s", p.path, at.line, problem))
		}
	}
	for _, p := range pages {
		if p.path == "CHANGELOG.md" {
			continue
		}
		for _, span := range p.spans {
			report(p, span, r.missingPath(span.text))
			report(p, span, r.missingTarget(span.text))
			report(p, span, r.missingTest(span.text))
		}
		for _, line := range p.code {
			report(p, line, r.missingTarget(line.text))
			report(p, line, r.missingTest(line.text))
		}
	}
	// The Makefile and the gate have go commands, too.
	for _, name := range []string{"Makefile", ".ci/run"} {
		if !r.files[name] {
			continue
		}
		for i, line := range strings.Split(r.read(name), "\n") {
			report(page{path: name}, excerpt{line, i + 1}, r.missingTest(strings.ReplaceAll(line, "$$", "$")))
		}
	}
	slices.Sort(problems)
	return slices.Compact(problems)
}

var (
	plainPath  = regexp.MustCompile(`^\.?[A-Za-z][A-Za-z0-9_.*/-]*$`)
	identifier = regexp.MustCompile(`^(.*)\.([A-Za-z]\w*)$`)
	ending     = regexp.MustCompile(`\.(go|md|mod|sum|yml|yaml|proto|sh|patch|json|gz|binpb|txt)$`)
)

// missingPath looks for code that is a path from the root, possibly with * in it, or a path of a
// package and one of its identifiers. Code whose first part is no folder of the root says
// something else.
func (r repository) missingPath(code string) string {
	first, _, slash := strings.Cut(code, "/")
	if !slash || !plainPath.MatchString(code) || !r.folders[first] || elsewhere[code] {
		return ""
	}
	name := path.Clean(code)
	if r.exists(name) || strings.Contains(name, "*") && r.matches(name) {
		return ""
	}
	if found := identifier.FindStringSubmatch(name); found != nil && !ending.MatchString(name) && r.folders[found[1]] {
		word := regexp.MustCompile(`\b` + found[2] + `\b`)
		for file := range r.files {
			if path.Dir(file) == found[1] && strings.HasSuffix(file, ".go") && word.MatchString(r.read(file)) {
				return ""
			}
		}
		return fmt.Sprintf("`%s`: package %s has no %s", code, found[1], found[2])
	}
	return fmt.Sprintf("`%s`: no such file or folder", code)
}

// matches reports whether a file matches pattern, as path.Match has it.
func (r repository) matches(pattern string) bool {
	for file := range r.files {
		if ok, _ := path.Match(pattern, file); ok {
			return true
		}
	}
	return false
}

var makeTarget = regexp.MustCompile(`^[a-z][a-z-]*$`)

// missingTarget looks for `make TARGET…`.
func (r repository) missingTarget(code string) string {
	words := strings.Fields(code)
	if len(words) < 2 || words[0] != "make" || len(r.targets) == 0 {
		return ""
	}
	for _, word := range words[1:] {
		if strings.Contains(word, "=") {
			continue
		}
		if !makeTarget.MatchString(word) {
			break // a comment, or the next command
		}
		if !r.targets[word] {
			return fmt.Sprintf("`make %s`: the Makefile has no such target", word)
		}
	}
	return ""
}

// missingTest looks for `go [-C FOLDER] test|run|build PACKAGE… [-run|-bench|-fuzz PATTERN]`.
func (r repository) missingTest(code string) string {
	words := strings.Fields(code)
	start := slices.Index(words, "go")
	if start < 0 {
		return ""
	}
	words, folder := words[start+1:], "."
	if len(words) > 1 && words[0] == "-C" {
		words, folder = words[2:], words[1]
	}
	if len(words) == 0 || !r.folders[path.Clean(folder)] || !slices.Contains([]string{"test", "run", "build", "vet"}, words[0]) {
		return ""
	}
	var packages []string
	for _, word := range words[1:] {
		word = strings.TrimRight(word, ";),")
		if !strings.HasPrefix(word, "./") || strings.ContainsAny(word, "$…") {
			continue
		}
		base, recursive := strings.CutSuffix(word, "/...")
		base = path.Join(folder, base)
		if !r.folders[base] {
			return fmt.Sprintf("`%s`: no such package: %s", code, word)
		}
		for known := range r.folders {
			if known == base || recursive && (base == "." || strings.HasPrefix(known, base+"/")) {
				packages = append(packages, known)
			}
		}
	}
	if words[0] != "test" || len(packages) == 0 {
		return ""
	}
	for i, word := range words[:len(words)-1] {
		pattern := strings.Trim(words[i+1], `'"`)
		if !slices.Contains([]string{"-run", "-bench", "-fuzz"}, word) ||
			pattern == "XXX" || pattern == "^$" || strings.Contains(pattern, "$target") {
			continue // none on purpose, or a variable
		}
		wanted, err := regexp.Compile(strings.Split(pattern, "/")[0])
		if err != nil {
			return fmt.Sprintf("`%s`: %v", code, err)
		}
		if !slices.ContainsFunc(packages, func(folder string) bool {
			return slices.ContainsFunc(r.tests[folder], wanted.MatchString)
		}) {
			return fmt.Sprintf("`%s`: no test there matches %s", code, pattern)
		}
	}
	return ""
}

func TestNamesThatDoNotExistAreFound(t *testing.T) {
	text := map[string]string{
		"Makefile":             "run:\n\tgo test ./internal/a -run '^TestGone$$'\n\ntest-race: run\nNAME := x\n",
		"internal/a/a.go":      "package a\n\nfunc Here() {}\n",
		"internal/a/a_test.go": "package a\n\nfunc TestOne(t *testing.T) {}\nfunc BenchmarkTwo(b *testing.B) {}\n",
		"docs/x.md": "`internal/a` `internal/a/a.go` `internal/a.Here` `internal/*/a.go` `else/where` `make run test-race X=1`\n" +
			"`internal/b` `internal/a/b.go` `internal/a.Gone` `internal/*/b.go`\n" +
			"```\nmake run # and more\nmake gone\n" +
			"go test ./internal/a -run 'One$' -bench Two\ngo test ./... -run Two\ngo test ./gone\ngo run ./internal/a -x\n" +
			"go -C internal test ./a -run Gone\n```\n",
		"CHANGELOG.md": "`make gone` `internal/gone`\n",
	}
	var paths []string
	for name := range text {
		paths = append(paths, name)
	}
	r := newRepository(paths, func(path string) string { return text[path] })
	got := missing(r, r.pages())
	want := []string{
		"Makefile:2: `\tgo test ./internal/a -run '^TestGone$'`: no test there matches ^TestGone$",
		"docs/x.md:10: `go -C internal test ./a -run Gone`: no test there matches Gone",
		"docs/x.md:2: `internal/*/b.go`: no such file or folder",
		"docs/x.md:2: `internal/a.Gone`: package internal/a has no Gone",
		"docs/x.md:2: `internal/a/b.go`: no such file or folder",
		"docs/x.md:2: `internal/b`: no such file or folder",
		"docs/x.md:5: `make gone`: the Makefile has no such target",
		"docs/x.md:8: `go test ./gone`: no such package: ./gone",
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestLogMessagesInOperationsAreLogged compares the table of log messages in docs/operations.md
// with the string literals of the code: people search for these messages, and alerts wait for them.
func TestLogMessagesInOperationsAreLogged(t *testing.T) {
	r := checkout(t)
	var code strings.Builder
	for name := range r.files {
		if strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") &&
			(strings.HasPrefix(name, "internal/") || strings.HasPrefix(name, "cmd/")) {
			code.WriteString(r.read(name))
		}
	}
	checked := 0
	for i, line := range strings.Split(r.read("docs/operations.md"), "\n") {
		cells := strings.Split(line, " | ")
		if len(cells) != 3 || !slices.Contains([]string{"debug", "info", "warn", "error"}, cells[1]) {
			continue
		}
		for _, span := range codeSpan.FindAllString(cells[0], -1) {
			message := strings.TrimRight(strings.Trim(span, "`"), " …")
			checked++
			if !strings.Contains(code.String(), `"`+message) {
				t.Errorf("docs/operations.md:%d: nothing in the code logs %q", i+1, message)
			}
		}
	}
	if checked < 20 {
		t.Errorf("%d messages were found; the table has another form", checked)
	}
}
