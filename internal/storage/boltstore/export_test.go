package boltstore

// WithFault returns a config that calls fault before and after each commit is written. If fault
// returns an error, the commit fails with it.
func (c Config) WithFault(fault func(written bool) error) Config {
	c.fault = fault
	return c
}
