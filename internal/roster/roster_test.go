package roster_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/roster"
)

func version(number int64) *int64 { return &number }

func TestBothFormatsReadTheSame(t *testing.T) {
	t.Parallel()
	want := []roster.Member{
		{Line: 2, WorkspaceID: "acme", MemberID: "ann@example.com", Role: "owner", State: roster.Active, SourceVersion: version(7)},
		{Line: 3, WorkspaceID: "acme", MemberID: "bob", Role: "manager", State: roster.Suspended},
		{Line: 4, WorkspaceID: "other", MemberID: "bob", State: roster.Removed, SourceVersion: version(0)},
	}
	for name, text := range map[string]string{
		"CSV":             "workspace,member,role,state,source_version\nacme,ann@example.com,owner,active,7\nacme,bob,manager,suspended,\nother,bob,,removed,0\n",
		"other order":     "\uFEFFsource_version,state,role,member,workspace\r\n7,,owner,ann@example.com,acme\r\n,suspended,manager,\"bob\",acme\r\n0,removed,,bob,other",
		"JSON lines":      "{\"workspace\":\"acme\",\"member\":\"ann@example.com\",\"role\":\"owner\",\"source_version\":7}\n{\"workspace\":\"acme\",\"member\":\"bob\",\"role\":\"manager\",\"state\":\"suspended\"}\n{\"workspace\":\"other\",\"member\":\"bob\",\"state\":\"removed\",\"source_version\":\"0\"}",
		"with empty line": "{\"workspace\":\"acme\",\"member\":\"ann@example.com\",\"role\":\"owner\",\"source_version\":7}\n\n{\"workspace\":\"acme\",\"member\":\"bob\",\"role\":\"manager\",\"state\":\"suspended\"}\n{\"workspace\":\"other\",\"member\":\"bob\",\"state\":\"removed\",\"source_version\":\"0\"}\n",
	} {
		got, err := roster.Read(strings.NewReader(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for index := range got {
			if index < len(want) && strings.HasPrefix(text, "{") {
				got[index].Line = want[index].Line
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v\nwant %+v", name, got, want)
		}
	}
}

func TestMistakesNameTheirLine(t *testing.T) {
	t.Parallel()
	const header = "workspace,member,role,state,source_version\n"
	for name, each := range map[string]struct{ text, want string }{
		"empty":               {"", "line 1: the file is empty; a header of CSV or lines of JSON are required"},
		"unknown column":      {"workspace,member,role,mail\n", "line 1: column 4 of the header is not known; allowed are workspace, member, role, state, source_version"},
		"column twice":        {"workspace,member,role,role\n", "line 1: the header has role twice"},
		"no role":             {"workspace,member\n", "line 1: the header lacks role"},
		"too few fields":      {header + "acme,ann\n", "line 2: has 2 fields; the header has 5"},
		"open quote":          {header + "acme,\"ann\n", "line 2: is not CSV: extraneous or missing \" in quoted-field"},
		"line after a break":  {header + "\n\nacme,ann,owner,on,\n", "line 4: state must be active, suspended or removed; empty means active"},
		"two mistakes":        {header + ",a b,owner,,\n", "line 2: workspace must be 1 to 128 characters of [A-Za-z0-9._:@-]\nline 2: member must be 1 to 128 characters of [A-Za-z0-9._:@-]"},
		"no role of a member": {header + "acme,ann,,,\n", "line 2: role must be the name of a role, [a-z][a-z0-9_-]{0,63}"},
		"version":             {header + "acme,ann,owner,,-1\n", "line 2: source_version must be a number from 0 to 4000000000000000000"},
		"version too high":    {header + "acme,ann,owner,,4000000000000000001\n", "line 2: source_version must be a number from 0 to 4000000000000000000"},
		"twice":               {header + "acme,ann,owner,,\nacme,bob,owner,,\nacme,ann,admin,,\n", "line 4: has the workspace and member of line 2"},
		"not JSON":            {"{\"workspace\":\n", "line 1: is not an object of JSON with texts in it"},
		"unknown name":        {"{\"Workspace\":\"acme\"}\n", "line 1: has a name that is not known; allowed are workspace, member, role, state, source_version"},
		"name twice":          {"{\"role\":\"owner\",\"role\":\"member\"}\n", "line 1: has role twice"},
		"not a text":          {"{\"role\":[]}\n", "line 1: role must be a text"},
		"number":              {"{\"member\":7}\n", "line 1: member must be a text"},
		"two objects":         {"{}{}\n", "line 1: has more than one object"},
		"long line":           {"{}\n{\"role\":\"" + strings.Repeat("a", 64<<10) + "\"}\n", "line 1: workspace must be 1 to 128 characters of [A-Za-z0-9._:@-]\nline 1: member must be 1 to 128 characters of [A-Za-z0-9._:@-]\nline 1: role must be the name of a role, [a-z][a-z0-9_-]{0,63}\nline 2: is longer than 65536 bytes"},
	} {
		members, err := roster.Read(strings.NewReader(each.text))
		if _, is := errors.AsType[roster.LineErrors](err); !is || members != nil || err.Error() != each.want {
			t.Errorf("%s: got %v, %v\nwant %s", name, members, err, each.want)
		}
	}
}

func TestReadingEndsAfterManyMistakes(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"workspace,member,role\n" + strings.Repeat("a\n", 1000),
		"workspace,member,role\n" + strings.Repeat("acme,ann,owner\n", 1000),
		strings.Repeat("{}\n", 1000),
		strings.Repeat("{\n", 1000),
	} {
		_, err := roster.Read(strings.NewReader(text))
		if mistakes, _ := errors.AsType[roster.LineErrors](err); len(mistakes) != 100 {
			t.Errorf("got %d mistakes", len(mistakes))
		}
	}
}

// failing fails after some text.
type failing struct{ text string }

var errFault = errors.New("a fault")

func (f *failing) Read(to []byte) (int, error) {
	if f.text == "" {
		return 0, errFault
	}
	length := copy(to, f.text)
	f.text = f.text[length:]
	return length, nil
}

func TestErrorOfTheFileIsReturned(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "workspace,member,role\nacme,", "{\"workspace\":"} {
		if _, err := roster.Read(&failing{text}); !errors.Is(err, errFault) {
			t.Errorf("after %q: got %v", text, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("workspace,member,role,state,source_version\nacme,ann,owner,active,7\n")
	f.Add("{\"workspace\":\"acme\",\"member\":\"ann\",\"role\":\"owner\",\"source_version\":\"7\"}\n")
	f.Add("\uFEFFrole,member,workspace\n\"owner\",a,b\n")
	f.Fuzz(func(t *testing.T, text string) {
		members, err := roster.Read(strings.NewReader(text))
		if mistakes, is := errors.AsType[roster.LineErrors](err); err != nil && (!is || len(mistakes) == 0 || len(mistakes) > 100+4) {
			t.Fatalf("got %v", err)
		}
		// What was read is read again from a file that is written plainly.
		plain := "workspace,member,role,state,source_version\n"
		for _, member := range members {
			number := ""
			if member.SourceVersion != nil {
				number = fmt.Sprint(*member.SourceVersion)
			}
			plain += strings.Join([]string{member.WorkspaceID, member.MemberID, member.Role, string(member.State), number}, ",") + "\n"
		}
		again, err := roster.Read(strings.NewReader(plain))
		if err != nil || len(again) != len(members) {
			t.Fatalf("got %v, %v from\n%s", again, err, plain)
		}
		for index := range again {
			again[index].Line = members[index].Line
			if !reflect.DeepEqual(again[index], members[index]) {
				t.Errorf("got %+v, want %+v", again[index], members[index])
			}
		}
	})
}
