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

// The kinds of disks that a sink lies on.
const (
	// diskPlain is the file system of temporary files.
	diskPlain = "plain"
	// diskFull is a small file system in memory, which other files fill.
	diskFull = "full"
	// diskHanging is a file system in a file. It can be made to hang, and to lose all that was not
	// synced.
	diskHanging = "hanging"
)

var diskKinds = []string{diskPlain, diskFull, diskHanging}

// errNoDisk is returned if this machine or user cannot have a kind of disk.
var errNoDisk = errors.New("it cannot be made here")

// disk is a file system for a sink.
type disk struct {
	kind, folder string
	// image is the file that a hanging disk lies in.
	image string
	// watchdog thaws the disk if this process ends while the disk hangs.
	watchdog *exec.Cmd
	pipe     io.WriteCloser
}

// newDisk makes a disk, with its files below parent.
func newDisk(kind, parent string) (*disk, error) {
	d := &disk{kind: kind, folder: filepath.Join(parent, "disk"), image: filepath.Join(parent, "image")}
	if err := os.MkdirAll(d.folder, 0o700); err != nil {
		return nil, err
	}
	if kind == diskPlain {
		return d, nil
	}
	if os.Getenv(insideVariable) != "1" {
		return nil, fmt.Errorf("%w: it takes root, and a mount namespace", errNoDisk)
	}
	switch kind {
	case diskFull:
		if err := syscall.Mount("none", d.folder, "tmpfs", 0, "size=160m"); err != nil {
			return nil, fmt.Errorf("%w: mounting: %w", errNoDisk, err)
		}
		return d, nil
	case diskHanging:
		if err := command("truncate", "-s", "128M", d.image); err != nil {
			return nil, fmt.Errorf("%w: %w", errNoDisk, err)
		}
		if err := command("mkfs.ext4", "-q", d.image); err != nil {
			return nil, fmt.Errorf("%w: %w", errNoDisk, err)
		}
		return d, d.mount()
	}
	return nil, fmt.Errorf("no kind of disk %q", kind)
}

func command(name string, arguments ...string) error {
	output, err := exec.Command(name, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, output)
	}
	return nil
}

// mount mounts the image.
func (d *disk) mount() error {
	if err := command("mount", "-o", "loop", d.image, d.folder); err != nil {
		return fmt.Errorf("%w: %w", errNoDisk, err)
	}
	return nil
}

// close unmounts the disk.
func (d *disk) close() error {
	if d.kind == diskPlain {
		return nil
	}
	return command("umount", d.folder)
}

// The requests FIFREEZE and FITHAW of ioctl_fs(2).
const freezeRequest, thawRequest = 0xC0045877, 0xC0045878

func (d *disk) control(request uintptr) error {
	folder, err := os.Open(d.folder)
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
func (d *disk) freeze() error {
	d.watchdog = exec.Command("sh", "-c", `read x; fsfreeze -u "$0"`, d.folder)
	var err error
	if d.pipe, err = d.watchdog.StdinPipe(); err != nil {
		return err
	}
	if err := d.watchdog.Start(); err != nil {
		return err
	}
	return d.control(freezeRequest)
}

// thaw ends freeze.
func (d *disk) thaw() error {
	err := d.control(thawRequest)
	_ = d.pipe.Close()
	_ = d.watchdog.Wait() // it finds the disk thawed, which is an error
	return err
}

// losePower puts the disk into the state that a power cut would leave now: without what was not
// synced. Nobody may have a file open.
func (d *disk) losePower() error {
	// The image has what has reached the disk. The mounted file system has the rest in memory.
	after := d.image + ".after"
	if err := command("cp", "--sparse=always", d.image, after); err != nil {
		return err
	}
	if err := command("umount", d.folder); err != nil {
		return err
	}
	if err := os.Rename(after, d.image); err != nil {
		return err
	}
	return d.mount()
}

// fill fills the disk, and leaves some space.
func (d *disk) fill(leave int) error {
	file, err := os.Create(filepath.Join(d.folder, "filler"))
	if err != nil {
		return err
	}
	defer file.Close()
	block, size := make([]byte, 64<<10), int64(0)
	for {
		written, err := file.Write(block)
		size += int64(written)
		switch {
		case errors.Is(err, syscall.ENOSPC) && len(block) > 4096:
			block = block[:4096]
		case errors.Is(err, syscall.ENOSPC):
			return file.Truncate(max(0, size-int64(leave)))
		case err != nil:
			return err
		}
	}
}

// empty ends fill.
func (d *disk) empty() error { return os.Remove(filepath.Join(d.folder, "filler")) }
