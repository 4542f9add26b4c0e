//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// busy returns how much processor time the threads of a process have had, its kernel time
// included.
func busy(pid int) time.Duration {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	var sum time.Duration
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if err != nil {
			continue // the thread has ended
		}
		first, _, _ := strings.Cut(string(text), " ")
		spent, _ := strconv.ParseInt(first, 10, 64)
		sum += time.Duration(spent)
	}
	return sum
}

// resident returns the anonymous memory of a process in bytes: what it allocated and holds. The
// pages of mapped files are the system's.
func resident(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, "RssAnon:"); found {
			fields := strings.Fields(rest)
			kilobytes, _ := strconv.ParseInt(fields[0], 10, 64)
			return kilobytes << 10
		}
	}
	return 0
}

// descriptors returns how many descriptors a process has open. Nearly all of a server's are
// connections.
func descriptors(pid int) int {
	folder, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0
	}
	defer folder.Close()
	names, _ := folder.Readdirnames(-1)
	return len(names)
}

// socketMemory returns what all TCP sockets of the system hold in the kernel, in bytes.
func socketMemory() int64 {
	text, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, "TCP:"); found {
			fields := strings.Fields(rest)
			pages, _ := strconv.ParseInt(fields[len(fields)-1], 10, 64)
			return pages * int64(os.Getpagesize())
		}
	}
	return 0
}

// processors returns how much processor time everything on this machine has had since its start.
func processors() time.Duration {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	var ticks int64
	for i, field := range strings.Fields(first)[1:] {
		if i == 3 || i == 4 || i > 7 {
			continue // idle, waiting for a disk, and guests, which count as users
		}
		spent, _ := strconv.ParseInt(field, 10, 64)
		ticks += spent
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ
}

// load returns the system's load average over a minute.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

const (
	// share is the part of one processor that the attacker may use.
	share = 0.5
	// burst is how far the attacker may be ahead.
	burst = 10 * time.Millisecond
	// look is how often the attacker's use is looked at.
	look = 4 * time.Millisecond
)

// govern stops and continues a process, so that it uses no more than its share of a processor,
// until done is closed. It returns how much the process used.
func govern(process *os.Process, done <-chan struct{}) time.Duration {
	began := time.Now()
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	stopped := false
	var used time.Duration
	for {
		select {
		case <-done:
			if stopped {
				_ = process.Signal(syscall.SIGCONT)
			}
			return used
		case <-ticker.C:
		}
		used = max(used, busy(process.Pid))
		over := used > time.Duration(share*float64(time.Since(began)))+burst
		switch {
		case over && !stopped:
			_ = process.Signal(syscall.SIGSTOP)
		case !over && stopped:
			_ = process.Signal(syscall.SIGCONT)
		}
		stopped = over
	}
}
