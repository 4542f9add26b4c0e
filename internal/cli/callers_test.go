package cli_test

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/certificates/certificatestest"
	"github.com/scribe-mail/keysvc/internal/cli"
	"github.com/scribe-mail/keysvc/internal/token"
)

// callersFolder makes a folder with a callers file, an authority, and certificates of callers.
func callersFolder(t *testing.T) (folder string) {
	t.Helper()
	folder = t.TempDir()
	authority := certificatestest.NewAuthority(t, "authority")
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.pem", string(authority.PEM()))
	for name, option := range map[string]certificatestest.Option{
		"gateway": certificatestest.URI(t, "spiffe://prod.example/gateway"), "stranger": certificatestest.URI(t, "spiffe://prod.example/stranger"),
		"mailer": certificatestest.DNS("mailer.example"),
	} {
		certificatestest.Write(t, folder, name, authority.Issue(t, option))
	}
	foreign := certificatestest.NewAuthority(t, "another authority")
	certificatestest.Write(t, folder, "foreign", foreign.Issue(t, certificatestest.URI(t, "spiffe://prod.example/gateway")))
	write("callers.yaml", `version: 1
trust_domains: [{name: prod.example, bundle: ca.pem}]
client_ca: ca.pem
issuers: [{name: cluster, url: "https://i.example", audience: keysvc, algorithms: [RS256]}]
callers:
- {name: gateway, spiffe: [spiffe://prod.example/gateway], rights: [validate], workspaces: [acme]}
- {name: mailer, dns: [mailer.example], rights: [validate, read]}
- {name: worker, oidc: [{issuer: cluster, subject: "system:serviceaccount:mail:worker"}], rights: [directory]}
- {name: cron, uid: [4711], rights: [read]}
`)
	return folder
}

func TestCallersCheckSaysWhoACredentialIs(t *testing.T) {
	folder := callersFolder(t)
	at := func(name string) string { return filepath.Join(folder, name) }
	claims := fmt.Sprintf(`{"iss":"https://i.example","sub":"system:serviceaccount:mail:worker","exp":%d}`, time.Now().Add(time.Hour).Unix())
	jwt := "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	if err := os.WriteFile(at("jwt"), []byte(jwt+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(at("*"))
	if err != nil {
		t.Fatal(err)
	}
	certificate := func(name string) string {
		for _, file := range files {
			if base := filepath.Base(file); strings.HasPrefix(base, name) && !strings.Contains(base, "key") {
				return file
			}
		}
		t.Fatalf("no certificate of %s among %q", name, files)
		return ""
	}
	c := command{clock: time.Now, env: map[string]string{"KEYSVC_CALLERS": at("callers.yaml")}}
	for _, test := range []struct {
		args   []string
		status int
		want   string
	}{
		{nil, 0, `(?s)CALLER .*gateway +spiffe://prod.example/gateway +validate \(acme\) +6.*cron +uid 4711 +read +9`},
		{[]string{"--cert", certificate("gateway")}, 0, `(?s)Name +gateway.*certificate [0-9a-f]+ of spiffe://prod.example/gateway.*callers.yaml:6.*validate +acme`},
		{[]string{"--cert", certificate("mailer")}, 0, `(?s)Name +mailer.*callers.yaml:7.*read +all`},
		{[]string{"--cert", certificate("stranger")}, 1, `error: nobody: the certificate [0-9a-f]+: spiffe://prod.example/stranger: no caller has it`},
		{[]string{"--cert", certificate("foreign")}, 1, `error: nobody: the certificate [0-9a-f]+: .*unknown authority`},
		{[]string{"--cert", at("callers.yaml")}, 1, `has no certificate in PEM`},
		{[]string{"--token-file", at("jwt")}, 0, `(?s)Name +worker.*callers.yaml:8.*note: the signature of the token was not verified`},
		{[]string{"--uid", "4711"}, 0, `(?s)Name +cron.*uid 4711.*callers.yaml:9`},
		{[]string{"--uid", "4712"}, 1, `error: nobody: uid 4712: no caller has it`},
		{[]string{"--uid", "4711", "-o", "json"}, 0, `"name": *"cron"`},
		{[]string{"--uid", "4711", "--cert", "x"}, cli.ExitUsage, `none of the others can be`},
		{[]string{"--callers", at("absent")}, 1, `absent: no such file`},
	} {
		r := c.run(t, append([]string{"callers", "check"}, test.args...)...)
		if r.status != test.status || !regexp.MustCompile(test.want).MatchString(r.stdout+r.stderr) {
			t.Errorf("%q: %+v, want %s", test.args, r, test.want)
		}
	}
	if r := (command{}).run(t, "callers", "check"); r.status != cli.ExitUsage || !strings.Contains(r.stderr, "--callers or KEYSVC_CALLERS") {
		t.Errorf("without a file: %+v", r)
	}
	if err := os.WriteFile(at("bad.yaml"), []byte("version: 1\ncallers:\n- {name: a, uid: [x], rights: [reed]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := c.run(t, "callers", "check", "--callers", at("bad.yaml"))
	if r.status != 1 || !strings.Contains(r.stderr, "bad.yaml:3:19: ") || !strings.Contains(r.stderr, "bad.yaml:3:32: ") || !strings.Contains(r.stderr, "error: the callers file is not valid") {
		t.Errorf("mistakes: %+v", r)
	}
}

// TestCallersTokenMakesATokenThatTheFileKnows: the printed lines are pasted as they are.
func TestCallersTokenMakesATokenThatTheFileKnows(t *testing.T) {
	folder := t.TempDir()
	file, callersFile := filepath.Join(folder, "laptop.token"), filepath.Join(folder, "callers.yaml")
	r := command{clock: time.Now}.run(t, "callers", "token", "laptop", "--token-out", file, "--expires-in", "90d")
	text, err := os.ReadFile(file)
	if err != nil || r.status != 0 || r.stderr != "" {
		t.Fatalf("%v: %+v", err, r)
	}
	made, err := token.ParseCaller(strings.TrimSuffix(string(text), "\n"))
	if err != nil || strings.Contains(r.stdout, made.Reveal()[29:]) {
		t.Fatalf("%v: %+v", err, r)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
	if err := os.WriteFile(callersFile, []byte("version: 1\ncallers:\n"+r.stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	r = (command{}).run(t, "callers", "check", "--callers", callersFile, "--token-file", file)
	if r.status != 0 || !regexp.MustCompile(`(?s)Name +laptop.*token `+made.ID()+`.*callers.yaml:6.*validate +all`).MatchString(r.stdout) {
		t.Errorf("check: %+v", r)
	}
	// A file that is there is not replaced.
	if r := (command{}).run(t, "callers", "token", "laptop", "--token-out", file); r.status != 1 || !strings.Contains(r.stderr, "file exists") {
		t.Errorf("again: %+v", r)
	}
	// Without a file, standard output has the token alone.
	r = (command{}).run(t, "callers", "token", "laptop")
	if _, err := token.ParseCaller(strings.TrimSuffix(r.stdout, "\n")); err != nil || !strings.Contains(r.stderr, "hash: \"sha256:") {
		t.Errorf("%v: %+v", err, r)
	}
	for _, name := range []string{"owner", "a b", "*"} {
		if r := (command{}).run(t, "callers", "token", name); r.status != cli.ExitUsage {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if r := (command{}).run(t, "callers", "token", "laptop", "--prefix", "X"); r.status != cli.ExitUsage {
		t.Errorf("a wrong prefix: %+v", r)
	}
}
