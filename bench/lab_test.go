package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/bench/population"
)

// The transports.
const overTCP, overTLS, overUnix = "tcp", "tls", "unix"

// The load generators: one that measures, one for what is done beside, which runs when nobody else does, and
// one that revokes keys.
const callsGenerator, besideGenerator, revokesGenerator = "calls", "beside", "revokes"

// lab has the processes of TestBench, and starts them when they are needed first.
type lab struct {
	t *testing.T
	// binary is the keysvc to measure.
	binary string
	// cache is a folder for stores that are kept between runs; work is for the others, on the same
	// disk, and sockets for unix sockets.
	cache, work, sockets string
	certificates         string
	// scale returns how many keys stand for a number of keys, when nobody measures.
	scale func(keys int) int

	targets    map[string]*target
	generators map[string]*worker
	stores     map[int]string
}

// target is a server to measure.
type target struct {
	*worker
	// addresses are the targets of grpc.NewClient, by transport.
	addresses map[string]string
	// ready is how long the start took.
	ready time.Duration
	// keys is the size of its population; 0 for an empty server.
	keys int
}

func newLab(t *testing.T, binary, cache string, scale func(int) int) *lab {
	t.Helper()
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	work, err := os.MkdirTemp(cache, "run")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{
		t: t, binary: binary, cache: cache, work: work, sockets: socketFolder(t), certificates: filepath.Join(work, "certificates"), scale: scale,
		targets: make(map[string]*target), generators: make(map[string]*worker), stores: make(map[int]string),
	}
	t.Cleanup(func() {
		for _, generator := range l.generators {
			generator.end(t)
		}
		for name := range l.targets {
			l.stop(name)
		}
		_ = os.RemoveAll(work)
	})
	l.makeCallers()
	return l
}

// makeCallers makes certificates, and a callers file for every transport.
func (l *lab) makeCallers() {
	l.t.Helper()
	if text, err := exec.CommandContext(l.t.Context(), l.binary, "certs", "dev", l.certificates).CombinedOutput(); err != nil {
		l.t.Fatalf("%v\n%s", err, text)
	}
	path := filepath.Join(l.certificates, "callers.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		l.t.Fatal(err)
	}
	const rights = "rights: [validate, read, issue, issue_local, revoke, report, directory, audit, administer]"
	text = fmt.Appendf(text, "  - {name: bench-tcp, loopback: true, %s}\n  - {name: bench-unix, uid: [%d], %s}\n", rights, os.Getuid(), rights)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// generator returns a load generator.
func (l *lab) generator(name string) *worker {
	if known := l.generators[name]; known != nil {
		return known
	}
	l.generators[name] = startProcess(l.t, "TestProcessGenerator", generatorVariable+"="+l.certificates)
	if name == besideGenerator { // its own work is not what is measured
		runWhenIdle(l.t, l.generators[name].Process.Pid)
	}
	return l.generators[name]
}

// order gives a generator an order, and returns the outcome.
func (l *lab) order(name string, next order) outcome {
	l.t.Helper()
	generator := l.generator(name)
	text, err := json.Marshal(next)
	if err != nil {
		l.t.Fatal(err)
	}
	generator.write(l.t, string(text))
	var result outcome
	if err := json.Unmarshal([]byte(generator.line(l.t, "outcome")), &result); err != nil {
		l.t.Fatal(err)
	}
	if result.Error != "" {
		l.t.Fatalf("%s %s over %s: %s", next.Kind, next.Method, next.Address, result.Error)
	}
	return result
}

// baseline returns a server that decides nothing.
func (l *lab) baseline(kind string) *target {
	l.t.Helper()
	if known := l.targets[kind]; known != nil {
		return known
	}
	socket := filepath.Join(l.sockets, kind)
	environment := []string{serverVariable + "=" + kind, socketVariable + "=" + socket, tlsVariable + "=" + l.certificates}
	if kind == tunedServer {
		environment = append(environment, tunedEnvironment)
	}
	started := &target{worker: startProcess(l.t, "TestProcessServer", environment...)}
	started.addresses = map[string]string{
		overTCP: started.line(l.t, "address"), overTLS: "dns:///" + localhost(started.line(l.t, "tls")), overUnix: "unix://" + started.line(l.t, "unix"),
	}
	l.targets[kind] = started
	return started
}

// localhost returns the address with the name in the certificates.
func localhost(address string) string { return strings.Replace(address, "127.0.0.1", "localhost", 1) }

// keysvc returns a server with a number of keys, which serves TCP in plaintext or with TLS, and a
// unix socket. One with another way to serve TCP is stopped first, because a store has one process.
// No keys are a new, empty store.
func (l *lab) keysvc(keys int, secured bool) *target {
	l.t.Helper()
	name := fmt.Sprintf("keysvc %d %t", keys, secured)
	if known := l.targets[name]; known != nil {
		return known
	}
	l.stop(fmt.Sprintf("keysvc %d %t", keys, !secured))
	folder := l.store(keys)
	var more []string
	if keys == 0 {
		more = []string{"--init"}
	}
	started := l.serve(name, folder, secured, more...)
	started.keys = l.scale(keys)
	return started
}

// serve starts a server on a folder, with identity, head tags, anchor and all bounds.
func (l *lab) serve(name, folder string, secured bool, more ...string) *target {
	l.t.Helper()
	socket := filepath.Join(l.sockets, fmt.Sprint(len(l.targets)))
	arguments := append([]string{
		"serve", "--data", folder, "--listen", "127.0.0.1:0", "--listener", "all=unix://" + socket, "--log-level", "error",
		"--callers", filepath.Join(l.certificates, "callers.yaml"),
	}, more...)
	if secured {
		arguments = append(arguments, "--tls-server-cert", filepath.Join(l.certificates, "server.crt"), "--tls-server-key", filepath.Join(l.certificates, "server.key"))
	} else {
		arguments = append(arguments, "--allow-plaintext")
	}
	_ = os.Remove(socket)
	began := time.Now()
	started := &target{worker: runBinary(l.t, l.binary, arguments...), addresses: make(map[string]string)}
	for range 2 {
		address, _, _ := strings.Cut(started.line(l.t, "keysvc serves on"), ",")
		switch {
		case strings.HasPrefix(address, "unix:"):
			started.addresses[overUnix] = address
		case secured:
			started.addresses[overTLS] = "dns:///" + localhost(address)
		default:
			started.addresses[overTCP] = address
		}
	}
	started.ready = time.Since(began)
	l.targets[name] = started
	return started
}

// inTest returns a server in a test binary, whose memory can be read, with the store of a number
// of keys. The real one with that store is stopped.
func (l *lab) inTest(keys int, flags ...string) *target {
	l.t.Helper()
	name := fmt.Sprintf("in test %d", keys)
	if known := l.targets[name]; known != nil {
		return known
	}
	l.stop(fmt.Sprintf("keysvc %d false", keys))
	l.stop(fmt.Sprintf("keysvc %d true", keys))
	started := &target{
		worker: startProcessWith(l.t, "TestProcessServer", flags, serverVariable+"="+realServer, fileVariable+"="+filepath.Join(l.store(keys), "keysvc.db")),
		keys:   l.scale(keys),
	}
	started.addresses = map[string]string{overTCP: started.line(l.t, "address")}
	l.targets[name] = started
	return started
}

// stop stops a server, if there is one of this name.
func (l *lab) stop(name string) {
	l.t.Helper()
	known := l.targets[name]
	if known == nil {
		return
	}
	delete(l.targets, name)
	if known.stdin != nil {
		known.end(l.t)
	} else {
		known.terminate(l.t)
	}
}

// copied is up to how many keys a store is copied, so that every run begins with the same one. A
// larger one is only read from.
const copied = 1_000_000

// store returns the folder of a store with a number of keys. It is made once, and kept.
func (l *lab) store(keys int) string {
	l.t.Helper()
	if known := l.stores[keys]; known != "" {
		return known
	}
	if keys == 0 {
		return filepath.Join(l.work, fmt.Sprint("new", len(l.targets)))
	}
	kept := filepath.Join(l.cache, fmt.Sprint("keys-", l.scale(keys)))
	if _, err := os.Stat(kept); err != nil {
		made := filepath.Join(l.work, "filling")
		if err := os.MkdirAll(made, 0o700); err != nil {
			l.t.Fatal(err)
		}
		l.t.Logf("making a store of %d keys, which is kept in %s", l.scale(keys), kept)
		began := time.Now()
		if err := population.Fill(filepath.Join(made, "keysvc.db"), l.scale(keys), func(stored int) {
			if stored%1_000_000 == 0 {
				l.t.Logf("%d keys stored after %.0f s", stored, time.Since(began).Seconds())
			}
		}); err != nil {
			l.t.Fatal(err)
		}
		if err := os.Rename(made, kept); err != nil {
			l.t.Fatal(err)
		}
	}
	l.stores[keys] = kept
	if keys <= copied {
		l.stores[keys] = filepath.Join(l.work, filepath.Base(kept))
		if err := copyFolder(kept, l.stores[keys]); err != nil {
			l.t.Fatal(err)
		}
	}
	return l.stores[keys]
}

// copyFolder copies the files of a folder.
func copyFolder(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, entry := range entries {
		if err := copyFile(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) (err error) {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Sync(), target.Close()) }()
	_, err = io.Copy(target, source)
	return err
}
