package main

import (
	"path"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestArchiveHasWhatAnOperatorNeeds looks for what docs/install.md and the alerts refer to. A link from a page of
// the archive to another page leads to a file of the archive.
func TestArchiveHasWhatAnOperatorNeeds(t *testing.T) {
	r := release{source: "../..", version: "v0.0.0", commit: "c", at: time.Unix(1, 0).UTC()}
	files, err := r.documents()
	if err != nil {
		t.Fatal(err)
	}
	units, err := r.units()
	if err != nil {
		t.Fatal(err)
	}
	content := make(map[string]string)
	for _, each := range append(files, units...) {
		if _, taken := content[each.name]; taken {
			t.Errorf("two files are %s", each.name)
		}
		content[each.name] = string(each.content)
	}
	for _, name := range []string{
		"README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md",
		"docs/install.md", "docs/operations.md", "docs/alerts.md", "docs/settings.md", "docs/api.md", "docs/upgrade.md",
		"docs/adr/README.md", "docs/performance/throughput.svg",
		"deploy/prometheus/alerts.yaml", "deploy/grafana/keysvc.json", "deploy/kubernetes/keysvc.yaml",
		"proto/keysvc/v1/key_service.proto",
		"systemd/keysvc.service", "systemd/keysvc.socket", "systemd/keysvc.yaml", "systemd/sysusers.conf",
		"man/man1/keysvc.1", "man/man1/keysvc-serve.1", "completions/bash/keysvc", "completions/zsh/_keysvc", "completions/fish/keysvc.fish",
	} {
		if content[name] == "" {
			t.Errorf("the archive has no %s", name)
		}
	}
	link := regexp.MustCompile(`\]\(([^)#:]+\.md)(?:#[^)]*)?\)`)
	for name, text := range content {
		if strings.HasSuffix(name, ".go") {
			t.Errorf("%s is no documentation", name)
		}
		if !strings.HasPrefix(name, "docs/") || !strings.HasSuffix(name, ".md") {
			continue
		}
		for _, found := range link.FindAllStringSubmatch(text, -1) {
			target := path.Join(path.Dir(name), found[1])
			if strings.HasPrefix(target, "docs/") && content[target] == "" {
				t.Errorf("%s leads to %s, which the archive does not have", name, target)
			}
		}
	}
}
