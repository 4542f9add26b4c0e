package callers_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/strictyaml"
)

// users are the users of a system for tests.
func users(name string) (uint32, error) {
	if name == "mail" {
		return 1008, nil
	}
	return 0, errors.New("user: unknown user " + name)
}

const everyField = `version: 1
trust_domains:
  - {name: prod.example, bundle: bundle.pem}
  - {name: other.example, workload_api: true}
client_ca: /etc/keysvc/ca.pem
issuers:
  - name: cluster
    url: https://kubernetes.default.svc
    audience: keysvc
    algorithms: [RS256, ES256]
    ca: ca.crt
    jwks: keys.json
callers:
  - name: gateway
    spiffe: [spiffe://prod.example/gateway, spiffe://other.example/a/b]
    rights: [validate]
  - name: backend
    dns: [Backend.Example, backend-2.example]
    grants:
      - {rights: [issue, revoke], workspaces: [acme, beta]}
      - {rights: [report]}
      - {rights: [revoke], workspaces: [gamma]}
  - name: cron
    uid: [1007, mail]
    rights: [read]
    workspaces: [acme]
  - name: worker
    oidc: [{issuer: cluster, subject: "system:serviceaccount:mail:worker"}]
    rights: [directory]
  - name: laptop
    tokens:
      - {id: 9fQ2mXc7Lr0TzB4w, hash: "sha256:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", not_after: "2027-03-31T14:00:00+02:00"}
      - {id: 0fQ2mXc7Lr0TzB4w, hash: "sha256:ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"}
    rights: [administer, audit]
  - name: sidecar
    loopback: true
    rights: [validate]
deny:
  certificates:
    - {serial: "0A:1b", issuer: "CN=old CA"}
    - {serial: "00ff"}
  spiffe: [spiffe://prod.example/gone]
  dns: [Gone.Example]
  tokens: [1fQ2mXc7Lr0TzB4w]
  oidc: [{issuer: cluster, subject: gone}]
`

func TestParseReadsEveryField(t *testing.T) {
	file, err := callers.Parse("/etc/keysvc/callers.yaml", []byte(everyField), users)
	if err != nil {
		t.Fatal(err)
	}
	if got := file.TrustDomains; len(got) != 2 || got[0].Bundle != "/etc/keysvc/bundle.pem" || got[1].Bundle != "" || got[1].Name != "other.example" {
		t.Errorf("trust domains: %+v", got)
	}
	issuer := file.Issuers[0]
	if issuer.CA != "/etc/keysvc/ca.crt" || issuer.JWKS != "/etc/keysvc/keys.json" || !slices.Equal(issuer.Algorithms, []string{"RS256", "ES256"}) || issuer.Audience != "keysvc" {
		t.Errorf("issuer: %+v", issuer)
	}
	if file.ClientCA != "/etc/keysvc/ca.pem" || len(file.Callers) != 6 || len(file.Deny) != 6 {
		t.Errorf("got %+v", file)
	}
	backend := file.Callers[1]
	if backend.Name != "backend" || backend.Credentials[0].ID != "backend.example" || backend.Position.Line != 17 {
		t.Errorf("backend: %+v", backend)
	}
	for right, want := range map[access.Right]access.Workspaces{
		access.Issue: access.Only("acme", "beta"), access.Revoke: access.Only("acme", "beta", "gamma"), access.Report: access.All(), access.Read: {},
	} {
		if got := backend.Grants.For(right); !got.Equal(want) {
			t.Errorf("backend may %s for %s, want %s", right, got, want)
		}
	}
	cron := file.Callers[2]
	if cron.Credentials[0].UserID != 1007 || cron.Credentials[1].UserID != 1008 || !cron.Grants.For(access.Read).Equal(access.Only("acme")) {
		t.Errorf("cron: %+v", cron)
	}
	token := file.Callers[4].Credentials[0]
	if !token.NotAfter.Equal(time.Date(2027, 3, 31, 12, 0, 0, 0, time.UTC)) || token.Hash[31] != 31 || !file.Callers[4].Credentials[1].NotAfter.IsZero() {
		t.Errorf("token: %+v", token)
	}
	if serial := file.Deny[0].Serial + " " + file.Deny[1].Serial; serial != "a1b ff" {
		t.Errorf("serials: %s", serial)
	}
}

// overflow is the user that the kernel shows for users it cannot name.
func overflow(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	if err != nil {
		return "65534"
	}
	return strings.TrimSpace(string(text))
}

// TestParseRefuses: what is wrong in a file, where and why. % stands for everyField's beginning.
func TestParseRefuses(t *testing.T) {
	const caller = "version: 1\ntrust_domains: [{name: a.example, bundle: b}]\nclient_ca: c\nissuers: [{name: i, url: 'https://i.example', audience: a, algorithms: [RS256]}]\ncallers:\n"
	const hash = `"sha256:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"`
	for text, want := range map[string]string{
		"":                         "f:1: document: is empty",
		"callers: []":              "f:1:1: version: is missing",
		"version: 2\ncallers: []":  "f:1:10: version: is 2, allowed is 1",
		"version: 1":               "f:1:1: callers: is missing",
		"version: 1\ncaller: []":   `f:2:1: document: has an unknown field "caller"`,
		"version: 1\ncallers: {}":  "f:2:10: callers: is a mapping",
		"version: 1\ncallers: &x":  "callers: is empty",
		"version: 1\ncallers: [x]": `f:2:11: callers[0]: is the text "x"`,

		"version: 1\ncallers: []\ntrust_domains: [{name: A.example, bundle: b}]":                                  `trust_domains[0].name: is "A.example"`,
		"version: 1\ncallers: []\ntrust_domains: [{name: a.example}]":                                             "needs either bundle",
		"version: 1\ncallers: []\ntrust_domains: [{name: a.example, bundle: b, workload_api: true}]":              "needs either bundle",
		"version: 1\ncallers: []\ntrust_domains: [{name: a.example, bundle: ''}]":                                 "allowed is the path of a file",
		"version: 1\ncallers: []\ntrust_domains:\n- {name: a.example, bundle: b}\n- {name: a.example, bundle: b}": "f:5:10: trust_domains[1].name: is the trust domain \"a.example\" for the second time; line 4",
		"version: 1\ncallers: []\ntrust_domains: [{name: '*.example', bundle: b}]":                                "trust domain",
		"version: 1\ncallers: []\ntrust_domains: [{bundle: b}]":                                                   "has no name",

		"version: 1\ncallers: []\nissuers: [{name: i, url: 'http://i.example', audience: a, algorithms: [RS256]}]":                                                                                "https URL",
		"version: 1\ncallers: []\nissuers: [{name: i, url: 'https://i.example?x', audience: a, algorithms: [RS256]}]":                                                                             "https URL",
		"version: 1\ncallers: []\nissuers: [{name: i, url: 'https://i.example', audience: a}]":                                                                                                    "names no algorithms",
		"version: 1\ncallers: []\nissuers: [{name: i, url: 'https://i.example', audience: a, algorithms: [HS256]}]":                                                                               `is "HS256", allowed are RS256`,
		"version: 1\ncallers: []\nissuers: [{name: i, url: 'https://i.example', audience: a, algorithms: [none]}]":                                                                                `is "none"`,
		"version: 1\ncallers: []\nissuers: [{name: i, url: 'https://i.example', algorithms: [RS256]}]":                                                                                            "has no audience",
		"version: 1\ncallers: []\nissuers: [{name: i, url: 'https://i.example', audience: '*', algorithms: [RS256]}]":                                                                             "has a wildcard",
		"version: 1\ncallers: []\nissuers:\n- {name: i, url: 'https://i.example', audience: a, algorithms: [RS256]}\n- {name: j, url: 'https://i.example', audience: a, algorithms: [RS256]}":     `is the URL "https://i.example" for the second time; line 4`,
		"version: 1\ncallers: []\nissuers:\n- {name: i, url: 'https://i.example', audience: a, algorithms: [RS256]}\n- {name: i, url: 'https://j.example', audience: a, algorithms: [RS256]}\n\n": `is the issuer "i" for the second time; line 4`,

		caller + "- {name: a, rights: [read]}":                                                  "f:6:3: callers[0]: has 0 ways",
		caller + "- {name: a, uid: [1], loopback: true, rights: [read]}":                        "has 2 ways",
		caller + "- {name: a, uid: [], rights: [read]}":                                         "is an empty list",
		caller + "- {uid: [1], rights: [read]}":                                                 "has no name",
		caller + "- {name: owner, uid: [1], rights: [read]}":                                    "which is built in",
		caller + "- {name: system, uid: [1], rights: [read]}":                                   "which is built in",
		caller + "- {name: 'a*', uid: [1], rights: [read]}":                                     "has a wildcard",
		caller + "- {name: 'a b', uid: [1], rights: [read]}":                                    "allowed are 1 to 128",
		caller + "- {name: a, uid: [1], rights: [read]}\n- {name: a, uid: [2], rights: [read]}": "f:7:10: callers[1].name: is the caller \"a\" for the second time; line 6 has it",
		caller + "- {name: a, uid: [1], rights: [read]}\n- {name: b, uid: [1], rights: [read]}": "f:7:19: callers[1].uid[0]: is a credential for the second time; line 6 has it",

		caller + "- {name: a, uid: [1]}":                                             "has no rights",
		caller + "- {name: a, uid: [1], rights: []}":                                 "is an empty list, allowed are validate",
		caller + "- {name: a, uid: [1], rights: ['*']}":                              `is "*", allowed are validate`,
		caller + "- {name: a, uid: [1], rights: [known]}":                            `is "known"`,
		caller + "- {name: a, uid: [1], rights: [Validate]}":                         `is "Validate"`,
		caller + "- {name: a, uid: [1], rights: read}":                               `is the text "read", allowed is a list`,
		caller + "- {name: a, uid: [1], rights: [read], workspaces: []}":             "leave it out for all",
		caller + "- {name: a, uid: [1], rights: [read], workspaces: ['*']}":          "has a wildcard; each is named exactly; leave workspaces out",
		caller + "- {name: a, uid: [1], rights: [read], workspaces: ['']}":           "allowed are 1 to 128",
		caller + "- {name: a, uid: [1], rights: [read], grants: [{rights: [read]}]}": "has grants beside rights",
		caller + "- {name: a, uid: [1], grants: []}":                                 "is an empty list",
		caller + "- {name: a, uid: [1], grants: [{workspaces: [x]}]}":                "has no rights",
		caller + "- {name: a, uid: [1], workspaces: [x]}":                            "has no rights",

		caller + "- {name: a, uid: [-1], rights: [read]}":                                                "is -1, allowed are 0 to 4294967294",
		caller + "- {name: a, uid: [4294967295], rights: [read]}":                                        "is 4294967295, allowed are",
		caller + "- {name: a, uid: [" + overflow(t) + "], rights: [read]}":                               "stands for every user of other user namespaces",
		caller + "- {name: a, uid: [nobody-here], rights: [read]}":                                       "the system knows no such user",
		caller + "- {name: a, uid: [0x10], rights: [read]}":                                              "plain decimal digits",
		caller + "- {name: a, uid: 1, rights: [read]}":                                                   "allowed is a list",
		caller + "- {name: a, loopback: false, rights: [read]}":                                          "is false, allowed is true",
		caller + "- {name: a, dns: ['*.example'], rights: [read]}":                                       "has a wildcard",
		caller + "- {name: a, dns: [a..b], rights: [read]}":                                              "DNS name",
		caller + "- {name: a, dns: [a.], rights: [read]}":                                                "DNS name",
		caller + "- {name: a, dns: [bücher.example], rights: [read]}":                                    "DNS name",
		caller + "- {name: a, dns: [A.b, a.B], rights: [read]}":                                          "for the second time",
		"version: 1\ncallers: [{name: a, dns: [a.b], rights: [read]}]":                                   "the file has no client_ca",
		caller + "- {name: a, spiffe: ['spiffe://a.example/*'], rights: [read]}":                         "has a wildcard",
		caller + "- {name: a, spiffe: ['spiffe://a.example'], rights: [read]}":                           "a SPIFFE id with a path",
		caller + "- {name: a, spiffe: ['spiffe://a.example/'], rights: [read]}":                          "a SPIFFE id with a path",
		caller + "- {name: a, spiffe: ['spiffe://A.example/x'], rights: [read]}":                         "a SPIFFE id with a path",
		caller + "- {name: a, spiffe: ['spiffe://a.example/../x'], rights: [read]}":                      "a SPIFFE id with a path",
		caller + "- {name: a, spiffe: ['spiffe://b.example/x'], rights: [read]}":                         "in the trust domain b.example, which is not among",
		caller + "- {name: a, oidc: [{issuer: j, subject: s}], rights: [read]}":                          "the name of one of issuers",
		caller + "- {name: a, oidc: [{issuer: i, subject: '*'}], rights: [read]}":                        "has a wildcard",
		caller + "- {name: a, oidc: [{issuer: i}], rights: [read]}":                                      "has no subject",
		caller + "- {name: a, oidc: [{issuer: i, subject: s}, {issuer: i, subject: s}], rights: [read]}": "for the second time",

		caller + "- {name: a, tokens: [{id: 9fQ2mXc7Lr0TzB4w}], rights: [read]}":                                            "has no hash",
		caller + "- {name: a, tokens: [{hash: " + hash + "}], rights: [read]}":                                              "has no id",
		caller + "- {name: a, tokens: [{id: 9fQ2, hash: " + hash + "}], rights: [read]}":                                    "16 characters",
		caller + "- {name: a, tokens: [{id: 9fQ2mXc7Lr0TzB4w, hash: 'sha256:00'}], rights: [read]}":                         "64 lower-case",
		caller + "- {name: a, tokens: [{id: 9fQ2mXc7Lr0TzB4w, hash: " + strings.ToUpper(hash) + "}], rights: [read]}":       "64 lower-case",
		caller + "- {name: a, tokens: [{id: 9fQ2mXc7Lr0TzB4w, hash: " + hash + ", not_after: '2027'}], rights: [read]}":     "allowed is a time",
		caller + "- {name: a, tokens: [{id: 9fQ2mXc7Lr0TzB4w, hash: " + hash + ", not_after: 2027-01-01}], rights: [read]}": "a time in quotes",
		caller + "- {name: a, tokens: [{}, {}, {}], rights: [read]}":                                                        "has 3 tokens, allowed are up to 2",

		"version: 1\ncallers: []\ndeny: {certificates: [{issuer: 'CN=x'}]}": "has no serial",
		"version: 1\ncallers: []\ndeny: {certificates: [{serial: xyz}]}":    "hexadecimal digits",
		"version: 1\ncallers: []\ndeny: {certificates: [{serial: 10}]}":     "is the number \"10\"",
		"version: 1\ncallers: []\ndeny: {spiffe: ['spiffe://a.example/*']}": "has a wildcard",
		"version: 1\ncallers: []\ndeny: {tokens: [x]}":                      "16 characters",
		"version: 1\ncallers: []\ndeny: {oidc: [{issuer: j, subject: s}]}":  "the name of one of issuers",
		"version: 1\ncallers: []\ndeny: {dns: ['*.x']}":                     "has a wildcard",
		"version: 1\ncallers: []\ndeny: {uid: [1]}":                         "has an unknown field",
	} {
		_, err := callers.Parse("f", []byte(text), users)
		var list strictyaml.Errors
		if !errors.As(err, &list) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
}

// TestParseDoesNotShowTokens: people paste a token where its hash belongs.
func TestParseDoesNotShowTokens(t *testing.T) {
	const secret = "scribe_ksc1_9fQ2mXc7Lr0TzB4w_0000000000000000000000000000000000000000000000000"
	for _, field := range []string{"name: X", "rights: [X]", "dns: [X]", "tokens: [{id: X, hash: X}]", "uid: [X]", "workspaces: [X]"} {
		_, err := callers.Parse("f", []byte("version: 1\nclient_ca: c\ncallers: [{"+strings.ReplaceAll(field, "X", secret)+"}]"), users)
		if err == nil || strings.Contains(err.Error(), secret[len(secret)-49:]) {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

// FuzzParse: whatever the file has, it is read by the rules, or every mistake has a position and
// one line.
func FuzzParse(f *testing.F) {
	f.Add([]byte("version: 1\ncallers: []\n")) // longer ones take the fuzzer minutes to shorten
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := callers.Parse("f", text, users)
		if err != nil {
			var list strictyaml.Errors
			if !errors.As(err, &list) || len(list) == 0 {
				t.Fatalf("got %#v", err)
			}
			for _, mistake := range list {
				if mistake.Line < 1 || strings.ContainsAny(mistake.Error(), "\n\r\x00") {
					t.Fatalf("not a good message: %q", mistake.Error())
				}
			}
			return
		}
		names := map[string]bool{}
		for _, caller := range file.Callers {
			if caller.Name == "" || names[caller.Name] || len(caller.Credentials) == 0 {
				t.Fatalf("the caller %+v", caller)
			}
			names[caller.Name] = true
			for _, credential := range caller.Credentials {
				if credential.Source != caller.Credentials[0].Source || strings.Contains(credential.ID, "*") || credential.Position.Line < 1 {
					t.Fatalf("the credential %+v", credential)
				}
			}
		}
		callers.NewTable(file)
	})
}
