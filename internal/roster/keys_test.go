package roster_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/roster"
)

var (
	oneHash = sha256.Sum256([]byte("one"))
	inHex   = hex.EncodeToString(oneHash[:])
	// The hash of another token, so that its base64 has characters of which the alphabets have their own.
	twoHash = sha256.Sum256([]byte("token 17"))
)

func TestBothFormatsOfKeysReadTheSame(t *testing.T) {
	t.Parallel()
	expire, create := time.Date(2027, 3, 31, 12, 0, 0, 0, time.UTC), time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
	want := []roster.Key{
		{
			WorkspaceID: "acme", MemberID: "ann", SHA256: oneHash, Name: "deploy, nightly", Scopes: []string{"emails:read", "assets:read"},
			AllowedCIDRs: []string{"192.0.2.0/24"}, Labels: map[string]string{"team": "web", "from": ""}, ExpireTime: &expire, CreateTime: &create,
		},
		{WorkspaceID: "other", MemberID: "bob", SHA256: twoHash, Name: "b", Scopes: []string{"emails:read"}},
	}
	two := base64.RawURLEncoding.EncodeToString(twoHash[:])
	for name, text := range map[string]string{
		"CSV": "workspace,member,hash,name,scopes,expire_time,labels,allowed_cidrs,create_time\n" +
			"acme,ann," + strings.ToUpper(inHex) + ",\"deploy, nightly\",emails:read  assets:read,2027-03-31T12:00:00Z,team=web from=,192.0.2.0/24,2024-01-02T03:04:05Z\n" +
			"other,bob," + base64.StdEncoding.EncodeToString(twoHash[:]) + ",b,emails:read,,,,\n",
		"JSON lines": `{"workspace":"acme","member":"ann","hash":"` + inHex + `","name":"deploy, nightly","scopes":["emails:read","assets:read"],` +
			`"expire_time":"2027-03-31T12:00:00Z","labels":{"team":"web","from":""},"allowed_cidrs":["192.0.2.0/24"],"create_time":"2024-01-02T03:04:05Z"}` + "\n" +
			`{"scopes":"emails:read","name":"b","hash":"` + two + `","member":"bob","workspace":"other","labels":{},"allowed_cidrs":[]}`,
	} {
		got, err := roster.ReadKeys(strings.NewReader(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for index := range got {
			if got[index].Line == 0 {
				t.Errorf("%s: key %d has no line", name, index)
			}
			got[index].Line = 0
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v\nwant %+v", name, got, want)
		}
	}
}

func TestMistakesOfKeysNameTheirLineAndNoHash(t *testing.T) {
	t.Parallel()
	const header = "workspace,member,hash,name,scopes,expire_time,labels\n"
	const noHash = "line 2: hash must be the SHA-256 of a whole token, as 64 digits of hex or 44 characters of base64; never the token itself"
	line := func(hash, more string) string { return header + "acme,ann," + hash + "," + more + "\n" }
	for name, each := range map[string]struct{ text, want string }{
		"no column":       {"workspace,member,hash,name\n", "line 1: the header lacks scopes"},
		"a token":         {line("sk_live_1", "n,emails:read,,"), noHash},
		"no hash":         {line("", "n,emails:read,,"), noHash},
		"cut hash":        {line(inHex[1:], "n,emails:read,,"), noHash},
		"not hex":         {line("g"+inHex[1:], "n,emails:read,,"), noHash},
		"break in base64": {line("\""+base64.StdEncoding.EncodeToString(twoHash[:20])+"\n"+base64.StdEncoding.EncodeToString(twoHash[20:])+"\"", "n,emails:read,,"), noHash},
		"zeros":           {line(strings.Repeat("0", 64), "n,emails:read,,"), noHash},
		"no scope":        {line(inHex, "n, ,,"), "line 2: scopes must have one scope at least, as in emails:read"},
		"no name":         {line(inHex, ",emails:read,,"), "line 2: name must have 1 character at least"},
		"a date":          {line(inHex, "n,emails:read,2027-03-31,"), "line 2: expire_time must be a time as in 2027-03-31T12:00:00Z"},
		"label":           {line(inHex, "n,emails:read,,team"), "line 2: labels must be texts as in team=web, with spaces between them and each name once"},
		"label twice":     {line(inHex, "n,emails:read,,a=1 a=2"), "line 2: labels must be texts as in team=web, with spaces between them and each name once"},
		"hash twice":      {line(inHex, "n,emails:read,,") + "acme,bob," + strings.ToUpper(inHex) + ",m,emails:read,,\n", "line 3: has the hash of line 2"},
		"scopes":          {`{"scopes":{}}`, "line 1: scopes must be a text or a list of texts"},
		"scope":           {`{"scopes":["a",1]}`, "line 1: scopes must be a list of texts"},
		"labels":          {`{"labels":[]}`, "line 1: labels must be a text or an object of texts"},
		"label's value":   {`{"labels":{"a":{}}}`, "line 1: labels must be an object of texts"},
		"label's name":    {`{"labels":{"a":"","a":""}}`, "line 1: labels has a name twice"},
		"open list":       {`{"scopes":["a"`, "line 1: scopes must be a list of texts"},
		"open labels":     {`{"labels":{"a":"b"`, "line 1: labels must be an object of texts"},
		"a list of names": {`{"name":["a"]}`, "line 1: name must be a text"},
	} {
		keys, err := roster.ReadKeys(strings.NewReader(each.text))
		if _, is := errors.AsType[roster.LineErrors](err); !is || keys != nil || err.Error() != each.want {
			t.Errorf("%s: got %v, %v\nwant %s", name, keys, err, each.want)
		}
	}
}

func FuzzReadKeys(f *testing.F) {
	f.Add("workspace,member,hash,name,scopes,labels\nacme,ann," + inHex + ",n,a:read b:read,x=y\n")
	f.Add(`{"workspace":"acme","member":"ann","hash":"` + base64.StdEncoding.EncodeToString(twoHash[:]) + `","name":"n","scopes":["a:read"],"labels":{"a":"b"}}`)
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := roster.ReadKeys(strings.NewReader(text))
		if mistakes, is := errors.AsType[roster.LineErrors](err); err != nil && (!is || len(mistakes) == 0) {
			t.Fatalf("got %v", err)
		}
		// What was read is read again from lines of JSON.
		var plain strings.Builder
		for _, key := range keys {
			fields := map[string]any{
				"workspace": key.WorkspaceID, "member": key.MemberID, "hash": hex.EncodeToString(key.SHA256[:]), "name": key.Name, "scopes": key.Scopes,
			}
			if key.Labels != nil {
				fields["labels"] = key.Labels
			}
			if key.AllowedCIDRs != nil {
				fields["allowed_cidrs"] = key.AllowedCIDRs
			}
			if key.ExpireTime != nil {
				fields["expire_time"] = key.ExpireTime.Format(time.RFC3339Nano)
			}
			if key.CreateTime != nil {
				fields["create_time"] = key.CreateTime.Format(time.RFC3339Nano)
			}
			line, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			plain.Write(append(line, '\n'))
		}
		if len(keys) == 0 || !isText(keys) {
			return
		}
		again, err := roster.ReadKeys(strings.NewReader(plain.String()))
		if err != nil || len(again) != len(keys) {
			t.Fatalf("got %v, %v from\n%s", again, err, plain.String())
		}
		for index := range again {
			if got, want := again[index], keys[index]; got.SHA256 != want.SHA256 || got.Name != want.Name || !reflect.DeepEqual(got.Scopes, want.Scopes) ||
				!reflect.DeepEqual(got.Labels, want.Labels) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
	})
}

// isText reports whether keys survive JSON, which has no other text than UTF-8, and lines of bounded length.
func isText(keys []roster.Key) bool {
	for _, key := range keys {
		text := key.Name + strings.Join(key.Scopes, "") + strings.Join(key.AllowedCIDRs, "")
		for name, value := range key.Labels {
			text += name + value
		}
		if strings.ToValidUTF8(text, "") != text || len(text) > 1000 {
			return false
		}
	}
	return true
}
