package cli

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/restore"
	"github.com/scribe-mail/keysvc/internal/server"
)

func TestNumbersHaveTheirSingular(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ got, want string }{
		{count(0, "key"), "0 keys"},
		{count(1, "key"), "1 key"},
		{count(2, "key"), "2 keys"},
		{countWere(1, "key"), "1 key was"},
		{countWere(2, "key"), "2 keys were"},
		{bytesText(1), "1 byte"},
		{bytesText(2), "2 bytes"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
	var text strings.Builder
	result := &server.Restored{Plan: &restore.Plan{}}
	result.BackupRevision, result.BackupTime = 4, time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	result.Keys, result.Members, result.Workspaces = 1, 1, 1
	result.SinkFiles, result.SinkRevision, result.Events = []string{"audit.jsonl"}, 5, 1
	result.NarrowedKeys, result.NarrowedMembers, result.NarrowedWorkspaces = 1, 1, 1
	result.Held, result.CreatedKeys = 1, 1
	if err := restoredText(&text, result, server.RestoreOptions{DryRun: true}); err != nil {
		t.Fatal(err)
	}
	const want = `backup      revision 4 of 2027-03-01T12:00:00Z: 1 key, 1 member, 1 workspace
audit sink  1 event since, up to revision 5, in audit.jsonl
narrowed    1 key, 1 member, 1 workspace
held        1 key
lost        1 key created since
Nothing was made.
`
	if text.String() != want {
		t.Errorf("got\n%s\nwant\n%s", text.String(), want)
	}
}

// A number before a noun is written by count, which has the singular. So no format of this package may
// have a number before a plural.
func TestNoFormatHasANumberBeforeAPlural(t *testing.T) {
	t.Parallel()
	plural := regexp.MustCompile(`%d ((live|audit) )?[a-z]{3,}s\b`)
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(node ast.Node) bool {
			if literal, is := node.(*ast.BasicLit); is && literal.Kind == token.STRING {
				if found := plural.FindString(literal.Value); found != "" {
					t.Errorf("%s: %q: use count", set.Position(literal.Pos()), found)
				}
			}
			return true
		})
	}
}
