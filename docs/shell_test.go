package docs_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// session is what the test knows about the commands of a page. A block that begins with ```sh is run, and
// one that begins with ```sh not run: REASON is not.
type session struct {
	page string
	// needs is a program of the page that a machine may lack: then the page is skipped.
	needs string
	// setup are commands before those of the page.
	setup string
	// only are the sections that are run, by their headings; all, if empty. Those of except are not run.
	only, except []string
	// fails are commands that end with another status than 0, as the page says.
	fails []string
	// prints are lines of the output, in their order: those that match one of printing.
	printing string
	prints   []string
}

// sessions are the pages whose commands are run.
var sessions = []session{
	{
		page:     "README.md",
		printing: `^(ALLOWED|PERMISSION_DENIED: \w+|UNAUTHENTICATED: \w+|status \d+)`,
		prints: []string{
			"ALLOWED", // the demo key
			"ALLOWED", "status 0",
			"PERMISSION_DENIED: SCOPE_NOT_GRANTED", "status 4",
			"UNAUTHENTICATED: KEY_INVALID", "status 3",
			"ALLOWED", "status 0", // after the rotation
			"UNAUTHENTICATED: KEY_REVOKED", "status 3",
			"UNAUTHENTICATED: KEY_REVOKED", // key explain
			"ALLOWED",                      // with a certificate
		},
		fails: []string{
			"signatures:write < keysvc-data/token.txt (status 4)",
			"signatures:read (status 3)",
			"signatures:read < keysvc-data/token.txt (status 3)",
			"key list (status 7)",
			"member put ann --workspace acme --role manager (status 7)",
		},
		setup: `export KEYSVC_TLS_SERVER_NAME=localhost`,
	},
	{
		page: "docs/install.md",
		setup: `package=keysvc_0.1.0_linux_amd64; mkdir $package
			cp "$ROOT/bin/keysvc" $package; cp -r "$REPOSITORY/deploy/systemd" $package; rm keysvc
			"$BINARY" completion bash >/dev/null; mkdir -p $package/{man/man1,completions/{bash,zsh,fish}}
			touch $package/man/man1/keysvc.1 $package/completions/{bash/keysvc,zsh/_keysvc,fish/keysvc.fish}
			tar czf $package.tar.gz $package`,
	},
	{
		page: "docs/across-machines.md", needs: "openssl",
		setup:    `export KEYSVC_TLS_SERVER_NAME=keysvc.internal.example` + installed,
		printing: `^ALLOWED`, prints: []string{"ALLOWED"},
	},
	{
		page: "docs/callers.md",
		setup: `export KEYSVC_TLS_SERVER_NAME=localhost
			keysvc certs dev dev-certs >/dev/null`,
	},
	{page: "docs/tls.md"},
	{page: "docs/metrics.md", needs: "curl", setup: `keysvc serve --init`, printing: `^keysvc_serving \d`, prints: []string{"keysvc_serving 1"}},
	{
		page: "docs/security.md",
		setup: `keysvc serve --init
			keysvc member put ann --workspace acme --role manager >/dev/null
			keysvc key create --workspace acme --member ann --name leaked --scope emails:read >leaked.txt`,
	},
	{
		page: "docs/clients.md",
		setup: `export KEYSVC_TLS_SERVER_NAME=localhost
			keysvc certs dev dev >/dev/null
			keysvc serve --init --config dev/keysvc.yaml --listen "$IP:7480"
			keysvc context set staging --addr "$IP:7480" --tls-ca dev/ca.crt --tls-cert dev/admin.crt --tls-key dev/admin.key
			cp dev/ca.crt ca.pem; cp dev/admin.crt me.pem; cp dev/admin.key me-key.pem`,
	},
	{
		page: "docs/operations.md",
		setup: `cp "$REPOSITORY/deploy/systemd/keysvc.yaml" "$ROOT/etc/keysvc"
			type jq >/dev/null || jq() { cat; }
			# A backup and the lines of its audit sink.
			mkdir "$ROOT/srv/keysvc-lines"
			keysvc serve --init --data before --audit-sink "$ROOT/srv/keysvc-lines/audit.jsonl"
			keysvc member put ann --workspace acme --role manager >/dev/null
			keysvc backup backup.db >/dev/null`,
		except: []string{"Rotation", "Restoring"}, // with other servers, below
		fails:  []string{"backup --file"},
	},
	{
		page: "docs/operations.md", only: []string{"Rotation"},
		setup: installed,
	},
	{
		page: "docs/operations.md", only: []string{"Restoring"},
		setup: `mkdir "$ROOT/log"
			keysvc serve --init --data lost --audit-sink "$ROOT/log/audit.jsonl"
			new_key >/dev/null
			keysvc backup "$ROOT/backup/keysvc-2027-03-01.db" >/dev/null
			keysvc key revoke "$(new_key)" --yes
			stop`,
	},
	{
		page:  "docs/upgrade.md",
		setup: `mkdir new; ln -s "$ROOT/bin/keysvc" new/keysvc` + installed,
	},
}

// installed is what docs/install.md leads to: settings, a store with a sink, and a server.
const installed = `
	cp "$REPOSITORY/deploy/systemd/keysvc.yaml" "$ROOT/etc/keysvc"
	install -d -m 0700 "$ROOT/var/lib/keysvc" "$ROOT/var/log/keysvc"
	keysvc serve --init --config "$ROOT/etc/keysvc/keysvc.yaml"
	keysvc member put ann --workspace acme --role manager >/dev/null`

var (
	shellBlock = regexp.MustCompile("^ *```sh(?:$| )")
	reasonOf   = regexp.MustCompile("^ *```sh not run: \\S.*$")
)

// TestCommandsOfPagesWork runs the commands of each page, one after the other, as somebody pastes them into a
// terminal: in a folder of their own, with a server that they start themselves.
func TestCommandsOfPagesWork(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("each page has a loopback address of its own, which is a matter of Linux")
	}
	t.Parallel()
	folder := t.TempDir()
	binary := filepath.Join(folder, "keysvc")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", binary, "./cmd/keysvc")
	build.Dir = root
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, output)
	}
	for _, each := range sessions {
		t.Run(strings.Join(append([]string{each.page}, each.only...), "#"), func(t *testing.T) {
			t.Parallel()
			runPage(t, each, binary)
		})
	}
}

// runPage runs the commands of a page and compares what fails, and what they print, with what is expected.
func runPage(t *testing.T, s session, binary string) {
	t.Helper()
	if _, err := exec.LookPath(s.needs); s.needs != "" && err != nil {
		t.Skip(err)
	}
	text, err := os.ReadFile(filepath.Join(root, s.page))
	if err != nil {
		t.Fatal(err)
	}
	commands := script(string(text), s.only, s.except)
	if strings.TrimSpace(commands) == ":" {
		t.Fatalf("%s has no commands in these sections: %q", s.page, s.only)
	}
	for _, title := range s.except {
		if !strings.Contains(string(text), "# "+title+"\n") {
			t.Errorf("%s has no section %s", s.page, title)
		}
	}
	// A path of a unix socket has at most 103 bytes, and that of the test's folder may be longer.
	sandbox, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A server is left only if the shell was killed.
		if number, err := os.ReadFile(filepath.Join(sandbox, "pid")); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(number))); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		_ = os.RemoveAll(sandbox)
	})
	// Ports are those of the page, so the address is one that nobody else has.
	address := fmt.Sprintf("127.%d.%d.%d", 64+rand.IntN(128), rand.IntN(256), 1+rand.IntN(254))
	work := filepath.Join(sandbox, "work")
	for name, content := range map[string]string{
		"bin/keysvc": keysvcInShell, "preamble": preamble + s.setup + "\n",
		"page": moved(commands, sandbox, address),
	} {
		path := filepath.Join(sandbox, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	shell := exec.CommandContext(ctx, "bash", "-c", `. "$ROOT/preamble"; . "$ROOT/page"; stop`)
	shell.Dir = work
	shell.Env = append(
		slices.DeleteFunc(os.Environ(), func(variable string) bool {
			return strings.HasPrefix(variable, "KEYSVC_") || strings.HasPrefix(variable, "XDG_")
		}),
		"ROOT="+sandbox, "IP="+address, "BINARY="+binary, "HOME="+filepath.Join(sandbox, "home"), "REPOSITORY="+absolute(t, root),
		"PATH="+filepath.Join(sandbox, "bin")+":"+os.Getenv("PATH"),
	)
	var complaints strings.Builder
	shell.Stderr = &complaints
	shell.WaitDelay = 5 * time.Second
	output, err := shell.Output()
	if err != nil {
		t.Errorf("the shell: %v", err)
	}
	failed, err := os.ReadFile(filepath.Join(sandbox, "failed"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	expected := slices.Clone(s.fails)
	for line := range strings.Lines(string(failed)) {
		number, command, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if at := slices.IndexFunc(expected, func(want string) bool { return strings.Contains(command, want) }); at >= 0 {
			expected = slices.Delete(expected, at, at+1)
			continue
		}
		t.Errorf("%s:%s failed: %s", s.page, number, command)
	}
	for _, command := range expected {
		t.Errorf("%s: did not fail: %s", s.page, command)
	}
	if s.printing != "" {
		got := regexp.MustCompile(`(?m)`+s.printing).FindAllString(string(output), -1)
		if !slices.Equal(got, s.prints) {
			t.Errorf("%s printed %q, want %q", s.page, got, s.prints)
		}
	}
	if t.Failed() {
		log, _ := os.ReadFile(filepath.Join(sandbox, "serve.log"))
		t.Logf("%s\n%s\nthe server's log:\n%s", output, complaints.String(), log)
	}
}

// script returns the commands of a page, each on the line on which it is in the page.
func script(text string, only, except []string) string {
	var lines, titles []string // titles has the headings that a line is under
	running, fenced := false, false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		command := ""
		switch title := heading.FindStringSubmatch(line); {
		case fence.MatchString(line):
			fenced = !fenced
			under := func(title string) bool { return slices.Contains(titles, title) }
			wanted := (len(only) == 0 || slices.ContainsFunc(only, under)) && !slices.ContainsFunc(except, under)
			running = fenced && wanted && strings.TrimSpace(line) == "```sh"
		case running:
			command = line
		case title != nil && !fenced:
			level := strings.Index(line, " ")
			titles = append(titles, make([]string, level)...)[:level]
			titles[level-1] = title[1]
		}
		lines = append(lines, command)
	}
	return strings.Join(lines, "\n") + "\n:\n" // the page as a whole does not fail
}

var (
	systemPath = regexp.MustCompile(`(unix://|^|[\s=:"'(<>])/(var|etc|usr|run|backup|srv|log)/`)
	anyAddress = regexp.MustCompile(`127\.0\.0\.1|0\.0\.0\.0|keysvc\.(?:internal\.example|example\.com)(:\d)`)
	keyID      = regexp.MustCompile(`\bKEY_ID\b`)
)

// moved returns commands that have the paths of a machine within a folder, its addresses replaced by one, and
// the id of a key in the place of KEY_ID.
func moved(commands, folder, address string) string {
	var lines []string
	for line := range strings.Lines(commands) {
		line = systemPath.ReplaceAllString(line, "${1}"+folder+"/${2}/")
		line = anyAddress.ReplaceAllString(line, address+"$1")
		lines = append(lines, keyID.ReplaceAllString(line, `"$$(new_key)"`))
	}
	return strings.Join(lines, "")
}

// TestBlocksAreRunOrSayWhyNot looks at the README and at the pages of docs: a block of commands is on a page that is
// run, or gives its reason, and the reason is all that its first line has.
func TestBlocksAreRunOrSayWhyNot(t *testing.T) {
	r := checkout(t)
	blocks := 0
	for name := range r.files {
		if name != "README.md" && (!strings.HasPrefix(name, "docs/") || !strings.HasSuffix(name, ".md")) {
			continue
		}
		pasted := slices.ContainsFunc(sessions, func(s session) bool { return s.page == name })
		for i, line := range strings.Split(r.read(name), "\n") {
			switch {
			case !shellBlock.MatchString(line):
				continue
			case reasonOf.MatchString(line):
			case strings.TrimSpace(line) != "```sh":
				t.Errorf("%s:%d: %q: write ```sh, or ```sh not run: and why", name, i+1, line)
			case !pasted:
				t.Errorf("%s:%d: the page is none of sessions: add it there, or write ```sh not run: and why", name, i+1)
			}
			blocks++
		}
	}
	if blocks < 40 {
		t.Errorf("%d blocks were found; the test looks for another form", blocks)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	whole, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return whole
}

// preamble is what every page has: commands that need root, or a machine, do what they can in a folder. A
// command that fails is recorded, and the next one is run.
const preamble = `
set -o pipefail
mkdir -p "$HOME" "$ROOT"/{var/lib,var/log,etc/keysvc,etc/systemd/system,usr/bin,usr/local/share,run/keysvc,backup,srv}
chmod -R 700 "$ROOT"
ln -s "$ROOT/bin/keysvc" keysvc
touch "$ROOT/failed"

# The binary is there already.
go() { if [[ $1 != build ]]; then command go "$@"; fi; }
make() { if [[ $1 == run ]]; then ./keysvc serve --dev; else echo "make $*: not here" >&2; return 1; fi; }

sudo() {
	if [[ $1 == -u ]]; then shift 2; fi
	if [[ $1 == env ]]; then shift; env "$@"; else "$@"; fi
}

# The unit's program, without systemd.
systemctl() {
	case "$*" in
	*" keysvc.socket" | daemon-reload) ;;
	"enable --now keysvc.service" | "restart keysvc.service" | "start keysvc.service")
		keysvc serve --config "$ROOT/etc/keysvc/keysvc.yaml" ;;
	"kill -s HUP keysvc") kill -HUP "$(<"$ROOT/pid")" ;;
	*) echo "systemctl $*: not here" >&2; return 1 ;;
	esac
}
systemd-sysusers() { :; }

# Nobody but root gives files away.
install() {
	local arguments=()
	while (($#)); do
		case $1 in
		-o | -g) shift ;;
		*) arguments+=("$1") ;;
		esac
		shift
	done
	command install "${arguments[@]}"
}

# new_key makes a key and prints its id.
new_key() {
	keysvc member put sue --workspace fresh --role manager >/dev/null
	keysvc key create --workspace fresh --member sue --name deploy --scope signatures:read 2>/dev/null | cut -d_ -f3
}

stop() { keysvc stop; }

trap 'printf "%s\t%s (status %s)\n" "$LINENO" "${BASH_COMMAND//$'"'\\n'"'/ }" "$?" >>"$ROOT/failed"' ERR
`

// keysvcInShell is keysvc as the commands of a page call it. A server goes on in the background, as in another
// terminal, until the next one is started. Whoever is asked says yes.
const keysvcInShell = `#!/bin/bash
if [[ $1 == stop || $1 == serve ]] && [[ -f $ROOT/pid ]]; then
	pid=$(<"$ROOT/pid")
	rm "$ROOT/pid"
	kill -TERM "$pid" 2>/dev/null
	tail --pid="$pid" -s 0.02 -f /dev/null
fi
case $1 in
stop) exit 0 ;;
serve)
	arguments=() listens='' dev=''
	while (($#)); do
		case $1 in
		--config)
			sed -E -e "s#(unix://|^|[[:space:]=:\"'])/(var|etc|usr|run|backup|srv)/#\1$ROOT/\2/#g" \
				-e "s#127\.0\.0\.1|0\.0\.0\.0#$IP#g" "$2" >"$ROOT/config.yaml" || exit 1
			arguments+=(--config "$ROOT/config.yaml") listens=1
			shift
			;;
		--listen) arguments+=("$1" "$2") listens=1; shift ;;
		--dev) arguments+=("$1") dev=1 ;;
		*) arguments+=("$1") ;;
		esac
		shift
	done
	[[ $listens ]] || arguments+=(--listen "unix://$ROOT/s")
	ready='keysvc serves'
	[[ $dev ]] && ready='Stop with Ctrl-C'
	rm -f "$ROOT/out"
	mkfifo "$ROOT/out"
	"$BINARY" "${arguments[@]}" </dev/null >"$ROOT/out" 2>>"$ROOT/serve.log" &
	echo $! >"$ROOT/pid"
	while IFS= read -r line; do
		if [[ $line =~ keysvc\ serves\ on\ ([^ ,]+) ]]; then echo "${BASH_REMATCH[1]}" >"$ROOT/address"; fi
		if [[ $line == "$ready"* ]]; then exit 0; fi
	done <"$ROOT/out"
	rm "$ROOT/pid"
	echo "the server did not start" >&2
	exit 1
	;;
esac
if [[ ! $KEYSVC_ADDR && -f $ROOT/address && ! -e $HOME/.config/keysvc/contexts.yaml ]]; then KEYSVC_ADDR=$(<"$ROOT/address"); export KEYSVC_ADDR; fi
case "$1 $2" in
"context set") # a context takes nothing from the environment
	[[ $KEYSVC_TLS_SERVER_NAME ]] && set -- "$@" --tls-server-name "$KEYSVC_TLS_SERVER_NAME"
	;;
"certs dev")
	"$BINARY" "$@" || exit
	sed -i "s#127\.0\.0\.1#$IP#g" "$3"/*.env
	exit
	;;
"watch "* | "status --watch") # until Ctrl-C
	timeout -s INT 0.5 "$BINARY" "$@"
	status=$?
	((status == 124 || status == 130)) && status=0
	exit $status
	;;
"status "*) # a disk that is busy for a second is something wrong for a moment
	for ((i = 0; i < 100; i++)); do
		"$BINARY" "$@" && exit 0
		sleep 0.1
	done
	exit 1
	;;
"key revoke" | "key rotate" | "key release" | "member remove" | "workspace remove" | "policy apply" | "anchor accept" | "member sync")
	[[ " $* " == *" --yes "* || " $* " == *" --dry-run "* ]] || set -- "$@" --yes
	;;
esac
exec "$BINARY" "$@"
`
