package cli_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// importer is a server that imports keys, and knows the tokens that it has imported.
type importer struct {
	known map[string]bool
	calls []string
	// fail decides about each key; nil imports all.
	fail func(name string) *keysvcv1.ValidationError
	// down makes a call fail, after so many that change something.
	down int
}

func (i *importer) importKeys(_ context.Context, r *keysvcv1.ImportKeysRequest) (*keysvcv1.ImportKeysResponse, error) {
	i.calls = append(i.calls, fmt.Sprintf("%s %d %t", r.GetWorkspaceId(), len(r.GetKeys()), r.GetValidateOnly()))
	if !r.GetValidateOnly() {
		if i.down--; i.down == 0 {
			return nil, status.Error(codes.Unavailable, "the store is down")
		}
	}
	response := &keysvcv1.ImportKeysResponse{}
	for _, key := range r.GetKeys() {
		result := &keysvcv1.KeyImportResult{}
		if i.fail != nil {
			result.Error = i.fail(key.GetName())
		}
		if result.GetError() == nil && !i.known[string(key.GetTokenSha256())] {
			result.Imported = true
			if !r.GetValidateOnly() {
				i.known[string(key.GetTokenSha256())] = true
			}
		}
		response.Results = append(response.Results, result)
	}
	return response, nil
}

// keyFile writes a file with keys of workspaces, so many of each.
func keyFile(t *testing.T, counts ...int) string {
	t.Helper()
	text := "workspace,member,hash,name,scopes\n"
	for workspace, count := range counts {
		for number := range count {
			hash := sha256.Sum256([]byte(fmt.Sprint(workspace, " ", number)))
			text += fmt.Sprintf("w%d,ann,%s,key %d,emails:read\n", workspace, hex.EncodeToString(hash[:]), number)
		}
	}
	file := filepath.Join(t.TempDir(), "keys.csv")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestKeyImportChecksEverythingFirst(t *testing.T) {
	t.Parallel()
	i := &importer{known: make(map[string]bool)}
	c := command{addr: start(t, &fake{importKeys: i.importKeys})}
	file := keyFile(t, 33, 2)
	r := c.run(t, "key", "import", file, "--dry-run")
	if want := "35 to import, 0 known.\n"; r.status != 0 || r.stdout != want || r.stderr != "" || strings.Join(i.calls, ",") != "w0 32 true,w0 1 true,w1 2 true" {
		t.Errorf("%+v, calls %q", r, i.calls)
	}
	i.calls = nil
	r = c.run(t, "key", "import", file)
	if r.status != 0 || r.stdout != "35 to import, 0 known.\nDone: 35 keys imported.\n" || strings.Join(i.calls[3:], ",") != "w0 32 false,w0 1 false,w1 2 false" {
		t.Errorf("%+v, calls %q", r, i.calls)
	}
	i.calls = nil
	if r := c.run(t, "key", "import", file); r.status != 0 || r.stdout != "0 to import, 35 known.\n" || len(i.calls) != 3 {
		t.Errorf("%+v, calls %q", r, i.calls)
	}
}

func TestKeyImportNamesTheLineOfWhatTheServerRefuses(t *testing.T) {
	t.Parallel()
	i := &importer{known: make(map[string]bool), fail: func(name string) *keysvcv1.ValidationError {
		if name != "key 1" {
			return nil
		}
		return &keysvcv1.ValidationError{Code: 3, Message: "invalid request: scopes[0]: is unknown"}
	}}
	file := keyFile(t, 3)
	r := command{addr: start(t, &fake{importKeys: i.importKeys})}.run(t, "key", "import", file)
	if want := file + ":3: scopes[0]: is unknown\n"; r.status != 1 || r.stdout != "" || !strings.HasPrefix(r.stderr, want) ||
		!strings.Contains(r.stderr, "nothing was changed") || len(i.known) != 0 {
		t.Errorf("%+v, want %q", r, want)
	}
}

func TestKeyImportSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	i := &importer{known: make(map[string]bool), down: 2}
	c := command{addr: start(t, &fake{importKeys: i.importKeys})}
	file := keyFile(t, 40)
	r := c.run(t, "key", "import", file)
	if r.status == 0 || !strings.Contains(r.stderr, "32 of 40 keys were imported; repeat the command for the rest") {
		t.Errorf("%+v", r)
	}
	if r := c.run(t, "key", "import", file); r.status != 0 || r.stdout != "8 to import, 32 known.\nDone: 8 keys imported.\n" {
		t.Errorf("%+v", r)
	}
}
