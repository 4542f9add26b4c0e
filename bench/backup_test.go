package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"regexp"
	"sync"
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/backup"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

var (
	backupTime    = flag.Duration("backup-time", time.Minute, "how long the backup of TestMeasureRevokesBesideABackup takes")
	backupKeys    = flag.Int("backup-keys", 200_000, "how many keys its store has")
	backupRevokes = flag.Int("backup-revokes", 10_000, "how many keys it revokes meanwhile")
)

// TestMeasureRevokesBesideABackup prints how long revokes take beside a backup that is throttled to
// last as long as they do, and without one, before and after it; and by how much the file grew. The
// revokes arrive at an even rate.
func TestMeasureRevokesBesideABackup(t *testing.T) {
	if testing.Short() || !*measure {
		t.Skip("prints figures only; ask for them with -measure")
	}
	path := newStore(t)
	tokens := fill(t, path, max(*backupKeys, 3**backupRevokes), 0)
	// The changes of one workspace wait for each other, so the keys are of all workspaces in turn.
	mathrand.New(mathrand.NewPCG(1, 2)).Shuffle(len(tokens), func(i, j int) { tokens[i], tokens[j] = tokens[j], tokens[i] })
	log := &lockedBuffer{}
	served := servertest.Start(t, servertest.Options{File: path, Log: slog.New(slog.NewJSONHandler(log, nil))})
	backups := keysvcv1.NewBackupServiceClient(served.Conn)
	for index, phase := range []string{"alone", "beside a backup", "alone"} {
		var running sync.WaitGroup
		before := usedBytes(t, path)
		if phase != "alone" {
			rate := min(max(before*int64(time.Second)/int64(*backupTime), backup.MinRate), backup.MaxRate)
			running.Go(func() {
				if took, size, err := drain(t.Context(), backups, rate); err != nil {
					t.Error(err)
				} else {
					t.Logf("%d MiB came in %s; the store was copied in %s ms", size>>20, took.Round(time.Second), copyingTime.FindSubmatch(log.Bytes())[1])
				}
			})
		}
		took := revokeEvenly(t, served, tokens[index**backupRevokes:(index+1)**backupRevokes], *backupTime)
		running.Wait()
		t.Logf("revokes %s: %s; the file of %d MiB grew by %d KiB", phase, percentiles(took), before>>20, (usedBytes(t, path)-before)>>10)
	}
}

// copyingTime finds how long a store was copied, in a line of the log.
var copyingTime = regexp.MustCompile(`"copying_ms":([0-9.]+)`)

// drain makes a backup and throws it away.
func drain(ctx context.Context, backups keysvcv1.BackupServiceClient, rate int64) (took time.Duration, size int64, err error) {
	began := time.Now()
	stream, err := backups.Backup(ctx, &keysvcv1.BackupRequest{BytesPerSecond: rate})
	for err == nil {
		var response *keysvcv1.BackupResponse
		response, err = stream.Recv()
		size += int64(len(response.GetChunk()))
	}
	if !errors.Is(err, io.EOF) {
		return 0, 0, err
	}
	return time.Since(began), size, nil
}

// revokeEvenly revokes the keys of tokens within a time, each when it is due, and returns how long each
// took from then on.
func revokeEvenly(t *testing.T, served *servertest.Keysvc, tokens []string, within time.Duration) []time.Duration {
	t.Helper()
	took := make([]time.Duration, len(tokens))
	began := time.Now()
	var running sync.WaitGroup
	for index, token := range tokens {
		due := began.Add(within * time.Duration(index) / time.Duration(len(tokens)))
		time.Sleep(time.Until(due))
		running.Go(func() {
			if _, err := served.Keys.RevokeToken(context.Background(), &keysvcv1.RevokeTokenRequest{Token: token}); err != nil {
				t.Error(err)
			}
			took[index] = time.Since(due)
		})
	}
	running.Wait()
	return took
}

// usedBytes returns how many bytes of a store's file are used, as its meta pages say.
func usedBytes(t *testing.T, path string) (used int64) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	size := int64(os.Getpagesize())
	for page := range int64(2) {
		var highWaterMark [8]byte
		if _, err := file.ReadAt(highWaterMark[:], page*size+56); err != nil {
			t.Fatal(err)
		}
		used = max(used, int64(binary.NativeEndian.Uint64(highWaterMark[:]))*size)
	}
	return used
}

// lockedBuffer is a buffer for several writers.
type lockedBuffer struct {
	mutex sync.Mutex
	bytes.Buffer
}

// Write implements io.Writer.
func (b *lockedBuffer) Write(text []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.Buffer.Write(text)
}

// Bytes returns a copy of what was written.
func (b *lockedBuffer) Bytes() []byte {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return bytes.Clone(b.Buffer.Bytes())
}
