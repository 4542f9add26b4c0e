package config

import (
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/strictyaml"
)

func TestSecretsAreNeverShown(t *testing.T) {
	const secret = "hunter2"
	setting := Setting{Name: "password", Secret: true, kind: number(func(s *Settings) *int { return &s.MaxStreams }, 1, 9)}
	if got := setting.Show(Settings{MaxStreams: 5}); got != "(hidden)" {
		t.Errorf("shown as %q", got)
	}
	if err := setting.set(&Settings{}, []string{secret}); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("got %v", err)
	}
	setting = Setting{Secret: true, kind: text(func(s *Settings) *string { return &s.Anchor }, anyValue)}
	if got := setting.Show(Settings{}); got != "" {
		t.Errorf("a secret that is not set is shown as %q", got)
	}
	wrong := mistakesOfFile(
		[]Setting{{Name: "password", Secret: true}},
		strictyaml.Errors{{File: "f", Line: 1, Column: 2, Field: "password", Problem: "is the number " + secret}, {File: "f", Line: 3, Field: "pass", Problem: "is bad"}},
	)
	if got, want := wrong.Error(), "f:1:2: password: "+errSecret.Error()+"\nf:3: pass: is bad"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	settings := []Setting{{Name: "password", Secret: true}, {Name: "pass"}}
	for field, want := range map[string]bool{"password": true, "password[1]": true, "pass": false, "document": false} {
		if isSecret(settings, field) != want {
			t.Errorf("isSecret(%s) = %t", field, !want)
		}
	}
}

func TestShortDurationLeavesOutZeros(t *testing.T) {
	for duration, want := range map[time.Duration]string{
		0: "0s", time.Second: "1s", time.Minute: "1m", time.Hour: "1h", 24 * time.Hour: "24h", 90 * time.Second: "1m30s",
		100 * time.Millisecond: "100ms", time.Hour + time.Second: "1h0m1s", 90 * time.Minute: "1h30m", 10 * time.Minute: "10m",
	} {
		got := shortDuration(duration)
		if again, err := time.ParseDuration(got); got != want || err != nil || again != duration {
			t.Errorf("%s is written %s, want %s", duration, got, want)
		}
	}
}
