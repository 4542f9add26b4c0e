package cli_test

import (
	"crypto/tls"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
)

func TestCertsDevWritesWhatAServerAndItsCallersNeed(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "it's mine")
	run := runCerts(t, folder, 0)
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", entry.Name(), info.Mode())
		}
		names = append(names, entry.Name())
	}
	want := []string{
		"admin.crt", "admin.env", "admin.key", "ca.crt", "callers.yaml", "keysvc.yaml", "manager.crt", "manager.env",
		"manager.key", "server.crt", "server.key", "validator.crt", "validator.env", "validator.key",
	}
	if !slices.Equal(names, want) {
		t.Errorf("the files are %q", names)
	}
	if info, err := os.Stat(folder); err != nil || info.Mode() != 0o700|fs.ModeDir {
		t.Errorf("the folder has mode %v (%v)", info.Mode(), err)
	}
	for _, name := range []string{"server", "validator", "manager", "admin"} {
		if _, err := tls.LoadX509KeyPair(filepath.Join(folder, name+".crt"), filepath.Join(folder, name+".key")); err != nil {
			t.Error(err)
		}
	}

	text, err := os.ReadFile(filepath.Join(folder, "callers.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := callers.Parse(filepath.Join(folder, "callers.yaml"), text, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, caller := range file.Callers {
		may, all := caller.Grants.May, access.Rights()
		switch caller.Name {
		case "validator":
			if !may(access.Validate) || may(access.Issue) {
				t.Error("validator has other rights")
			}
		case "manager":
			if may(access.Validate) || !caller.Grants.For(access.Issue).Equal(access.Only("demo")) || may(access.Administer) {
				t.Error("manager has other rights")
			}
		case "admin":
			if slices.ContainsFunc(all, func(right access.Right) bool { return !caller.Grants.For(right).IsAll() }) {
				t.Error("admin lacks a right")
			}
		default:
			t.Errorf("there is a caller %q", caller.Name)
		}
	}
	if run.stdout == "" || strings.Count(run.stdout, "'"+strings.ReplaceAll(folder, "'", `'\''`)) != 4 {
		t.Errorf("the folder is not quoted in:\n%s", run.stdout)
	}
}

func TestCertsDevReplacesWhatItHasMadeAndNothingElse(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	runCerts(t, folder, 0)
	first, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	runCerts(t, folder, 0)
	second, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
	if err != nil || string(first) == string(second) {
		t.Errorf("the authority stays (%v)", err)
	}
	foreign := filepath.Join(folder, "server.crt")
	if err := os.WriteFile(foreign, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := runCerts(t, folder, 7)
	if !strings.Contains(run.stderr, "server.crt was not made by keysvc certs dev") {
		t.Errorf("it said:\n%s", run.stderr)
	}
	if text, err := os.ReadFile(foreign); err != nil || string(text) != "mine" {
		t.Errorf("the file is %q (%v)", text, err)
	}
}

func runCerts(t *testing.T, folder string, status int) result {
	t.Helper()
	run := command{}.run(t, "certs", "dev", folder)
	if run.status != status {
		t.Fatalf("it ended with %d:\n%s", run.status, run.stderr)
	}
	return run
}
