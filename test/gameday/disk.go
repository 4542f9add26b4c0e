//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// disk is a small file system for a store. Its files are below the folder of the step.
type disk struct {
	folder, image string
	// watchdog thaws the disk if this process ends while the disk hangs.
	watchdog *exec.Cmd
	pipe     io.WriteCloser
}

// mount mounts a file system: in memory, or in a file, where it can be made to hang.
func (d *day) mount(inMemory bool) (*disk, error) {
	if os.Getenv(insideVariable) != "1" {
		return nil, fmt.Errorf("%w: it takes root, and a mount namespace", errCannot)
	}
	m := &disk{folder: d.path("disk"), image: d.path("image")}
	if err := os.Mkdir(m.folder, 0o700); err != nil {
		return nil, err
	}
	if inMemory {
		if err := syscall.Mount("none", m.folder, "tmpfs", 0, "size=160m"); err != nil {
			return nil, fmt.Errorf("%w: mounting: %w", errCannot, err)
		}
	} else {
		for _, each := range [][]string{
			{"truncate", "-s", "256M", m.image},
			{"mkfs.ext4", "-q", m.image},
			{"mount", "-o", "loop", m.image, m.folder},
		} {
			if err := command(each[0], each[1:]...); err != nil {
				return nil, fmt.Errorf("%w: %w", errCannot, err)
			}
		}
	}
	d.mounted = true
	d.ending = append(d.ending, func() error { return command("umount", m.folder) })
	return m, nil
}

// fill fills the disk to the last byte.
func (m *disk) fill() error {
	file, err := os.Create(filepath.Join(m.folder, "filler"))
	if err != nil {
		return err
	}
	defer file.Close()
	for block := make([]byte, 64<<10); ; {
		_, err := file.Write(block)
		switch {
		case errors.Is(err, syscall.ENOSPC) && len(block) > 1:
			block = block[:len(block)/2]
		case errors.Is(err, syscall.ENOSPC):
			return nil
		case err != nil:
			return err
		}
	}
}

// empty ends fill.
func (m *disk) empty() error { return os.Remove(filepath.Join(m.folder, "filler")) }

// The requests FIFREEZE and FITHAW of ioctl_fs(2).
const freezeRequest, thawRequest = 0xC0045877, 0xC0045878

func (m *disk) control(request uintptr) error {
	folder, err := os.Open(m.folder)
	if err != nil {
		return err
	}
	defer folder.Close()
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, folder.Fd(), request, 0); errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

// freeze makes everything hang that writes to the disk.
func (m *disk) freeze() error {
	m.watchdog = exec.Command("sh", "-c", `read x; fsfreeze -u "$0"`, m.folder)
	var err error
	if m.pipe, err = m.watchdog.StdinPipe(); err != nil {
		return err
	}
	if err := m.watchdog.Start(); err != nil {
		return err
	}
	return m.control(freezeRequest)
}

// thaw ends freeze.
func (m *disk) thaw() error {
	err := m.control(thawRequest)
	_ = m.pipe.Close()
	_ = m.watchdog.Wait() // it finds the disk thawed, which is an error
	return err
}
