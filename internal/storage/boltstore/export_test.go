package boltstore

// WithFault returns a config that calls fault before and after each commit is written. The
// commit fails with what fault returns.
func (c Config) WithFault(fault func(written bool) error) Config {
	c.fault = fault
	return c
}
