//go:build crashlab

package main

import "syscall"

// This file compiles with the laboratory's overlay alone (package overlay), which adds
// syscall.Lab to the standard library.
func init() {
	seam = func(intercept func(*call, func() (int, error)) (int, error)) {
		syscall.Lab = func(its *syscall.LabCall, do func() (int, error)) (int, error) {
			seen := call{
				name: its.Name, fd: its.FD, path: its.Path, newPath: its.NewPath,
				data: its.Data, offset: its.Offset, size: its.Size, flags: its.Flags,
			}
			return intercept(&seen, func() (int, error) {
				its.Data = seen.data
				return do()
			})
		}
	}
}
