package server

// NewLog is newLog: the log as `keysvc serve` writes it.
var NewLog = newLog

// RepairClockAt is RepairClock with a clock.
var RepairClockAt = repairClock
