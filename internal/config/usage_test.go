package config_test

import (
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
)

// TestUsageEvery: with etcd, times are written every ten minutes unless the settings say something else.
func TestUsageEvery(t *testing.T) {
	settings := config.Defaults()
	if got := settings.UsageEvery(); got != time.Minute {
		t.Errorf("in a file, times are written every %s, want 1m", got)
	}
	settings.Store = config.EtcdStore
	if got := settings.UsageEvery(); got != 10*time.Minute {
		t.Errorf("in etcd, times are written every %s, want 10m", got)
	}
	settings.UsageInterval = 5 * time.Second
	if got := settings.UsageEvery(); got != 5*time.Second {
		t.Errorf("in etcd, with an interval of 5s, times are written every %s", got)
	}
}
