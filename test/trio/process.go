package trio

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// errEnded is the error of what waits for a process that has ended.
var errEnded = errors.New("the process has ended")

// starter starts processes on one thread, which lives until close: the processes end when their thread does.
type starter struct {
	requests chan func()
	ended    chan struct{}
}

func newStarter() *starter {
	s := &starter{requests: make(chan func()), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		runtime.LockOSThread() // not unlocked: the thread ends here
		for request := range s.requests {
			request()
		}
	}()
	return s
}

func (s *starter) start(command *exec.Cmd) error {
	result := make(chan error)
	s.requests <- func() { result <- command.Start() }
	return <-result
}

func (s *starter) close() {
	close(s.requests)
	<-s.ended
}

// process is a program that runs, with the signals that a test sends it.
type process struct {
	starter *starter
	name    string
	folder  string

	// mutex guards what follows, which is of the newest start.
	mutex   sync.Mutex
	command *exec.Cmd
	input   io.Closer
	stopped bool
	// ready is closed when the program has said that it serves, ended when the process is gone.
	ready, ended chan struct{}
}

// start starts the program. line is called with each line that the program writes, and reports whether the
// program serves now.
func (p *process) start(command *exec.Cmd, line func(string) (ready bool)) error {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.command != nil && !closed(p.ended) {
		return fmt.Errorf("%s: runs already", p.name)
	}
	log, err := os.OpenFile(p.Log(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return errors.Join(err, log.Close())
	}
	command.Dir = p.folder
	command.Stdout, command.Stderr = writer, writer
	endWithParent(command)
	input, err := command.StdinPipe()
	if err == nil {
		err = p.starter.start(command)
	}
	_ = writer.Close()
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", p.name, err), reader.Close(), log.Close())
	}
	ready, ended := make(chan struct{}), make(chan struct{})
	p.command, p.input, p.stopped, p.ready, p.ended = command, input, false, ready, ended
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer log.Close()
		defer reader.Close()
		lines := bufio.NewReader(reader)
		for serves := false; ; {
			text, err := lines.ReadString('\n')
			_, _ = log.WriteString(text)
			if text != "" && line(strings.TrimSuffix(text, "\n")) && !serves {
				serves = true
				close(ready)
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		<-read
		_ = command.Wait() // how it ended is in ProcessState
		close(ended)
	}()
	return nil
}

func closed(channel chan struct{}) bool {
	select {
	case <-channel:
		return true
	default:
		return false
	}
}

// Log returns the path of the file with all that the process has written, over all its starts.
func (p *process) Log() string { return filepath.Join(p.folder, "log") }

// Running reports whether the process runs, stopped or not.
func (p *process) Running() bool {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.command != nil && !closed(p.ended)
}

// Ended returns a channel that is closed when the process that was started last has ended.
func (p *process) Ended() <-chan struct{} {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.ended
}

// ExitStatus returns the exit status of the process that was started last, which has ended: -1 if a signal ended it.
func (p *process) ExitStatus() int {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.command.ProcessState.ExitCode()
}

// PID returns the number of the process that was started last.
func (p *process) PID() int {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.command.Process.Pid
}

// Ready waits until the process serves. It returns an error with the end of the log if the process ends before,
// or the context does.
func (p *process) Ready(ctx context.Context) error {
	p.mutex.Lock()
	ready, ended := p.ready, p.ended
	p.mutex.Unlock()
	select {
	case <-ready:
		return nil
	case <-ended:
		return fmt.Errorf("%s: %w: %s", p.name, errEnded, p.tail())
	case <-ctx.Done():
		return fmt.Errorf("%s does not serve: %w: %s", p.name, ctx.Err(), p.tail())
	}
}

// tail returns the end of the log.
func (p *process) tail() string {
	content, _ := os.ReadFile(p.Log())
	return string(content[max(0, len(content)-2000):])
}

// Kill ends the process with SIGKILL, stopped or not, and waits until it is gone. It does nothing to a process that has ended.
func (p *process) Kill() error { return p.end(syscall.SIGKILL) }

// Terminate ends the process with SIGTERM, and waits until it is gone. A stopped process goes on to do so.
func (p *process) Terminate() error { return errors.Join(p.Continue(), p.end(syscall.SIGTERM)) }

func (p *process) end(signal syscall.Signal) error {
	p.mutex.Lock()
	command, ended := p.command, p.ended
	p.mutex.Unlock()
	if command == nil {
		return nil
	}
	if err := command.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	<-ended
	return nil
}

// Stop stops the process with SIGSTOP: it keeps its connections, and does nothing until Continue.
func (p *process) Stop() error { return p.pause(syscall.SIGSTOP, true) }

// Continue lets a stopped process go on. It does nothing to one that was not stopped.
func (p *process) Continue() error {
	if !p.isStopped() {
		return nil
	}
	return p.pause(syscall.SIGCONT, false)
}

func (p *process) pause(signal syscall.Signal, stopped bool) error {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.command == nil || closed(p.ended) {
		return fmt.Errorf("%s: %w", p.name, errEnded)
	}
	if err := p.command.Process.Signal(signal); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	p.stopped = stopped
	return nil
}

func (p *process) isStopped() bool {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.command != nil && !closed(p.ended) && p.stopped
}
