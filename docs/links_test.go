package docs_test

import (
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
)

func TestLinksOfDocsLeadSomewhere(t *testing.T) {
	r := checkout(t)
	pages := r.pages()
	if len(pages) < 10 {
		t.Fatalf("%d Markdown files were found; the test looks in the wrong place", len(pages))
	}
	for _, problem := range brokenLinks(r, pages) {
		t.Error(problem)
	}
}

// brokenLinks returns "file:line: problem" for each link whose file or anchor does not exist.
// Links to other places of the network are left alone.
func brokenLinks(r repository, pages map[string]page) []string {
	var problems []string
	for _, p := range pages {
		for _, link := range p.links {
			problem := ""
			switch target, err := url.Parse(link.text); {
			case err != nil:
				problem = "is not a URL"
			case target.Scheme != "" || target.Host != "":
				continue
			case strings.HasPrefix(target.Path, "/"):
				problem = "begins with /; links are relative"
			default:
				file := p.path
				if target.Path != "" {
					file = path.Join(path.Dir(p.path), target.Path)
				}
				other, markdown := pages[file]
				switch {
				case !r.exists(file):
					problem = "no such file or folder: " + file
				case target.Fragment != "" && !markdown:
					problem = "only headings of Markdown files can be checked as anchors"
				case target.Fragment != "" && !other.anchors[target.Fragment]:
					problem = "no such heading in " + file
				}
			}
			if problem != "" {
				problems = append(problems, fmt.Sprintf("%s:%d: link to %q: %s", p.path, link.line, link.text, problem))
			}
		}
	}
	slices.Sort(problems)
	return problems
}

func TestBrokenLinksAreFoundWithTheirLine(t *testing.T) {
	text := map[string]string{
		"README.md": "# A `b` [c](docs/x.md), d!\n\n" +
			"[ok](docs/x.md) [ok](docs/x.md#two-1) [ok](docs) [ok](https://example.com/none)\n" +
			"[ok](#a-b-c-d) `[code](none.md)`\n" +
			"```\n[code](none.md)\n```\n\n    [code](none.md)\n\n" +
			"[over two\nlines](docs/none.md), [text](docs/x.md#none)\n" +
			"[code][ref] `over two\nlines`[anchor](#none) [go](docs/x.go#L1) [abs](/docs/x.md)\n\n" +
			"[ref]: docs/none.txt\n",
		"docs/x.md": "## Two\n## Two\n[up](../README.md#a-b-c-d) [down](../../outside.md)\n",
		"docs/x.go": "package x\n",
	}
	r := newRepository([]string{"README.md", "docs/x.md", "docs/x.go"}, func(path string) string { return text[path] })
	got := brokenLinks(r, r.pages())
	want := []string{
		`README.md:12: link to "docs/none.md": no such file or folder: docs/none.md`,
		`README.md:12: link to "docs/x.md#none": no such heading in docs/x.md`,
		`README.md:14: link to "#none": no such heading in README.md`,
		`README.md:14: link to "/docs/x.md": begins with /; links are relative`,
		`README.md:14: link to "docs/x.go#L1": only headings of Markdown files can be checked as anchors`,
		`README.md:16: link to "docs/none.txt": no such file or folder: docs/none.txt`,
		`docs/x.md:3: link to "../../outside.md": no such file or folder: ../outside.md`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
