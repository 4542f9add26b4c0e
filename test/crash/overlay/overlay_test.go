package overlay_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/test/crash/overlay"
)

// TestEveryMutantApplies lays the seam and every mutant over the toolchain and the product as
// they are now. A mutant that no longer applies fails here, before a campaign is begun.
func TestEveryMutantApplies(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the laboratory runs on Linux alone")
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	goRoot, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, mutant := range append([]string{""}, overlay.Mutants()...) {
		name, err := overlay.Write(overlay.Config{Folder: t.TempDir(), Root: root, GoRoot: strings.TrimSpace(string(goRoot)), Mutant: mutant})
		if err != nil {
			t.Errorf("mutant %q: %v", mutant, err)
			continue
		}
		if mutant != "" {
			if _, err := overlay.Kinds(mutant); err != nil {
				t.Error(err)
			}
		}
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var document struct{ Replace map[string]string }
		if err := json.Unmarshal(content, &document); err != nil {
			t.Fatal(err)
		}
		if len(document.Replace) < 2 || mutant != "" && len(document.Replace) < 3 {
			t.Errorf("mutant %q replaces %v", mutant, document.Replace)
		}
	}
}

func TestApplyReplacesEachHunkOnce(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "file"), []byte("one\ntwo\nthree\ntwo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	head := "why\n--- a/file\n+++ b/file\n@@ -1 +1 @@\n"
	files, err := overlay.Apply(root, head+" one\n-two\n+2\n@@\n three\n-two\n")
	if err != nil || files["file"] != "one\n2\nthree\n" {
		t.Errorf("%q, %v", files, err)
	}
	for _, hunk := range []string{"-four\n", "-two\n"} {
		if _, err := overlay.Apply(root, head+hunk); err == nil || !strings.Contains(err.Error(), "places fit") {
			t.Errorf("%q: %v", hunk, err)
		}
	}
	if _, err := overlay.Apply(root, "nothing"); err == nil {
		t.Error("a patch without files applies")
	}
}
