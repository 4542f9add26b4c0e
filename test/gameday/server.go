//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// server is a keysvc in a process of its own.
type server struct {
	*exec.Cmd
	// address is what commands call, metrics the address of the listener for Prometheus, log the file with
	// the log.
	address, metrics, log string
	ended                 chan struct{}
}

// options are how a server is started.
type options struct {
	program, data string
	// address is where the server listens; empty means a unix socket in the folder of the step.
	address string
	// passed is a socket that listens already, as systemd passes it.
	passed *os.File
	// noMetrics is for programs that have none.
	noMetrics bool
	arguments []string
}

// start starts a server, which is the one that commands call from now on.
func (d *day) start(o options) error {
	s, err := d.launch(o)
	if err != nil {
		return err
	}
	return d.ready(s)
}

// launch starts a server and does not wait.
func (d *day) launch(o options) (*server, error) {
	if o.program == "" {
		o.program = d.programs.now
	}
	if o.address == "" {
		o.address = "unix://" + d.path("s")
	}
	s := &server{address: o.address, log: d.path(fmt.Sprintf("log-%d", time.Now().UnixNano())), ended: make(chan struct{})}
	arguments := append([]string{"serve", "--data", o.data, "--listen", o.address, "--log-format", "json"}, o.arguments...)
	if !o.noMetrics {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		s.metrics = free.Addr().String()
		_ = free.Close()
		arguments = append(arguments, "--listener", "metrics="+s.metrics)
	}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.Cmd = exec.Command(o.program, arguments...)
	if o.passed != nil {
		s.Cmd = exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, o.program}, arguments...)...)
		s.ExtraFiles = []*os.File{o.passed}
	}
	s.Env = clean()
	if o.passed != nil {
		s.Env = append(s.Env, "LISTEN_FDS=1")
	}
	s.Stdout, s.Stderr = log, log
	s.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !d.quiet {
		fmt.Printf("$ %s\n", strings.ReplaceAll(filepath.Base(o.program)+" "+strings.Join(arguments, " "), d.folder+"/", ""))
	}
	if err := s.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = s.Wait()
		close(s.ended)
	}()
	d.ending = append(d.ending, s.kill)
	d.server = s
	return s, nil
}

// ready waits until the server serves.
func (d *day) ready(s *server) error {
	deadline := time.Now().Add(patience)
	for !bytes.Contains(s.logged(), []byte(`"msg":"serving"`)) {
		select {
		case <-s.ended:
			return fmt.Errorf("keysvc ended instead of serving: %s", s.logged())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("keysvc does not serve: %s", s.logged())
		}
	}
	return nil
}

func (s *server) logged() []byte {
	content, _ := os.ReadFile(s.log)
	return content
}

// kill kills the process, and waits until it is gone.
func (s *server) kill() error {
	_ = s.Process.Kill()
	return s.gone()
}

// stop ends the process, and waits until it is gone.
func (s *server) stop() error {
	_ = s.Process.Signal(syscall.SIGTERM)
	if err := s.gone(); err != nil {
		return err
	}
	if status := s.ProcessState.ExitCode(); status != 0 {
		return fmt.Errorf("keysvc ended with status %d: %s", status, s.logged())
	}
	return nil
}

func (s *server) gone() error {
	select {
	case <-s.ended:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("the server has not ended after %v", patience)
	}
}
