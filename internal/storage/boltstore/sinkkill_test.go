package boltstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/scribe-mail/keysvc/internal/storage/sink"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// loadVariable makes the test binary change a store with a sink until it is killed. Its value is the
// folder of both.
const loadVariable = "KEYSVC_TEST_SINK_LOAD"

func TestHelperSinkLoad(t *testing.T) {
	folder := os.Getenv(loadVariable)
	if folder == "" {
		return // for TestKillLosesNoLine only
	}
	store, err := Open(filepath.Join(folder, "store.db"), Config{Create: CreateIfAbsent, Sink: filepath.Join(folder, "audit"), SinkReserve: 64 << 10, wait: patient})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	run, _ := os.ReadDir(folder) // the names of workspaces differ from start to start
	var group sync.WaitGroup
	for number := range 8 {
		group.Go(func() {
			workspace := storagetest.NewWorkspace(fmt.Sprint("w", len(run), "-", store.State().SinkRevision, "-", number))
			for {
				change := workspace.PutMember("member", "admin")
				revision, err := store.Commit(t.Context(), change)
				if err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				workspace.Follow(change)
				fmt.Printf("acknowledged %d\n", revision)
			}
		})
	}
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() { // each line asks for a rotation
		store.ReopenSink()
	}
	group.Wait()
}

// TestKillLosesNoLine kills a process with SIGKILL again and again while it makes changes, and
// rotates the sink. Every change that was acknowledged has its line, also before the next start,
// and in the end the sink has every event of the store once, in order.
func TestKillLosesNoLine(t *testing.T) {
	folder := t.TempDir()
	path, file := filepath.Join(folder, "store.db"), filepath.Join(folder, "audit")
	var files []string
	for round := range 6 {
		acknowledged := loadAndKill(t, folder, func(input io.Writer) {
			if round%2 == 0 {
				return
			}
			next := fmt.Sprint(file, ".", round)
			if err := os.Rename(file, next); err != nil {
				t.Error(err)
			}
			files = append(files, next)
			if round > 1 { // in round 1 it is killed before it goes over
				_, _ = io.WriteString(input, "rotate\n")
			}
		})
		_, tail, err := sink.Newest(file)
		if err != nil || tail.Newest.Revision < acknowledged {
			t.Fatalf("revision %d was acknowledged, and the sink is at %d, %v", acknowledged, tail.Newest.Revision, err)
		}
		store := mustOpen(t, path, Config{Sink: file, SinkReserve: 64 << 10})
		all := append(append([]string{}, files...), file)
		// What a kill has torn off is at the end of a file that was renamed since.
		lines, last := 0, int64(0)
		reader := sink.NewReader(all...)
		for {
			line, err := reader.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if errors.Is(err, sink.ErrTorn) {
				continue
			}
			switch {
			case err != nil:
				t.Fatal(err)
			case line.Event != nil && line.Mark.Revision != last+1, line.Event == nil && line.Mark.Revision != last:
				t.Fatalf("revision %d follows on %d", line.Mark.Revision, last)
			}
			last = line.Mark.Revision
			lines++
		}
		if position := store.LocalBarrier().Revision; last != position || position < acknowledged {
			t.Errorf("round %d: the store is at revision %d, the sink at %d, acknowledged were %d", round, position, last, acknowledged)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	mustBeSound(t, path)
}

// loadAndKill runs TestHelperSinkLoad for 60 acknowledged changes, calls meanwhile after 30, and
// kills it. It returns the newest revision that was acknowledged.
func loadAndKill(t *testing.T, folder string, meanwhile func(input io.Writer)) int64 {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	process := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestHelperSinkLoad$")
	process.Env = append(os.Environ(), loadVariable+"="+folder)
	input, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close() // it is killed below
	output, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	newest, count := int64(0), 0
	for lines := bufio.NewScanner(output); lines.Scan(); {
		text, isAnswer := strings.CutPrefix(lines.Text(), "acknowledged ")
		if !isAnswer {
			t.Logf("%s", lines.Text())
			continue
		}
		revision, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		newest = max(newest, revision)
		switch count++; count {
		case 30:
			meanwhile(input)
		case 60:
			if err := process.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = process.Wait()
	if count < 60 {
		t.Fatalf("it ended by itself after %d changes", count)
	}
	return newest
}
