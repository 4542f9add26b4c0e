package config

import "slices"

// Reload returns the settings of a running server after a reload: Reloadable settings come
// from next, all others stay as they are in s. changed names the settings that are taken over,
// and restart the settings that differ but need a restart, both in the order of the table.
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
