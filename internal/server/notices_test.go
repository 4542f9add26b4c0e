package server_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
)

const noticeDay = 24 * time.Hour

// noticeBench is a server that sends notices to a receiver. Nothing is sent before look.
type noticeBench struct {
	*bench
	received chan map[string]any
	attempts chan events.NoticeAttempt
	looks    chan struct{}
	status   func() int
}

// startNotices starts a server that sends notices.
func startNotices(t *testing.T, with options) *noticeBench {
	t.Helper()
	b := &noticeBench{
		received: make(chan map[string]any, 100), attempts: make(chan events.NoticeAttempt, 100), looks: make(chan struct{}),
		status: func() int { return http.StatusNoContent },
	}
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var message map[string]any
		if err := json.Unmarshal(body, &message); err != nil || strings.Contains(string(body), "_ksk1_") {
			t.Errorf("got %s", body)
		}
		status := b.status()
		if status < 300 {
			b.received <- message
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(receiver.Close)
	folder := t.TempDir()
	secret := filepath.Join(folder, "secret")
	if err := os.WriteFile(secret, []byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := with.settings
	with.settings = func(s *config.Settings) {
		s.NoticeWebhook, s.NoticeSecret, s.Data = receiver.URL, secret, folder
		if settings != nil {
			settings(s)
		}
	}
	with.hooks.NoticeAttempted = func(attempt events.NoticeAttempt) {
		select {
		case b.attempts <- attempt:
		default: // no test reads so many
		}
	}
	with.config = func(c *server.Config) {
		c.Wait = func(ctx context.Context, _ time.Duration) bool {
			select {
			case <-b.looks:
				return true
			case <-ctx.Done():
				return false
			}
		}
	}
	b.bench = start(t, with)
	return b
}

// lookUntil lets the server look for notices until done returns true.
func (b *noticeBench) lookUntil(t *testing.T, done func() bool) {
	t.Helper()
	ctx := testContext(t)
	for !done() {
		select {
		case b.looks <- struct{}{}:
		case <-ctx.Done():
			t.Fatal("what was waited for did not come")
		}
	}
}

// TestNoticesGoToTheReceiver: the server sends a notice of a key that ends soon, lists it, and counts it.
func TestNoticesGoToTheReceiver(t *testing.T) {
	t.Parallel()
	b := startNotices(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	key, err := b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "nightly", Scopes: []string{"emails:read"}, ExpireTime: b.clock.in(60 * noticeDay),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.clock.pass(54 * noticeDay)
	b.lookUntil(t, func() bool { return len(b.received) > 0 })
	message := <-b.received
	data, _ := message["data"].(map[string]any)
	id := key.GetKey().GetKeyId()
	if message["type"] != "key.ending" || data["key_id"] != id || data["key_name"] != "nightly" || data["days"] != 7.0 || data["in_use"] != false {
		t.Errorf("got %v", message)
	}
	if attempt := <-b.attempts; attempt.Error != nil || attempt.KeyID != id || attempt.NoticeID != data["notice_id"] {
		t.Errorf("got %+v", attempt)
	}
	page, err := b.keys.ListNotices(testContext(t), &keysvcv1.ListNoticesRequest{})
	if err != nil || len(page.GetNotices()) != 1 || page.GetMore() || page.GetNotices()[0].GetNoticeId() != data["notice_id"] || page.GetNotices()[0].GetKey().GetKeyId() != id {
		t.Errorf("got %v, %v", page, err)
	}
	if state := b.server.Notices(); state.Sent != 1 || state.Failed != 0 {
		t.Errorf("got %+v", state)
	}
}

// TestDeadReceiverStopsNothing: what waits is in the status, and is sent when the receiver is back.
func TestDeadReceiverStopsNothing(t *testing.T) {
	t.Parallel()
	b := startNotices(t, options{})
	var mutex sync.Mutex
	status := http.StatusBadGateway
	b.status = func() int {
		mutex.Lock()
		defer mutex.Unlock()
		return status
	}
	b.putMember(t, "acme", "ann", "owner")
	for range 2 {
		if _, err := b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: "ann", Name: "n", Scopes: []string{"emails:read"}, ExpireTime: b.clock.in(60 * noticeDay),
		}); err != nil {
			t.Fatal(err)
		}
	}
	b.clock.pass(54 * noticeDay)
	problems := func() []string {
		answer, err := keysvcv1.NewStatusServiceClient(b.conn).GetStatus(testContext(t), &keysvcv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, each := range answer.GetProblems() {
			texts = append(texts, each.GetProblemId()+": "+each.GetDescription())
		}
		return texts
	}
	waits := func() bool {
		texts := problems()
		return len(texts) == 1 && strings.HasPrefix(texts[0], "notices-waiting: ")
	}
	b.lookUntil(t, waits)
	if text := problems()[0]; !strings.HasSuffix(text, "about 2 notices wait.") {
		t.Errorf("got %q", text)
	}
	b.create(t, "acme", "ann", "emails:read") // goes on
	mutex.Lock()
	status = http.StatusOK
	mutex.Unlock()
	b.lookUntil(t, func() bool { return len(b.received) == 2 && len(problems()) == 0 })
}

// TestClockThatJumpedSendsNoNotices: a year ahead, every key would end soon.
func TestClockThatJumpedSendsNoNotices(t *testing.T) {
	t.Parallel()
	var mutex sync.Mutex
	var passed time.Duration
	b := startNotices(t, options{passed: func() time.Duration {
		mutex.Lock()
		defer mutex.Unlock()
		passed += time.Microsecond
		return passed
	}})
	b.putMember(t, "acme", "ann", "owner")
	b.create(t, "acme", "ann", "emails:read")
	b.clock.pass(360 * noticeDay)
	for range 50 { // of which each component takes some
		b.looks <- struct{}{}
	}
	if len(b.received) > 0 || len(b.attempts) > 0 {
		t.Errorf("%d notices were sent", len(b.received))
	}
	_, err := b.keys.ListNotices(testContext(t), &keysvcv1.ListNoticesRequest{})
	expectError(t, err, codes.Unavailable, "CLOCK_UNSURE")
}

// TestStartNeedsTheSecretOfNotices.
func TestStartNeedsTheSecretOfNotices(t *testing.T) {
	t.Parallel()
	settings := config.Defaults()
	settings.NoticeWebhook, settings.NoticeSecret = "https://hooks.example/", filepath.Join(t.TempDir(), "none")
	b := start(t, options{})
	_, err := server.New(t.Context(), server.Config{Store: b.store, Settings: settings, Policy: policy.Default(), Now: b.clock.Now})
	if err == nil || !strings.Contains(err.Error(), "notice-secret") {
		t.Errorf("got %v", err)
	}
}

// electing is a store of several servers whose election the test decides.
type electing struct {
	storage.Store
	elected chan struct{}
}

// Lead implements storage.Elector.
func (e *electing) Lead(ctx context.Context, work func(ctx context.Context)) {
	select {
	case <-e.elected:
		work(ctx)
	case <-ctx.Done():
	}
}

// TestTheElectedServerSendsNotices: of several servers over a store, the others do not look for notices.
func TestTheElectedServerSendsNotices(t *testing.T) {
	t.Parallel()
	store := &electing{elected: make(chan struct{})}
	b := startNotices(t, options{wrap: func(own storage.Store) storage.Store { store.Store = own; return store }})
	b.putMember(t, "acme", "ann", "owner")
	if _, err := b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "n", Scopes: []string{"emails:read"}, ExpireTime: b.clock.in(60 * noticeDay),
	}); err != nil {
		t.Fatal(err)
	}
	b.clock.pass(54 * noticeDay)
	looks := 0 // of what counts the keys that end, and of what sends notices
	b.lookUntil(t, func() bool { looks++; return looks > 20 || len(b.received) > 0 })
	if len(b.received) > 0 {
		t.Fatal("a server that is not elected sends notices")
	}
	close(store.elected)
	b.lookUntil(t, func() bool { return len(b.received) > 0 })
}
