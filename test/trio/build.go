package trio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

// Programs are the paths of the built programs.
type Programs struct {
	// Keysvc is the program keysvc. A replica may run another one: see Replica.Program.
	Keysvc string
	// Etcd is the program of package etcd, below this one.
	Etcd string
}

// etcdTLS reports whether keysvc can speak TLS with etcd.
func (p *Programs) etcdTLS(ctx context.Context) bool {
	text, err := exec.CommandContext(ctx, p.Keysvc, "serve", "--help").Output()
	return err == nil && strings.Contains(string(text), "--etcd-ca")
}

var built struct {
	sync.Mutex
	programs *Programs
	// newer is the program of BuildNewer.
	newer string
}

// Build builds the programs into a folder of their own, once for each process. RemoveBuilt removes the folder.
func Build(ctx context.Context) (*Programs, error) {
	built.Lock()
	defer built.Unlock()
	if built.programs != nil {
		return built.programs, nil
	}
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOMOD: %w", err)
	}
	tests := filepath.Dir(strings.TrimSpace(string(module)))
	folder, err := os.MkdirTemp("", "trio-programs-")
	if err != nil {
		return nil, err
	}
	programs := &Programs{Keysvc: filepath.Join(folder, "keysvc"), Etcd: filepath.Join(folder, "etcd")}
	for output, source := range map[string][2]string{
		programs.Keysvc: {filepath.Dir(tests), "./cmd/keysvc"},
		programs.Etcd:   {tests, "./trio/etcd"},
	} {
		command := exec.CommandContext(ctx, "go", "-C", source[0], "build", "-buildvcs=false", "-o", output, source[1])
		if text, err := command.CombinedOutput(); err != nil {
			_ = os.RemoveAll(folder)
			return nil, fmt.Errorf("building %s: %w\n%s", source[1], err, text)
		}
	}
	built.programs = programs
	return programs, nil
}

// RemoveBuilt removes what Build has built. Call it from TestMain, or at the end of a program.
func RemoveBuilt() {
	built.Lock()
	defer built.Unlock()
	if built.programs != nil {
		_ = os.RemoveAll(filepath.Dir(built.programs.Keysvc))
		built.programs, built.newer = nil, ""
	}
}

// Main runs the tests of a package, and removes what Build has built. It is for TestMain, and returns the exit status.
func Main(run func() int) int {
	defer RemoveBuilt()
	return run()
}

// newestSchema is the line of the product that says which schemas a keysvc knows.
var newestSchema = regexp.MustCompile(`(?m)^\tNewest += (\w+)$`)

// NewerVersion is how the keysvc of BuildNewer names itself.
const NewerVersion = "v99.0.0-newer"

// BuildNewer builds a keysvc that is as the present one, calls itself NewerVersion, and knows one schema more, which
// changes nothing. It is what the next version of keysvc will be to this one. The product has no switch for that:
// one line of its source is another. BuildNewer builds once for each process; RemoveBuilt removes the result.
func BuildNewer(ctx context.Context) (program string, err error) {
	programs, err := Build(ctx)
	if err != nil {
		return "", err
	}
	built.Lock()
	defer built.Unlock()
	if built.newer != "" {
		return built.newer, nil
	}
	folder := filepath.Dir(programs.Keysvc)
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(filepath.Dir(strings.TrimSpace(string(module))))
	original := filepath.Join(root, "internal", "storage", "schema.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	if lines := newestSchema.FindAll(source, -1); len(lines) != 1 {
		return "", fmt.Errorf("%s: %d lines say which schema is the newest, expected one", original, len(lines))
	}
	changed, overlay := filepath.Join(folder, "schema.go"), filepath.Join(folder, "overlay.json")
	text, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		return "", err
	}
	if err := errors.Join(
		os.WriteFile(changed, newestSchema.ReplaceAll(source, []byte("\tNewest = $1 + 1")), 0o600),
		os.WriteFile(overlay, text, 0o600),
	); err != nil {
		return "", err
	}
	program = filepath.Join(folder, "keysvc-newer")
	command := exec.CommandContext(
		ctx, "go", "-C", root, "build", "-buildvcs=false", "-overlay", overlay,
		"-ldflags", "-X github.com/scribe-mail/keysvc/internal/version.release="+NewerVersion, "-o", program, "./cmd/keysvc",
	)
	if text, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the newer keysvc: %w\n%s", err, text)
	}
	built.newer = program
	return program, nil
}
