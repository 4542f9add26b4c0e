package main_test

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the transcripts in docs/operations.md")

// shown are what a transcript shows in place of what differs from run to run.
var shown = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "2027-03-01 12:00:00"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "2027-03-01T12:00:00Z"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d UTC`), "2027-03-01 12:00 UTC"},
	{regexp.MustCompile(`UTC, (just now|\S+ \S+ ago)`), "UTC, just now"},
	{regexp.MustCompile(`(?m)^(Server +).*$`), "${1}keysvc.example.com:7480"},
	{regexp.MustCompile(`(?m)^(Version +).*$`), "${1}v1.0.0, commit 4f2a9c1, go1.26.0 linux/amd64"},
	{regexp.MustCompile(`(?m)^(Epoch +).*$`), "${1}VXH6gz35rInRE3Ep"},
	{regexp.MustCompile(`(?m)^(Store +ok, file of ).*$`), "${1}64.3 MiB, 16.0 KiB of it free"},
	{regexp.MustCompile(`(?m)^(Disk +).*$`), "${1}41.3 GiB of 50.0 GiB free"},
	{regexp.MustCompile(`(?m)^(Certificate +ends ).*$`), "${1}2027-05-30 12:00 UTC, in 90 days"},
	{regexp.MustCompile(`(?m)^(Authority of \S+ +ends ).*$`), "${1}2027-05-30 12:00 UTC, in 90 days"},
	{regexp.MustCompile(`\b[A-Z2-7]{26}\b`), "DKCF7CYIZNS2YBKLUSFWQWBXJ2"},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), strings.Repeat("0123456789abcdef", 4)},
	{regexp.MustCompile(`certificate [0-9a-f:…]+`), "certificate 4f2a…"},
}

// exampleID is the key of the docs.
const exampleID = "9fQ2mXc7Lr0TzB4w"

// transcript finds the blocks of a page that begin with a command, and their commands.
var (
	transcript   = regexp.MustCompile("(?s)```console\n(\\$ keysvc [^\n]*\n.*?)```\n")
	transcribing = regexp.MustCompile(`^\$ keysvc (.*)$`)
)

// TestTranscriptsOfOperationsAreWhatTheCommandsSay runs the commands in docs/operations.md that are
// shown with their answers, and compares the answers.
func TestTranscriptsOfOperationsAreWhatTheCommandsSay(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	dev := filepath.Join(folder, "dev")
	if r := command(t, "", "certs", "dev", dev); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	file := filepath.Join(dev, "callers.yaml")
	callers, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	named := strings.NewReplacer("name: manager", "name: web-backend", "workspaces: [demo]", "").Replace(string(callers))
	if err := os.WriteFile(file, []byte(named), 0o600); err != nil {
		t.Fatal(err)
	}
	p := launch(t, "serve", "--init", "--config", filepath.Join(dev, "keysvc.yaml"), "--listen", "127.0.0.1:0")
	address, err := p.stdout.await(p.ended, serves)
	if err != nil {
		t.Fatalf("it does not serve: %v\n%s", err, p.stderr)
	}
	// The product's backend makes the changes, and an operator looks at them.
	as := func(caller string, arguments ...string) string {
		t.Helper()
		certificate := filepath.Join(dev, caller)
		environment := append(
			clean(), "KEYSVC_ADDR="+address, "KEYSVC_TLS_CA="+filepath.Join(dev, "ca.crt"),
			"KEYSVC_TLS_CERT="+certificate+".crt", "KEYSVC_TLS_KEY="+certificate+".key",
		)
		r := execute(t, environment, folder, "", binary, arguments...)
		if r.status != 0 {
			t.Fatalf("keysvc %q: %+v", arguments, r)
		}
		return r.stdout
	}
	run := func(arguments ...string) string { return as("manager", arguments...) }
	// What has happened before the transcripts.
	run("member", "put", "ann", "--workspace", "acme", "--role", "manager")
	create := func(name string) string {
		token := run("key", "create", "--workspace", "acme", "--member", "ann", "--name", name, "--scope", "emails:read,signatures:read", "--actor", "ann")
		return strings.Split(token, "_")[2]
	}
	id, refused := create("deploy"), create("report")
	run("key", "revoke", id, "--workspace", "acme", "--actor", "bob", "--yes")
	run("member", "put", "ann", "--workspace", "acme", "--role", "member", "--actor", "bob")

	// A disk that was busy for a second is something wrong, until the anchor is written again.
	for began := time.Now(); ; {
		r := execute(t, append(clean(), "KEYSVC_ADDR="+address, "KEYSVC_TLS_CA="+filepath.Join(dev, "ca.crt"),
			"KEYSVC_TLS_CERT="+filepath.Join(dev, "admin.crt"), "KEYSVC_TLS_KEY="+filepath.Join(dev, "admin.key")), folder, "", binary, "status")
		if r.status == 0 {
			break
		}
		if time.Since(began) > patience {
			t.Fatalf("it is not well: %+v", r)
		}
	}

	const page = "../../docs/operations.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	written := transcript.ReplaceAllStringFunc(string(text), func(block string) string {
		count++
		said := "```console\n"
		for line := range strings.Lines(block) {
			found := transcribing.FindStringSubmatch(strings.TrimSpace(line))
			if found == nil {
				continue
			}
			// The key that is refused is not the one that was revoked.
			key := id
			if strings.HasPrefix(found[1], "key explain") {
				key = refused
			}
			answer := as("admin", strings.Fields(strings.ReplaceAll(found[1], exampleID, key))...)
			said += line + strings.NewReplacer(id, exampleID, refused, exampleID).Replace(answer)
		}
		for _, each := range shown {
			said = each.pattern.ReplaceAllString(said, each.instead)
		}
		return said + "```\n"
	})
	if *update {
		if err := os.WriteFile(page, []byte(written), 0o600); err != nil {
			t.Fatal(err)
		}
	} else if written != string(text) {
		t.Errorf("the transcripts in docs/operations.md are not what the commands say; rewrite them with -update:\n%s", strings.Join(transcript.FindAllString(written, -1), "\n"))
	}
	if count < 3 {
		t.Errorf("%d transcripts in docs/operations.md, want 3 at least", count)
	}
}
