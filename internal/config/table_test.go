package config_test

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/config"
)

// samples has a text of each setting that is not its default.
var samples = map[string]string{
	"socket-mode": "0660", "socket-group": "mail", "allow-plaintext": "true", "callers": "/c",
	"listen": "unix:///run/k.sock", "listener": "health=127.0.0.1:7481", "store": "etcd", "data": "/d", "init": "true",
	"anchor": "/a", "audit-sink": "/s", "audit-retention-days": "30", "audit-sink-max-bytes": "9", "audit-sink-keep-days": "8", "backup-dir": "/b", "backup-interval": "7h", "backup-keep": "5", "backup-rate": "70000", "policy": "p.yaml", "log-level": "debug", "log-format": "text", "trace-endpoint": "https://collector:4317", "trace-one-in": "7", "max-in-flight": "5", "max-streams": "6", "max-open-streams": "18",
	"max-message-bytes": "70000", "max-buffered-bytes": "50000000", "max-header-bytes": "8000", "drain-timeout": "3s", "usage-interval": "5s",
	"max-connections": "17", "max-connections-per-source": "0", "connection-age": "4h", "connection-idle": "11s",
	"sweep-interval": "2h", "staleness": "300ms", "max-sessions": "7", "session-age": "3h", "dev": "true",
	"tls-server-cert": "/t.crt", "tls-server-key": "/t.key", "spiffe-socket": "unix:///run/s.sock", "tls-bearers": "true", "tokens": "refuse",
	"notice-webhook": "https://h/n", "notice-secret": "/n", "notice-interval": "5m",
	"etcd-endpoints": "127.0.0.1:2379,127.0.0.1:2381", "etcd-prefix": "/k/", "etcd-ca": "/e.ca", "etcd-cert": "/e.crt", "etcd-key": "/e.key",
	"etcd-user": "keysvc", "etcd-password-file": "/e.pw",
	"allow-clock-behind": "true", "allow-clock-ahead": "true", "channelz": "true",
}

// companions are the settings that another one needs.
var companions = map[string][]string{
	"store": {"etcd-endpoints"}, "etcd-endpoints": {"store"}, "etcd-ca": {"store", "etcd-endpoints"},
	"etcd-cert": {"store", "etcd-endpoints", "etcd-ca", "etcd-key"}, "etcd-key": {"store", "etcd-endpoints", "etcd-ca", "etcd-cert"},
	"etcd-user": {"store", "etcd-endpoints", "etcd-password-file"}, "etcd-password-file": {"store", "etcd-endpoints", "etcd-user"},
	"notice-webhook": {"notice-secret"}, "notice-secret": {"notice-webhook"},
	"tls-server-cert": {"tls-server-key", "callers"}, "tls-server-key": {"tls-server-cert", "callers"}, "spiffe-socket": {"callers"}, "tls-bearers": {"spiffe-socket", "callers"},
}

// companionsOf returns the companions of a setting with their samples, as flags.
func companionsOf(name string) map[string][]string {
	flags := map[string][]string{}
	for _, companion := range companions[name] {
		flags[companion] = []string{samples[companion]}
	}
	return flags
}

// load loads with flags alone.
func load(t *testing.T, flags map[string][]string) config.Settings {
	t.Helper()
	loaded, err := config.Source{Defaults: config.Defaults(), Flags: flags}.Load()
	if err != nil {
		t.Fatal(err)
	}
	return loaded.Settings
}

// fieldOf has the fields of companions.
var fieldOf = map[string]string{"store": "Store", "etcd-endpoints": "EtcdEndpoints", "etcd-ca": "EtcdCA", "etcd-cert": "EtcdCert", "etcd-key": "EtcdKey", "etcd-user": "EtcdUser", "etcd-password-file": "EtcdPasswordFile", "tls-server-cert": "TLSServerCert", "tls-server-key": "TLSServerKey", "spiffe-socket": "SPIFFESocket", "callers": "Callers", "notice-webhook": "NoticeWebhook", "notice-secret": "NoticeSecret"}

// TestEachFieldOfSettingsHasOneRow: each row changes one field, and every field has a row.
func TestEachFieldOfSettingsHasOneRow(t *testing.T) {
	defaults := reflect.ValueOf(config.Defaults())
	rows := map[string]string{}
	for _, setting := range config.Table() {
		sample, known := samples[setting.Name]
		if !known {
			t.Errorf("%s has no sample in this test", setting.Name)
			continue
		}
		given, without := companionsOf(setting.Name), map[string]bool{}
		for companion := range given {
			without[fieldOf[companion]] = true
		}
		given[setting.Name] = []string{sample}
		changed := reflect.ValueOf(load(t, given))
		var fields []string
		for i := range changed.NumField() {
			if without[changed.Type().Field(i).Name] {
				continue
			}
			if !reflect.DeepEqual(changed.Field(i).Interface(), defaults.Field(i).Interface()) {
				fields = append(fields, changed.Type().Field(i).Name)
			}
		}
		if len(fields) != 1 || rows[fields[0]] != "" {
			t.Errorf("%s changes the fields %v", setting.Name, fields)
			continue
		}
		rows[fields[0]] = setting.Name
	}
	for i := range defaults.NumField() {
		if field := defaults.Type().Field(i).Name; rows[field] == "" {
			t.Errorf("Settings.%s is in no row of the table", field)
		}
	}
}

// TestNamesOfSettingsCannotCollide: for a Service named keysvc, or keysvc-data, Kubernetes
// sets KEYSVC_PORT, KEYSVC_SERVICE_HOST, KEYSVC_PORT_7480_TCP, KEYSVC_DATA_PORT and more;
// clients read the variables of docs/client-settings.md; --config names the file.
func TestNamesOfSettingsCannotCollide(t *testing.T) {
	form := regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`)
	taken := map[string]bool{config.FileFlag: true, "output": true, "help": true}
	for _, variable := range clientVariables(t) {
		taken[strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(variable, "KEYSVC_"), "_", "-"))] = true
	}
	for _, setting := range config.Table() {
		words := strings.Split(setting.Name, "-")
		switch {
		case !form.MatchString(setting.Name):
			t.Errorf("%q is not words in lower case, joined by -", setting.Name)
		case slices.Contains(words, "port") || slices.Contains(words, "service"):
			t.Errorf("Kubernetes may set %s", setting.Variable())
		case taken[setting.Name]:
			t.Errorf("%s is taken", setting.Name)
		}
		taken[setting.Name] = true
	}
	if config.FileVariable != "KEYSVC_"+strings.ToUpper(config.FileFlag) {
		t.Error("the variable of the file is not named as its flag")
	}
}

// clientVariables returns the variables that clients read, from their page, because this package
// does not know the client.
func clientVariables(t *testing.T) []string {
	t.Helper()
	page, err := os.ReadFile("../../docs/client-settings.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(KEYSVC_[A-Z_]+)` \\|").FindAllSubmatch(page, -1) {
		names = append(names, string(row[1]))
	}
	for _, name := range []string{"KEYSVC_ADDR", "KEYSVC_TLS_CERT", "KEYSVC_TOKEN"} {
		if !slices.Contains(names, name) {
			t.Fatalf("%s is not among the variables of the page: %v", name, names)
		}
	}
	return names
}

func TestRowsHaveUsageGroupAndDefault(t *testing.T) {
	for _, setting := range config.Table() {
		usage := setting.Usage
		if usage == "" || strings.ToLower(usage[:1]) != usage[:1] || strings.HasSuffix(usage, ".") || strings.Count(usage, "`")%2 != 0 ||
			strings.Contains(usage+setting.More, "|") || setting.Group == "" {
			t.Errorf("%s: usage %q, more %q, group %q", setting.Name, usage, setting.More, setting.Group)
		}
		if setting.Default == "" && setting.Empty == "" {
			t.Errorf("%s: nobody knows what holds if it is not given", setting.Name)
		}
		if got := setting.Show(config.Defaults()); got != setting.Default {
			t.Errorf("%s: the default %q is shown as %q", setting.Name, setting.Default, got)
		}
	}
	groups := []string{}
	for _, setting := range config.Table() {
		if len(groups) == 0 || groups[len(groups)-1] != setting.Group {
			groups = append(groups, setting.Group)
		}
	}
	if sorted := slices.Clone(groups); len(slices.Compact(slices.Sorted(slices.Values(sorted)))) != len(groups) {
		t.Errorf("a group comes twice: %q", groups)
	}
}

func TestVariableIsMadeFromTheName(t *testing.T) {
	for _, setting := range config.Table() {
		if setting.Name == "max-in-flight" && setting.Variable() != "KEYSVC_MAX_IN_FLIGHT" {
			t.Errorf("got %s", setting.Variable())
		}
	}
}

// TestSettingsPageIsFresh compares docs/settings.md with the table. "make generate" writes it.
func TestSettingsPageIsFresh(t *testing.T) {
	page, err := os.ReadFile("../../docs/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != string(config.Page()) {
		t.Error("docs/settings.md is not what the table gives: run make generate")
	}
	for _, setting := range config.Table() {
		if !strings.Contains(string(page), "\n| `"+setting.Name+"` | ") {
			t.Errorf("%s is not on the page", setting.Name)
		}
	}
}

func TestExampleOfTheSettingsPageCanBeLoaded(t *testing.T) {
	_, after, found := strings.Cut(string(config.Page()), "```yaml\n")
	example, _, ended := strings.Cut(after, "```")
	loaded, err := source(example, nil, nil).Load()
	if !found || !ended || err != nil || loaded.Settings.MaxInFlight != 2048 || len(loaded.Settings.Listeners) != 1 {
		t.Errorf("got %+v, %v", loaded.Settings, err)
	}
}
