package boltstore

// WithFault returns a config whose commits fail, before and after they were written, with
// what fault returns.
func (c Config) WithFault(fault func(written bool) error) Config {
	c.fault = fault
	return c
}
