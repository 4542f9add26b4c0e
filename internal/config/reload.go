package config

import "slices"

// Reload returns the settings that a running server has after it loaded next: those that are
// Reloadable are next's, all others stay. changed names the settings that it takes over, and
// restart those that differ but need a restart; both in the order of the table.
func (s Settings) Reload(next Settings) (merged Settings, changed, restart []string) {
	merged = s
	for _, setting := range table {
		switch {
		case slices.Equal(setting.kind.texts(&s), setting.kind.texts(&next)):
		case setting.Reloadable:
			setting.kind.copy(&merged, &next)
			changed = append(changed, setting.Name)
		default:
			restart = append(restart, setting.Name)
		}
	}
	return merged, changed, restart
}
