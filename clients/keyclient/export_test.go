package keyclient

// ParseTarget is parseTarget.
var ParseTarget = parseTarget
