// Package docs_test checks the documentation against the repository: links and anchors, the
// paths and commands that it names, and the heads of the decision records. It needs git, and
// no network.
package docs_test

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// A page is a Markdown file, taken apart as far as the checks need it.
type page struct {
	// path is the file's path from the root of the repository, with slashes.
	path string
	// anchors holds what a link to this page may have behind its #.
	anchors map[string]bool
	// links holds the targets of all links that are not in code.
	links []excerpt
	// spans holds the inline code, without its backticks.
	spans []excerpt
	// code holds the lines of the code blocks.
	code []excerpt
	// prose holds each line outside of code blocks, without its inline code.
	prose []excerpt
}

// An excerpt is a piece of a file, and the line on which it begins, counted from 1.
type excerpt struct {
	text string
	line int
}

var (
	fence      = regexp.MustCompile("^ *(```+|~~~+)")
	heading    = regexp.MustCompile(`^#{1,6} +(.*?)(?: +#+)? *$`)
	codeSpan   = regexp.MustCompile("(?s)`[^`]+`")
	inlineLink = regexp.MustCompile(`\]\(\s*<?([^\s)>]*)`)
	reference  = regexp.MustCompile(`^ {0,3}\[[^\]]+\]: +<?([^\s>]+)`)
	linkText   = regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`)
)

// parse takes a Markdown text apart. It knows what these docs use: headings with #, fenced and
// indented code blocks, inline code, and links that are inline or have a definition.
func parse(path, text string) page {
	p := page{path: path, anchors: map[string]bool{}}
	taken := map[string]int{}
	outside := make([]string, 0, strings.Count(text, "\n")+1)
	fenced, blank := "", true
	for i, line := range strings.Split(text, "\n") {
		number := i + 1
		mark := ""
		if found := fence.FindStringSubmatch(line); found != nil {
			mark = found[1]
		}
		indented := strings.HasPrefix(line, "    ") && (blank || len(p.code) > 0 && p.code[len(p.code)-1].line == i)
		blank = strings.TrimSpace(line) == ""
		switch {
		case fenced != "" && strings.HasPrefix(mark, fenced):
			fenced, line = "", ""
		case fenced == "" && mark != "":
			fenced, line = mark, ""
		case fenced != "" || indented && !blank:
			p.code = append(p.code, excerpt{line, number})
			line = ""
		default:
			if title := heading.FindStringSubmatch(line); title != nil {
				p.anchors[anchorOf(title[1], taken)] = true
			}
			if target := reference.FindStringSubmatch(line); target != nil {
				p.links = append(p.links, excerpt{target[1], number})
			}
		}
		outside = append(outside, line)
	}

	// Inline code may run over the end of a line, so it is looked for in the whole text.
	prose := codeSpan.ReplaceAllStringFunc(strings.Join(outside, "\n"), func(span string) string {
		return "`" + strings.Repeat("\n", strings.Count(span, "\n")) + "`"
	})
	whole := strings.Join(outside, "\n")
	for _, at := range codeSpan.FindAllStringIndex(whole, -1) {
		span := strings.Join(strings.Fields(whole[at[0]+1:at[1]-1]), " ")
		p.spans = append(p.spans, excerpt{span, lineAt(whole, at[0])})
	}
	for _, at := range inlineLink.FindAllStringSubmatchIndex(prose, -1) {
		p.links = append(p.links, excerpt{prose[at[2]:at[3]], lineAt(prose, at[0])})
	}
	for i, line := range strings.Split(prose, "\n") {
		p.prose = append(p.prose, excerpt{line, i + 1})
	}
	return p
}

// anchorOf returns the anchor that GitHub makes of a heading: letters, digits, - and _ in lower
// case, with - for each space. The second heading of the same name gets -1, the third -2.
func anchorOf(title string, taken map[string]int) string {
	title = linkText.ReplaceAllString(title, "$1")
	var anchor strings.Builder
	for _, r := range strings.ToLower(title) {
		switch {
		case r == ' ':
			anchor.WriteByte('-')
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			anchor.WriteRune(r)
		}
	}
	name := anchor.String()
	count := taken[name]
	taken[name]++
	if count > 0 {
		name = fmt.Sprintf("%s-%d", name, count)
	}
	return name
}

// lineAt returns the number of the line that holds the byte at offset.
func lineAt(text string, offset int) int { return 1 + strings.Count(text[:offset], "\n") }
