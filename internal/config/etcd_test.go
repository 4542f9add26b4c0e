package config_test

import (
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/config"
)

// TestSettingsOfEtcdFitTogether: each error names the setting that somebody has to give or to take out.
func TestSettingsOfEtcdFitTogether(t *testing.T) {
	for _, test := range []struct{ flags, want string }{
		{"store=etcd etcd-endpoints=127.0.0.1:2379", ""},
		{"store=etcd etcd-endpoints=localhost:2379", ""},
		{"store=etcd etcd-endpoints=unix:///run/e.sock,[::1]:2379", ""},
		{"store=etcd etcd-endpoints=etcd-0:2379,etcd-1:2379 etcd-ca=/ca", ""},
		{"store=etcd etcd-endpoints=etcd-0:2379 etcd-ca=/ca etcd-cert=/c etcd-key=/k etcd-user=u etcd-password-file=/p", ""},
		{"store=etcd", "--etcd-endpoints: is missing; "},
		{"store=etcd etcd-endpoints=etcd-0:2379", "--etcd-ca: is missing; without TLS, etcd-0:2379 "},
		{"store=etcd etcd-endpoints=127.0.0.1:1,10.0.0.1:1", "--etcd-ca: is missing; without TLS, 10.0.0.1:1 "},
		{"store=etcd etcd-endpoints=127.0.0.1:1 anchor=/a", "--anchor: is for a store in a file; "},
		{"store=etcd etcd-endpoints=127.0.0.1:1 backup-dir=/a", "--backup-dir: is for a store in a file; "},
		{"store=etcd etcd-endpoints=127.0.0.1:1 etcd-ca=/ca etcd-cert=/c", "--etcd-key: is needed beside etcd-cert"},
		{"store=etcd etcd-endpoints=127.0.0.1:1 etcd-ca=/ca etcd-key=/c", "--etcd-cert: is needed beside etcd-key"},
		{"store=etcd etcd-endpoints=127.0.0.1:1 etcd-cert=/c etcd-key=/k", "--etcd-ca: is needed beside etcd-cert"},
		{"store=etcd etcd-endpoints=127.0.0.1:1 etcd-user=u", "--etcd-password-file: is needed beside etcd-user"},
		{"store=etcd etcd-endpoints=127.0.0.1:1 etcd-password-file=u", "--etcd-user: is needed beside etcd-password-file"},
		{"store=etcd etcd-endpoints=127.0.0.1:1,127.0.0.1:1", "--etcd-endpoints: has 127.0.0.1:1 twice"},
		{"store=etcd etcd-endpoints=https://etcd:2379", "--etcd-endpoints: "},
		{"store=etcd etcd-endpoints=:2379", `--etcd-endpoints: has ":2379", which needs a host`},
		{"store=etcd etcd-endpoints=etcd:0", `--etcd-endpoints: has "etcd:0", which needs a host`},
		{"store=etcd etcd-endpoints=a:1,", "--etcd-endpoints: "},
		{"store=etcd etcd-endpoints=a:1,b:1,c:1,d:1,e:1,f:1,g:1,h:1,i:1,j:1", "--etcd-endpoints: has 10 addresses, allowed are up to 9"},
		{"store=etcd etcd-endpoints=127.0.0.1:1 etcd-prefix=keysvc", "--etcd-prefix: does not begin and end with /"},
		{"store=etcd etcd-endpoints=127.0.0.1:1 etcd-prefix=/", "--etcd-prefix: does not begin and end with /"},
		{"store=etcd etcd-endpoints=127.0.0.1:1 etcd-prefix=/k\x00/", "--etcd-prefix: has a character"},
		{"etcd-endpoints=127.0.0.1:2379", "--etcd-endpoints: is for store etcd alone; the store is bbolt"},
		{"etcd-ca=/c", "--etcd-ca: is for store etcd alone"},
		{"etcd-cert=/c", "--etcd-cert: is for store etcd alone"},
		{"etcd-key=/c", "--etcd-key: is for store etcd alone"},
		{"etcd-user=c", "--etcd-user: is for store etcd alone"},
		{"etcd-password-file=c", "--etcd-password-file: is for store etcd alone"},
	} {
		flags := map[string][]string{}
		for flag := range strings.FieldsSeq(test.flags) {
			name, value, _ := strings.Cut(flag, "=")
			flags[name] = append(flags[name], value)
		}
		_, err := config.Source{Defaults: config.Defaults(), Flags: flags}.Load()
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != test.want && (test.want == "" || !strings.HasPrefix(got, test.want)) {
			// A setting that is missing has no origin, so no dashes.
			if test.want == "" || !strings.HasPrefix("--"+got, test.want) {
				t.Errorf("%s: got %q, want %q…", test.flags, got, test.want)
			}
		}
	}
}

// TestEndpointsMayBeRepeatedOrHaveCommas: a flag, a variable and the file's list all give the same.
func TestEndpointsMayBeRepeatedOrHaveCommas(t *testing.T) {
	for _, given := range [][]string{{"127.0.0.1:1,127.0.0.1:2"}, {"127.0.0.1:1", "127.0.0.1:2"}, {"127.0.0.1:1, 127.0.0.1:2"}} {
		settings := load(t, map[string][]string{"store": {"etcd"}, "etcd-endpoints": given})
		if len(settings.EtcdEndpoints) != 2 || settings.EtcdEndpoints[1].Target != "127.0.0.1:2" {
			t.Errorf("%q: got %v", given, settings.EtcdEndpoints)
		}
	}
}
