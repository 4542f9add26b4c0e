package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// onFile calls run, the code of a command on a store's file that no server may have open. It
// returns an error that says so if file is a folder or is being served.
func (a *app) onFile(cmd *cobra.Command, file string, run func(ctx context.Context) error) error {
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		return usageError(cmd, "%s is a folder; FILE is the store's file, which serve --data %s keeps as %s", file, file, filepath.Join(file, "keysvc.db"))
	}
	err := run(cmd.Context())
	if !errors.Is(err, storage.ErrLocked) {
		return err
	}
	holder := "another process"
	if pid, name := holderOf(file); pid != 0 {
		holder = fmt.Sprintf("process %d (%s)", pid, name)
	}
	return &refusal{fmt.Sprintf("%s is in use by %s, and nothing was changed: stop that first, then run the command again", file, holder)}
}

// holderOf returns the id and the program name of a process that has a file open, or 0 if no such
// process can be found.
func holderOf(file string) (pid int, name string) {
	wanted, err := os.Stat(file)
	if err != nil {
		return 0, ""
	}
	processes, _ := os.ReadDir("/proc") // absent on some systems
	for _, process := range processes {
		pid, err := strconv.Atoi(process.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		folder := filepath.Join("/proc", process.Name())
		open, _ := os.ReadDir(filepath.Join(folder, "fd")) // fails for processes of other users
		for _, descriptor := range open {
			held, err := os.Stat(filepath.Join(folder, "fd", descriptor.Name()))
			if err != nil || !os.SameFile(held, wanted) {
				continue
			}
			comm, _ := os.ReadFile(filepath.Join(folder, "comm"))
			return pid, strings.TrimSpace(string(comm))
		}
	}
	return 0, ""
}
