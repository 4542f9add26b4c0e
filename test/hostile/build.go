//go:build linux

package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/scribe-mail/keysvc/test/crash/overlay"
)

//go:embed probe.go.txt
var probe string

// build builds keysvc with the probe, and with one bound taken out if a mutant is named. It
// returns the path of the program.
func build(ctx context.Context, folder, patch string) (string, error) {
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(filepath.Dir(strings.TrimSpace(string(module))))
	files := map[string]string{"cmd/keysvc/probe_of_hostile.go": probe}
	if patch != "" {
		patched, err := overlay.Apply(root, patch)
		if err != nil {
			return "", err
		}
		for name, text := range patched {
			files[name] = text
		}
	}
	document := struct{ Replace map[string]string }{make(map[string]string)}
	for name, text := range files {
		copied := filepath.Join(folder, fmt.Sprintf("%d-%s", len(document.Replace), filepath.Base(name)))
		if err := os.WriteFile(copied, []byte(text), 0o600); err != nil {
			return "", err
		}
		document.Replace[filepath.Join(root, name)] = copied
	}
	encoded, err := json.Marshal(document)
	if err != nil {
		return "", err
	}
	list := filepath.Join(folder, "overlay.json")
	if err := os.WriteFile(list, encoded, 0o600); err != nil {
		return "", err
	}
	program := filepath.Join(folder, "keysvc")
	command := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-overlay="+list, "-o", program, "./cmd/keysvc")
	command.Dir = root
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("building keysvc: %w", err)
	}
	return program, nil
}
