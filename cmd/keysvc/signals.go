package main

import (
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// exitSignal and the number of a signal make what shells give a program that it ended.
const exitSignal = 128

// signalsOfPeople returns where the signals arrive that wish to end the process. Others
// are the command's affair.
func signalsOfPeople() <-chan os.Signal {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	return signals
}

// handle calls stop on the first SIGINT or SIGTERM and ends the process at once on the
// second, whichever it is: whoever sends two does not want to wait. SIGQUIT ends it at
// once and says what each goroutine does.
func handle(signals <-chan os.Signal, stop func()) {
	stopping := false
	for next := range signals {
		received, _ := next.(syscall.Signal) // all signals of unix are
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

// dump writes the goroutines' stacks to standard error. The runtime would do the same
// by itself, and wait for ever for somebody to read it.
func dump() {
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = os.Stderr.Write(stacks) // there is nobody else to tell
	}()
	select {
	case <-written:
	case <-time.After(time.Second):
	}
}
