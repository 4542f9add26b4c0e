package callers

// Remembered returns how many tokens a judge remembers.
func (j *TableJudge) Remembered() int {
	j.known.mu.RLock()
	defer j.known.mu.RUnlock()
	return len(j.known.values)
}
