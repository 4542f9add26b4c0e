package trio

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
		built.programs = nil
	}
}

// Main runs the tests of a package, and removes what Build has built. It is for TestMain, and returns the exit status.
func Main(run func() int) int {
	defer RemoveBuilt()
	return run()
}
