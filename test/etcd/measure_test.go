package etcd_test

import (
	"bufio"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/scribe-mail/keysvc/bench/population"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/test/trio"
)

var (
	measureKeys     = flag.Int("measure", 0, "number of keys of TestMeasureLoad, such as 1000000; 0 skips it")
	measureTogether = flag.Int("measure.together", 25, "how many keys one change creates, 1 to 30; 1 is what the verbs do")
	measureGOGC     = flag.Int("measure.gogc", 100, "GOGC of etcd, in percent")
	measureFolder   = flag.String("measure.folder", "", "a folder in which the filled etcd is kept for the next run")
)

// TestMeasureLoad prints how long a load of many keys from etcd takes, and what each key takes in the
// process. etcd is a process of its own on the same machine. It fails for no figure:
//
//	go -C test test ./etcd -run TestMeasureLoad -v -measure 1000000 -measure.folder /tmp/million -timeout 1h
func TestMeasureLoad(t *testing.T) {
	if *measureKeys == 0 {
		t.Skip("prints figures; run with -measure 1000000")
	}
	folder := *measureFolder
	if folder == "" {
		var err error
		if folder, err = os.MkdirTemp("", "keysvc-etcd-"); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(folder)
	} else if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	const quota = 32 << 30
	server, err := startServer(folder, quota, "-gogc", strconv.Itoa(*measureGOGC))
	if err != nil {
		t.Fatal(err)
	}
	defer server.stop()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{server.endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	config := etcdstore.Config{Members: []*clientv3.Client{client}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	fillForMeasure(t, folder, config)
	status, err := client.Status(t.Context(), server.endpoint())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { t.Logf("etcd has %s of memory in the end", memoryOf(server.process.Process.Pid)) }()
	t.Logf("%d keys take %d bytes each in etcd, with their events and the members and workspaces",
		*measureKeys, status.DbSizeInUse/int64(*measureKeys))
	store := open(t, config)
	for range 3 {
		measureLoad(t, store, server.process.Process.Pid)
	}
	measureReady(t, server)
}

// measureReady prints how long keysvc takes from its start until it serves, and the memory that it has then.
func measureReady(t *testing.T, server *server) {
	t.Helper()
	programs, err := trio.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer trio.RemoveBuilt()
	for range 3 {
		folder := t.TempDir()
		keysvc := exec.CommandContext(t.Context(), programs.Keysvc, "serve", "--store", "etcd", "--etcd-endpoints", server.endpoint(),
			"--data", folder, "--listen", "unix://"+filepath.Join(folder, "s"), "--log-format", "json")
		log, err := keysvc.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		began, said := time.Now(), strings.Builder{}
		if err := keysvc.Start(); err != nil {
			t.Fatal(err)
		}
		serves := false
		for lines := bufio.NewScanner(log); !serves && lines.Scan(); {
			serves = strings.Contains(lines.Text(), `"msg":"serving"`)
			said.WriteString(lines.Text() + "\n")
		}
		took := time.Since(began)
		resident := memoryOf(keysvc.Process.Pid)
		_ = keysvc.Process.Kill()
		_ = keysvc.Wait() // it was killed
		if !serves {
			t.Fatalf("keysvc does not serve:\n%s", said.String())
		}
		t.Logf("keysvc serves %.2f s after its start, with %s of memory", took.Seconds(), resident)
	}
}

// memoryOf returns the resident memory of a process with its unit; empty on systems that do not tell it in the way of Linux. Pages of
// files that it has mapped count.
func memoryOf(pid int) string {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, resident, _ := strings.Cut(string(status), "VmRSS:")
	resident, _, _ = strings.Cut(resident, "\n")
	return strings.TrimSpace(resident)
}

// fillForMeasure fills the store, unless the folder has a note that it is filled.
func fillForMeasure(t *testing.T, folder string, config etcdstore.Config) {
	t.Helper()
	note, want := filepath.Join(folder, "filled"), fmt.Sprint(*measureKeys, " keys, ", *measureTogether, " in a change")
	switch found, err := os.ReadFile(note); {
	case err == nil && string(found) == want:
		return
	case err == nil:
		t.Fatalf("%s has a store of %s", folder, found)
	}
	began := time.Now()
	config.Attempt, config.Timeout = time.Minute, time.Minute // of 512 writers at once, some wait long
	store := open(t, config)
	err := population.FillStore(store, *measureKeys, *measureTogether, func(stored int) {
		t.Logf("%d keys are stored after %.0f s", stored, time.Since(began).Seconds())
	})
	if err == nil {
		err = os.WriteFile(note, []byte(want), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("filled in %.0f s", time.Since(began).Seconds())
}

// measureLoad loads the store once, as a start of the server does. pid is etcd's.
func measureLoad(t *testing.T, store *etcdstore.Store, pid int) {
	t.Helper()
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := heap()
	p := projection.New(store, nil)
	began, own, etcds := time.Now(), ownProcessor(t), processorOf(t, pid)
	if _, err := p.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	own, etcds = ownProcessor(t)-own, processorOf(t, pid)-etcds
	load, _ := os.ReadFile("/proc/loadavg")
	t.Logf("loaded in %.2f s, with %.2f s of processor, and %.2f s of etcd's; the load average is %s",
		took.Seconds(), own.Seconds(), etcds.Seconds(), strings.TrimSpace(string(load)))
	t.Logf("%.1f bytes of heap a key", (float64(heap())-float64(before))/float64(*measureKeys))
	runtime.KeepAlive(p)
}

// ownProcessor returns the processor time of this process.
func ownProcessor(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// processorOf returns the processor time of another process; 0 on systems that do not tell it in the
// way of Linux.
func processorOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	var ticks int64
	for _, field := range fields[11:13] { // utime and stime, in hundredths of a second
		count, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += count
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
