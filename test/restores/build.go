//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/scribe-mail/keysvc/test/crash/overlay"
)

// build builds keysvc, with a patch laid over it unless that is empty. It returns the path of the
// program.
func build(ctx context.Context, folder, patch string) (string, error) {
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(filepath.Dir(strings.TrimSpace(string(module))))
	program := filepath.Join(folder, "keysvc")
	arguments := []string{"build", "-buildvcs=false", "-o", program}
	if patch != "" {
		patched, err := overlay.Apply(root, patch)
		if err != nil {
			return "", err
		}
		document := struct{ Replace map[string]string }{make(map[string]string)}
		for name, text := range patched {
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
		arguments = append(arguments, "-overlay="+list)
	}
	command := exec.CommandContext(ctx, "go", append(arguments, "./cmd/keysvc")...)
	command.Dir = root
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("building keysvc: %w", err)
	}
	return program, nil
}
