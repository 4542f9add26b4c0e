// Command crash is keysvc's crash laboratory. It builds command lab with an overlay
// that shows lab every call that changes a file, and runs lab. README.md says what the
// laboratory does and what it does not cover.
//
//	go -C test run ./crash -images 100000
//	go -C test run ./crash -seed 7 -kinds restart -round 3   (repeats a finding)
//	go -C test run ./crash -mutants all -time 60s
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/scribe-mail/keysvc/test/crash/overlay"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	// All flags but this one are passed to command lab.
	mutants := flag.String("mutants", "", "mutants to run, with commas between, or all: each must be caught")
	var passed []string
	for _, name := range []string{"seed", "images", "time", "kinds", "round", "findings", "workers", "keep"} {
		flag.Func(name, "see the laboratory's own -help", func(value string) error {
			passed = append(passed, "-"+name+"="+value)
			return nil
		})
	}
	flag.Parse()
	temporary, err := os.MkdirTemp("", "keysvc-crash-build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if *mutants == "" {
		program, err := build(ctx, temporary, "")
		if err != nil {
			return err
		}
		return execute(ctx, program, passed).Run()
	}
	wanted := strings.Split(*mutants, ",")
	if *mutants == "all" {
		wanted = overlay.Mutants()
	}
	return hunt(ctx, temporary, wanted, passed)
}

// hunt runs the laboratory on mutants. It must find something in each.
func hunt(ctx context.Context, temporary string, mutants, passed []string) error {
	var survived []string
	for _, mutant := range mutants {
		program, err := build(ctx, temporary, mutant)
		if err != nil {
			return err
		}
		kinds, err := overlay.Kinds(mutant)
		if err != nil {
			return err
		}
		var output bytes.Buffer
		command := execute(ctx, program, append([]string{"-kinds=" + kinds, "-findings=1", "-keep="}, passed...))
		command.Stdout, command.Stderr = &output, &output
		err = command.Run()
		var exited *exec.ExitError
		if err != nil && !errors.As(err, &exited) {
			return err
		}
		found, _, _ := strings.Cut(output.String()[max(0, strings.Index(output.String(), "FOUND")):], "\n")
		if err == nil || !strings.HasPrefix(found, "FOUND") {
			survived = append(survived, mutant)
			fmt.Printf("mutant %s SURVIVED\n%s\n", mutant, output.String())
			continue
		}
		lines := strings.Split(strings.TrimSpace(output.String()), "\n")
		fmt.Printf("mutant %s was caught: %s\n    %s\n", mutant, found, lines[len(lines)-2])
	}
	if len(survived) > 0 {
		return fmt.Errorf("mutants that survived: %s", strings.Join(survived, ", "))
	}
	return nil
}

func execute(ctx context.Context, program string, arguments []string) *exec.Cmd {
	command := exec.CommandContext(ctx, program, arguments...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	return command
}

// build builds the laboratory, with a mutant if one is named, and returns the path of the
// program.
func build(ctx context.Context, temporary, mutant string) (string, error) {
	folder, err := os.MkdirTemp(temporary, "overlay-")
	if err != nil {
		return "", err
	}
	module, err := goEnv(ctx, "GOMOD")
	if err != nil {
		return "", err
	}
	goRoot, err := goEnv(ctx, "GOROOT")
	if err != nil {
		return "", err
	}
	written, err := overlay.Write(overlay.Config{
		Folder: folder, Root: filepath.Dir(filepath.Dir(module)), GoRoot: goRoot, Mutant: mutant,
	})
	if err != nil {
		return "", err
	}
	program := filepath.Join(folder, "lab")
	command := exec.CommandContext(ctx, "go", "build", "-tags=crashlab", "-overlay="+written, "-o", program, "github.com/scribe-mail/keysvc/test/crash/lab")
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.Dir = filepath.Dir(module)
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("building the laboratory: %w", err)
	}
	return program, nil
}

// goEnv returns the value of a variable of go env.
func goEnv(ctx context.Context, name string) (string, error) {
	output, err := exec.CommandContext(ctx, "go", "env", name).Output()
	if err != nil {
		return "", fmt.Errorf("go env %s: %w", name, err)
	}
	return strings.TrimSpace(string(output)), nil
}
