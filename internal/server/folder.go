package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
)

// makeFolder makes a folder that only this user may enter, and its missing parents, and makes all
// of them durable. A folder that exists stays as it is.
func makeFolder(path string) error {
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.IsDir():
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	case err == nil || !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := makeFolder(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(parent)
}

// syncFolder flushes a folder to the disk, so that the names in it are durable.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// warnOfLooseModes logs a warning if other users can read or change the store. A user who
// can write the file can make keys; a user who can write its folder can replace the file.
func warnOfLooseModes(ctx context.Context, log *slog.Logger, folder, file string) {
	for _, each := range []struct {
		path    string
		allowed fs.FileMode
	}{{folder, 0o700}, {file, 0o600}} {
		info, err := os.Stat(each.path)
		if err != nil {
			log.WarnContext(ctx, "the mode of the store's files is not known", "error", err)
			continue
		}
		if mode := info.Mode().Perm(); mode&^each.allowed != 0 {
			log.WarnContext(ctx, "others may read or change the store: its mode is too loose",
				"path", each.path, "mode", fmt.Sprintf("%04o", mode), "allowed", fmt.Sprintf("%04o", each.allowed))
		}
		if owner, known := info.Sys().(*syscall.Stat_t); known && int(owner.Uid) != os.Geteuid() {
			log.WarnContext(ctx, "the store belongs to another user, who may change it",
				"path", each.path, "owner", owner.Uid, "user", os.Geteuid())
		}
	}
}
