package trio

import (
	"os/exec"
	"syscall"
)

// endWithParent makes a process end, stopped or not, when the thread that starts it ends. Interrupts
// of the terminal do not reach it.
func endWithParent(command *exec.Cmd) {
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
