package config_test

import (
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/config"
)

func TestNoticesGoOverTLSOrStayOnThisMachine(t *testing.T) {
	for text, allowed := range map[string]bool{
		"": true, "https://hooks.example/keysvc?x=1": true, "https://10.0.0.1:8443": true,
		"http://127.0.0.1:8080/n": true, "http://[::1]:8080/": true, "http://localhost/": true, "http://LOCALHOST:1/": true,
		"http://hooks.example/": false, "http://localhost.example/": false, "http://10.0.0.1/": false, "http://127.0.0.1.example/": false,
		"ftp://hooks.example/": false, "hooks.example/n": false, "https://": false, "https:///path": false, "https:hooks": false,
		"https://user:hunter2@hooks.example/": false, "https://hooks.example/#x": false, "https://[::1": false, "\x00": false,
	} {
		settings := config.Defaults()
		settings.NoticeWebhook = text
		if text != "" {
			settings.NoticeSecret = "/s"
		}
		err := settings.Validate()
		if (err == nil) != allowed || err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
	settings := config.Defaults()
	settings.NoticeSecret = "/s"
	if err := settings.Validate(); err == nil {
		t.Error("a secret without a webhook is accepted")
	}
}
