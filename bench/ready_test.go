package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/token"
)

// The variables of TestMeasureReady: the folder in which the store is kept between runs, and the
// number of its keys, a million if it is not set. The binaries are those of TestMeasureQuick.
const (
	readyVariable     = "BENCH_READY"
	readyKeysVariable = "BENCH_READY_KEYS"
)

// The population of the store of TestMeasureReady: one key of ten is in rotation, and one of ten
// has networks. Every key has an audit event of its own, as CreateKey makes them.
const (
	readyKeysPerWorkspace = 100
	readyKeysPerMember    = 10
	readyRounds           = 3
)

// TestMeasureReady prints how long `keysvc serve` takes from its start to SERVING and to the first
// ALLOWED, with a store of a million keys in a warm page cache. If there is an older binary, the
// two take turns.
func TestMeasureReady(t *testing.T) {
	after, before := os.Getenv(afterVariable), os.Getenv(beforeVariable)
	folder := os.Getenv(readyVariable)
	if after == "" || folder == "" {
		t.Skip("prints figures only; needs " + afterVariable + " and " + readyVariable)
	}
	count := 1_000_000
	if text := os.Getenv(readyKeysVariable); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	text := readyStore(t, folder, count)
	binaries := []string{after}
	if before != "" {
		binaries = append(binaries, before)
	}
	samples := make(map[string][]float64)
	for range readyRounds {
		for _, binary := range binaries {
			serving, allowed, memory := startReady(t, binary, folder, text)
			t.Logf("%s: SERVING after %.3f s, ALLOWED after %.3f s, %s", filepath.Base(binary), serving.Seconds(), allowed.Seconds(), memory)
			samples[binary] = append(samples[binary], serving.Seconds())
		}
	}
	for _, binary := range binaries {
		t.Logf("%s: %d keys, SERVING after %s s", binary, count, spread(samples[binary]))
	}
}

// startReady starts a binary, and returns after how long it served, and allowed a token.
func startReady(t *testing.T, binary, folder, text string) (serving, allowed time.Duration, memory string) {
	t.Helper()
	command := exec.CommandContext(context.WithoutCancel(t.Context()), binary, "serve", "--dev", "--listen", "127.0.0.1:0", "--data", folder, "--log-level", "error")
	command.Stderr = os.Stderr
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		_, _ = io.Copy(io.Discard, stdout)
		if err := command.Wait(); err != nil {
			t.Errorf("%s: %v", binary, err)
		}
	}()
	started := &worker{Cmd: command, lines: bufio.NewScanner(stdout)}
	started.address, _, _ = strings.Cut(started.line(t, "keysvc serves on"), ",")
	serving = time.Since(began) // the greeting follows on the health of SERVING
	processor := processorTime(t, command.Process.Pid)
	answer, err := keysvcv1.NewValidationServiceClient(dial(t, started.address)).ValidateKey(t.Context(), &keysvcv1.ValidateKeyRequest{
		Token: text, RequiredScope: quickScope,
	})
	if err != nil || answer.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
		t.Fatal(answer.GetReason(), err)
	}
	return serving, time.Since(began), fmt.Sprintf("%.3f s of processor, %s", processor.Seconds(), memoryOf(command.Process.Pid))
}

// memoryOf returns the lines of a process's status that tell its memory; empty where there are none.
func memoryOf(pid int) string {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	var found []string
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmHWM") || strings.HasPrefix(line, "RssAnon") {
			found = append(found, strings.Join(strings.Fields(line), " "))
		}
	}
	return strings.Join(found, ", ")
}

// readyStore makes the store in a folder that has none, and returns the token of one of its keys.
func readyStore(t *testing.T, folder string, count int) string {
	t.Helper()
	kept := filepath.Join(folder, "token")
	if text, err := os.ReadFile(kept); err == nil {
		return string(text)
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	store, err := boltstore.Open(filepath.Join(folder, "keysvc.db"), boltstore.Config{Create: boltstore.CreateIfAbsent})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var text string
	var workers sync.WaitGroup
	next := make(chan int)
	for range 512 {
		workers.Go(func() {
			for number := range next {
				last, err := populate(store, number, min(readyKeysPerWorkspace, count-number*readyKeysPerWorkspace))
				if err != nil {
					t.Error(err)
					return
				}
				if number == 0 {
					text = last
				}
			}
		})
	}
	for number := 0; number*readyKeysPerWorkspace < count && !t.Failed(); number++ {
		next <- number
	}
	close(next)
	workers.Wait()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Logf("filled with %d keys in %.0f s", count, time.Since(began).Seconds())
	return text
}

// populate stores one workspace with its members and keys, and returns the token of the last key.
func populate(store storage.Store, number, count int) (string, error) {
	random := mathrand.NewChaCha8([32]byte{byte(number), byte(number >> 8), byte(number >> 16), 1})
	workspaceID := fmt.Sprintf("workspace-%06d", number)
	now := time.Now().UTC()
	var head storage.Head
	commit := func(action storagev1.AuditAction, change *storage.Change) error {
		change.Event = audit.NewEvent(actor, action, now, workspaceID)
		change.Link(workspaceID, head)
		if _, err := store.Commit(context.Background(), change); err != nil {
			return err
		}
		encoded, err := storage.Encode(change.Event) // with the changes that the commit listed
		head = head.After(encoded)
		return err
	}
	incarnation := func(of string) string { return fmt.Sprintf("%s%021d", of, number) }
	first := &storage.Change{
		Kind:         storagev1.FeedKind_FEED_KIND_MEMBER,
		PutWorkspace: &storagev1.WorkspaceRecord{WorkspaceId: workspaceID, Incarnation: incarnation("w"), CreateTime: timestamppb.New(now), ChangeSequence: 1},
	}
	for member := 0; member*readyKeysPerMember < count; member++ {
		first.PutMembers = append(first.PutMembers, &storagev1.MemberRecord{
			WorkspaceId: workspaceID, MemberId: fmt.Sprintf("member-%04d", member), Incarnation: incarnation("m"), WorkspaceIncarnation: incarnation("w"), Role: "manager",
			State: storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE, CreateTime: timestamppb.New(now), UpdateTime: timestamppb.New(now), ChangeSequence: 1,
		})
	}
	if err := commit(storagev1.AuditAction_AUDIT_ACTION_MEMBER_PUT, first); err != nil {
		return "", err
	}
	var text string
	for key := range count {
		id, _ := token.NewID(random)
		secrets := make([]*storagev1.SecretRecord, 0, 2)
		for range 1 + key%10/9 {
			issued, _ := token.New("scribe", id, random)
			hash, err := issued.Hash(token.SchemeVerifier)
			if err != nil {
				return "", err
			}
			secrets = append(secrets, &storagev1.SecretRecord{
				Scheme: uint32(hash.Scheme), Hash: hash.Sum[:], CreateTime: timestamppb.New(now), ExpireTime: timestamppb.New(now.AddDate(1, 0, 0)),
			})
			text = issued.Reveal()
		}
		if len(secrets) > 1 {
			secrets[1].OverlapEndTime = timestamppb.New(now.AddDate(0, 0, 30))
		}
		record := &storagev1.KeyRecord{
			KeyId: id, WorkspaceId: workspaceID, MemberId: fmt.Sprintf("member-%04d", key/readyKeysPerMember),
			WorkspaceIncarnation: incarnation("w"), MemberIncarnation: incarnation("m"),
			Sequence: head.Sequence + 1, ChangeSequence: head.Sequence + 1, Name: "a key of a usual length",
			Scopes: []string{"folders:read", "signatures:read", "signatures:write"}, CreateTime: timestamppb.New(now), Secrets: secrets,
		}
		if key%10 == 5 {
			record.AllowedCidrs = []string{"10.0.0.0/8", "192.168.1.0/24"}
		}
		err := commit(storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED, &storage.Change{
			Kind: storagev1.FeedKind_FEED_KIND_KEY, Subject: id, AbsentKeyIDs: []string{id}, PutKeys: []*storagev1.KeyRecord{record},
		})
		if err != nil {
			return "", err
		}
	}
	return text, nil
}
