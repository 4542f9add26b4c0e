package callers

// Methods are the names in the table, for tests.
func Methods() []string {
	names := make([]string, 0, len(methods))
	for name := range methods {
		names = append(names, name)
	}
	return names
}

// Remembered returns how many tokens a judge remembers.
func (j *TableJudge) Remembered() int {
	j.known.mu.RLock()
	defer j.known.mu.RUnlock()
	return len(j.known.values)
}
