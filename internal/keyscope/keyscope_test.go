package keyscope_test

import (
	"flag"
	"fmt"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what comes out to testdata")

// root is the root of the repository, as a test of this package sees it.
const root = "../.."

// generate runs the built plugin in buf over a folder of testdata, and returns the folder
// that it wrote to and what buf printed.
func generate(t *testing.T, folder, options string) (out, printed string, err error) {
	t.Helper()
	workspace, out := t.TempDir(), t.TempDir()
	plugin := filepath.Join(t.TempDir(), "protoc-gen-go-keyscope")
	run(t, exec.CommandContext(t.Context(), "go", "build", "-o", plugin, root+"/cmd/protoc-gen-go-keyscope"))
	for from, to := range map[string]string{filepath.Join("testdata", folder): "things", root + "/proto": "keysvc"} {
		if err := os.CopyFS(filepath.Join(workspace, to), os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
	}
	config := "version: v2\nmodules:\n  - path: things\n  - path: keysvc\n"
	if err := os.WriteFile(filepath.Join(workspace, "buf.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	template := fmt.Sprintf(`{"version":"v2","plugins":[{"local":%q,"out":%q,"opt":[%s]}]}`, plugin, out, options)
	tools, err := filepath.Abs(root + "/tools/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	// From here, where go finds a module; buf is told where to look.
	command := exec.CommandContext(t.Context(), "go", "tool", "-modfile="+tools, "buf",
		"generate", filepath.Join(workspace, "things"), "--template", template)
	text, err := command.CombinedOutput()
	return out, string(text), err
}

func run(t *testing.T, command *exec.Cmd) {
	t.Helper()
	if text, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, text)
	}
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; run the test with -update and look at the difference. Got:\n%s", path, got)
	}
}

func TestGood(t *testing.T) {
	policy, err := filepath.Abs("testdata/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, options := range []string{`"paths=source_relative"`, `"paths=source_relative","policy=` + policy + `"`} {
		out, printed, err := generate(t, "good", options)
		if err != nil {
			t.Fatalf("%v\n%s", err, printed)
		}
		text, err := os.ReadFile(filepath.Join(out, "things_keyscope.pb.go"))
		if err != nil {
			t.Fatal(err)
		}
		if formatted, err := format.Source(text); err != nil || string(formatted) != string(text) {
			t.Errorf("what comes out is not as gofmt would have it: %v", err)
		}
		golden(t, "things_keyscope.pb.go.golden", string(text))
	}
}

func TestBad(t *testing.T) {
	policy, err := filepath.Abs("testdata/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string]string{"bad.golden": "", "bad_policy.golden": `"policy=` + policy + `"`} {
		out, printed, err := generate(t, "bad", options)
		if err == nil {
			t.Fatalf("%s: no error", name)
		}
		_, problems, _ := strings.Cut(printed, "bad.proto")
		golden(t, name, "bad.proto"+problems)
		if files, _ := os.ReadDir(out); len(files) != 0 {
			t.Errorf("%s: something was generated nevertheless", name)
		}
	}
}

func TestBadPolicy(t *testing.T) {
	for _, policy := range []string{"does-not-exist.yaml", "keyscope_test.go"} {
		path, err := filepath.Abs(policy)
		if err != nil {
			t.Fatal(err)
		}
		if _, printed, err := generate(t, "good", `"policy=`+path+`"`); err == nil || !strings.Contains(printed, policy) {
			t.Errorf("policy=%s: %v\n%s", policy, err, printed)
		}
	}
}
