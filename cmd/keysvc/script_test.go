package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/script/*.txtar: end-to-end tests of the built command that read as
// a shell session. Each runs in a folder of its own, $WORK, with keysvc on the PATH. Beside the
// commands of testscript they have these:
//
//	serve [ARGUMENT...]       start a server with --data data on a free port, make a missing
//	                          store, wait until it serves, and set KEYSVC_ADDR
//	stop                      end the server with SIGTERM; its output is then in served.out and
//	                          served.log
//	status N COMMAND...       run a command that must end with this exit status
//	issue NAME ARGUMENT...    run keysvc, whose answer must be a token alone; put the token into
//	                          the file NAME, standard error into the file said, and the key's id
//	                          into $ID
//	paste N [STATUS]          run the Nth command that the server printed, as a person would; it
//	                          must end with the exit status, by default 0
//	refuses PATTERN ARG...    keysvc serve must fail at once, with one line like PATTERN, and
//	                          leave the store as it is
//	damage HOW FILE           damage a store: truncate, begin, rest, header or newer
//	occupy NETWORK ADDRESS    listen there with a program that is not keysvc, and set $TAKEN
//	stale FILE                leave a socket behind that nobody listens on
//	mode MODE FILE            expect a file with this mode
//	well                      wait until keysvc status finds nothing wrong
//
// The condition [root] holds for the super-user. $SHORT is a folder with a path that is short
// enough for a socket. A server is stopped at the end of its script.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			short, err := os.MkdirTemp("", "ks")
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(short) })
			env.Setenv("SHORT", short)
			if err := addGrpcurl(short); err != nil {
				return err
			}
			env.Setenv("PATH", strings.Join([]string{filepath.Dir(binary), short, os.Getenv("PATH")}, string(os.PathListSeparator)))
			env.Values[serverOfScript{}] = &scriptServer{}
			return nil
		},
		Condition: func(condition string) (bool, error) {
			if condition != "root" {
				return false, fmt.Errorf("there is no condition %q", condition)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":   positive(scriptServe),
			"stop":    positive(scriptStop),
			"status":  positive(scriptStatus),
			"issue":   positive(scriptIssue),
			"paste":   positive(scriptPaste),
			"refuses": positive(scriptRefuses),
			"damage":  positive(scriptDamage),
			"occupy":  positive(scriptOccupy),
			"stale":   positive(scriptStale),
			"mode":    positive(scriptMode),
			"well":    positive(scriptWell),
		},
	})
}

// addGrpcurl puts grpcurl into a folder, as a script that runs the one of tools/go.mod.
func addGrpcurl(folder string) error {
	modules, err := filepath.Abs("../../tools")
	if err != nil {
		return err
	}
	script := "#!/bin/sh\n"
	for _, variable := range os.Environ() { // what go needs, and scripts do not have
		if name, value, _ := strings.Cut(variable, "="); name == "HOME" || strings.HasPrefix(name, "GO") {
			script += "export " + name + "='" + strings.ReplaceAll(value, "'", `'\''`) + "'\n"
		}
	}
	script += "exec go -C " + modules + " tool grpcurl \"$@\"\n"
	return os.WriteFile(filepath.Join(folder, "grpcurl"), []byte(script), 0o700)
}

// positive makes a command that has no negation.
func positive(run func(ts *testscript.TestScript, args []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, negated bool, args []string) {
		if negated {
			ts.Fatalf("! has no meaning here")
		}
		run(ts, args)
	}
}

// serverOfScript is the key of a script's server.
type serverOfScript struct{}

// scriptServer is the server that a script has started last.
type scriptServer struct{ running *process }

func serverOf(ts *testscript.TestScript) *scriptServer {
	server, _ := ts.Value(serverOfScript{}).(*scriptServer) // Setup puts it there
	return server
}

func need(ts *testscript.TestScript, args []string, least int, usage string) {
	if len(args) < least {
		ts.Fatalf("usage: %s", usage)
	}
}

func scriptServe(ts *testscript.TestScript, args []string) {
	server := serverOf(ts)
	if server.running != nil {
		ts.Fatalf("the script has a server already")
	}
	data := "data"
	for index, argument := range args {
		if argument == "--data" {
			data = args[index+1]
		}
	}
	data = ts.MkAbs(data)
	command := exec.Command(binary, append(append(serveOn(data), args...), "--data", data)...)
	command.Dir = ts.Getenv("WORK")
	command.Env = clean()
	p, err := begin(command)
	ts.Check(err)
	server.running = p
	ts.Defer(p.kill)
	ready := serves
	for _, argument := range args {
		if argument == "--dev" {
			ready = lastLine
		}
	}
	if _, err := p.stdout.await(p.ended, ready); err != nil {
		ts.Fatalf("it does not serve: %v\n%s", err, p.stderr)
	}
	address, err := p.stdout.await(p.ended, serves)
	ts.Check(err)
	ts.Setenv("KEYSVC_ADDR", address)
}

func scriptStop(ts *testscript.TestScript, _ []string) {
	server := serverOf(ts)
	if server.running == nil {
		ts.Fatalf("the script has no server")
	}
	p := server.running
	server.running = nil
	ts.Check(p.command.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.ended:
	case <-time.After(patience):
		ts.Fatalf("it still runs after %s\n%s", patience, p.stderr)
	}
	ts.Check(os.WriteFile(ts.MkAbs("served.out"), []byte(p.stdout.String()), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("served.log"), []byte(p.stderr.String()), 0o600))
	if status := p.command.ProcessState.ExitCode(); status != 0 {
		ts.Fatalf("exit status %d after SIGTERM\n%s", status, p.stderr)
	}
}

func scriptStatus(ts *testscript.TestScript, args []string) {
	need(ts, args, 2, "status N COMMAND...")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exited, isExit := errors.AsType[*exec.ExitError](err); isExit {
		got = exited.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// scriptWell waits, because a disk that is busy for a second is something wrong.
func scriptWell(ts *testscript.TestScript, _ []string) {
	for began := time.Now(); ; {
		err := ts.Exec("keysvc", "status")
		if err == nil {
			return
		}
		if time.Since(began) > patience {
			ts.Fatalf("it is not well after %s: %v", patience, err)
		}
	}
}

// tokenAlone is the whole answer of a command that issues a token.
var tokenAlone = regexp.MustCompile(`^[a-z][a-z0-9]{1,11}_ksk1_([0-9A-Za-z]{16})_([0-9A-Za-z]{49})\n$`)

func scriptIssue(ts *testscript.TestScript, args []string) {
	need(ts, args, 2, "issue NAME ARGUMENT...")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, binary, args[1:]...)
	command.Dir = ts.MkAbs(".")
	command.Env = append(clean(), "KEYSVC_ADDR="+ts.Getenv("KEYSVC_ADDR"))
	if workspace := ts.Getenv("KEYSVC_WORKSPACE"); workspace != "" {
		command.Env = append(command.Env, "KEYSVC_WORKSPACE="+workspace)
	}
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		ts.Fatalf("keysvc %s: %v\n%s", args[1], err, stderr.String())
	}
	found := tokenAlone.FindStringSubmatch(stdout.String())
	if found == nil {
		ts.Fatalf("standard output is not a token alone, but %d bytes\n%s", stdout.Len(), stderr.String())
	}
	if strings.Contains(stderr.String(), found[2]) {
		ts.Fatalf("the token is on standard error, too")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), stdout.Bytes(), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("said"), stderr.Bytes(), 0o600))
	ts.Setenv("ID", found[1])
}

func scriptPaste(ts *testscript.TestScript, args []string) {
	need(ts, args, 1, "paste N")
	number, err := strconv.Atoi(args[0])
	ts.Check(err)
	server := serverOf(ts)
	if server.running == nil {
		ts.Fatalf("the script has no server")
	}
	commands := pasted(server.running.stdout.String())
	if number < 1 || number > len(commands) {
		ts.Fatalf("the server printed %d commands:\n%s", len(commands), server.running.stdout)
	}
	status := "0"
	if len(args) > 1 {
		status = args[1]
	}
	scriptStatus(ts, []string{status, "sh", "-c", commands[number-1]})
}

func scriptRefuses(ts *testscript.TestScript, args []string) {
	need(ts, args, 2, "refuses PATTERN ARGUMENT...")
	file := ""
	for index, argument := range args {
		if argument == "--data" {
			file = ts.MkAbs(filepath.Join(args[index+1], "keysvc.db"))
		}
	}
	before, _ := os.ReadFile(file) // the file may be absent
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, binary, append([]string{"serve", "--allow-plaintext", "--listen", "127.0.0.1:0"}, args[1:]...)...)
	command.Dir, command.Env = ts.MkAbs("."), clean()
	command.Stdout, command.Stderr = &stdout, &stderr
	began := time.Now()
	_ = command.Run() // the status tells
	took := time.Since(began)
	ts.Logf("%s", stderr.String())
	if status := command.ProcessState.ExitCode(); status != 1 && status != 2 {
		ts.Fatalf("exit status %d", status)
	}
	if took > startBound {
		ts.Fatalf("it took %s", took)
	}
	line, rest, _ := strings.Cut(stderr.String(), "\n")
	if rest != "" || !strings.HasPrefix(line, "error: ") || !regexp.MustCompile(args[0]).MatchString(line) {
		ts.Fatalf("want one line like %q", args[0])
	}
	for _, unclear := range []string{"goroutine", "panic", "%!", "<nil>"} {
		if strings.Contains(line, unclear) {
			ts.Fatalf("not clear")
		}
	}
	if stdout.Len() > 0 {
		ts.Fatalf("on standard output: %s", stdout.String())
	}
	if after, _ := os.ReadFile(file); serverOf(ts).running == nil && !bytes.Equal(before, after) {
		ts.Fatalf("the failed start changed the store's file")
	}
}

func scriptDamage(ts *testscript.TestScript, args []string) {
	need(ts, args, 2, "damage HOW FILE")
	file := ts.MkAbs(args[1])
	switch args[0] {
	case "truncate":
		ts.Check(truncate(file))
	case "begin":
		ts.Check(overwrite(file, 0, 8192))
	case "rest":
		ts.Check(overwrite(file, 8192, 1<<20))
	case "header":
		ts.Check(changeHeader(file, false))
	case "newer":
		ts.Check(changeHeader(file, true))
	default:
		ts.Fatalf("there is no damage %q", args[0])
	}
}

func scriptOccupy(ts *testscript.TestScript, args []string) {
	need(ts, args, 2, "occupy NETWORK ADDRESS")
	listener, err := net.Listen(args[0], args[1])
	ts.Check(err)
	ts.Defer(func() { _ = listener.Close() })
	ts.Setenv("TAKEN", listener.Addr().String())
}

func scriptStale(ts *testscript.TestScript, args []string) {
	need(ts, args, 1, "stale FILE")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: args[0], Net: "unix"})
	ts.Check(err)
	listener.SetUnlinkOnClose(false)
	ts.Check(listener.Close())
}

func scriptMode(ts *testscript.TestScript, args []string) {
	need(ts, args, 2, "mode MODE FILE")
	info, err := os.Lstat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s", args[1], got)
	}
}
