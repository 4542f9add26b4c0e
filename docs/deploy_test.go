package docs_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
)

// TestDeployedSettingsAreValid reads the settings that the units of systemd and the manifests of
// Kubernetes bring.
func TestDeployedSettingsAreValid(t *testing.T) {
	r := checkout(t)
	files := manifest(t, r, "deploy/kubernetes/keysvc.yaml")["ConfigMap"]["data"].(map[string]any)
	if _, err := callers.Parse("callers.yaml", []byte(files["callers.yaml"].(string)), nil); err != nil {
		t.Errorf("deploy/kubernetes/keysvc.yaml: %v", err)
	}
	shared := manifest(t, r, "deploy/kubernetes/keysvc-etcd.yaml")["ConfigMap"]["data"].(map[string]any)
	if _, err := callers.Parse("callers.yaml", []byte(shared["callers.yaml"].(string)), nil); err != nil {
		t.Errorf("deploy/kubernetes/keysvc-etcd.yaml: %v", err)
	}
	for name, text := range map[string]string{
		"deploy/kubernetes/keysvc-etcd.yaml": shared["keysvc.yaml"].(string),
		"deploy/kubernetes/keysvc.yaml":      files["keysvc.yaml"].(string),
		"deploy/systemd/keysvc.yaml":         r.read("deploy/systemd/keysvc.yaml"),
	} {
		source := config.Source{
			Defaults: config.Defaults(), Flags: map[string][]string{config.FileFlag: {name}},
			ReadFile: func(string) ([]byte, error) { return []byte(text), nil },
		}
		loaded, err := source.Load()
		if err == nil {
			err = loaded.Settings.Validate()
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// manifest returns the objects of a manifest by their kind.
func manifest(t *testing.T, r repository, name string) map[string]map[string]any {
	t.Helper()
	objects := make(map[string]map[string]any)
	for decoder := yaml.NewDecoder(strings.NewReader(r.read(name))); ; {
		var object map[string]any
		err := decoder.Decode(&object)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		objects[object["kind"].(string)] = object
	}
}

// TestUnitIsHardened asks systemd, if it is here, whether the units are right, and how much of the
// machine the process could reach if it were taken over: from 0, nothing, to 10.
func TestUnitIsHardened(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd is not here")
	}
	r, folder := checkout(t), t.TempDir()
	// What is verified must be there: the binary, and the page of the manual.
	unit := strings.NewReplacer("/usr/bin/keysvc", "/bin/true", "Documentation=man:keysvc(1)\n", "").Replace(r.read("deploy/systemd/keysvc.service"))
	service, socket := filepath.Join(folder, "keysvc.service"), filepath.Join(folder, "keysvc.socket")
	for path, content := range map[string]string{service: unit, socket: r.read("deploy/systemd/keysvc.socket")} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, arguments := range [][]string{{"verify", service, socket}, {"security", "--offline=true", "--no-pager", "--threshold=20", service}} {
		output, err := exec.CommandContext(t.Context(), "systemd-analyze", arguments...).CombinedOutput()
		if err != nil || arguments[0] == "verify" && len(bytes.TrimSpace(output)) > 0 {
			t.Errorf("systemd-analyze %s: %v\n%s", arguments[0], err, output)
		}
	}
}
