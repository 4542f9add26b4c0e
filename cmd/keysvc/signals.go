package main

import (
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// exitSignal plus the number of a signal is the exit status that shells give a program that the
// signal ended.
const exitSignal = 128

// signalsOfPeople returns a channel of the signals with which people end a process. The command
// handles other signals.
func signalsOfPeople() <-chan os.Signal {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	return signals
}

// handle calls stop on the first SIGINT or SIGTERM and ends the process at once on the
// second of either, because a person who sends two does not want to wait. SIGQUIT ends the
// process at once and writes the stacks of all goroutines.
func handle(signals <-chan os.Signal, stop func()) {
	stopping := false
	for next := range signals {
		received, _ := next.(syscall.Signal) // on unix every signal is one
		if received == syscall.SIGQUIT {
			dump()
		}
		if stopping || received == syscall.SIGQUIT {
			os.Exit(exitSignal + int(received))
		}
		stopping = true
		stop()
	}
}

// dump writes the stacks of all goroutines to standard error. The runtime could do the same, but
// would wait forever for a reader of a full pipe.
func dump() {
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = os.Stderr.Write(stacks) // there is nowhere else to report it
	}()
	select {
	case <-written:
	case <-time.After(time.Second):
	}
}
