package notices

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/keys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testTime = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

// testSecret is the secret of the example in the Standard Webhooks specification.
const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// source is a Source with notices that fall due with time.
type source struct {
	mutex   sync.Mutex
	all     []*keys.Notice // by due time
	now     time.Time
	gone    map[string]bool // by key id
	fails   error
	largest int
}

func (s *source) add(number int) *keys.Notice {
	id := fmt.Sprintf("%016d", number)
	due := testTime.Add(time.Duration(number) * time.Minute)
	notice := &keys.Notice{
		ID: "key_end_" + id, Days: 7, DueTime: due, InUse: number%2 == 0,
		Key: &keys.Key{
			ID: id, WorkspaceID: "acme", MemberID: "ann", Name: "ci \"x\"", State: keys.KeyActive, ExpireTime: due.Add(7 * 24 * time.Hour),
		},
	}
	if notice.InUse {
		notice.Key.LastUsedTime = due.Add(-time.Hour)
	}
	s.all = append(s.all, notice)
	return notice
}

// Now is the clock.
func (s *source) Now() time.Time {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.now
}

// NoticesAfter implements Source.
func (s *source) NoticesAfter(_ context.Context, visible access.Workspaces, place keys.NoticePlace, limit int) (*keys.NoticePage, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if !visible.IsAll() || s.fails != nil {
		return nil, errors.Join(s.fails, errors.New("no notices"))
	}
	page := &keys.NoticePage{Next: keys.NoticePlace{Due: s.now, KeyID: "~", NotEndedBy: place.NotEndedBy}}
	for _, each := range s.all {
		at := keys.NoticePlace{Due: each.DueTime, KeyID: each.Key.ID}
		switch {
		case at.Compare(place) <= 0 || each.DueTime.After(s.now):
		case len(page.Notices) == limit:
			page.Waiting++
		default:
			page.Notices = append(page.Notices, each)
		}
	}
	if page.Next.Compare(place) < 0 { // a place never goes back
		page.Next = place
	}
	if page.Waiting > 0 {
		last := page.Notices[limit-1]
		page.Next.Due, page.Next.KeyID = last.DueTime, last.Key.ID
	}
	s.largest = max(s.largest, len(page.Notices))
	return page, nil
}

// Still implements Source.
func (s *source) Still(_ context.Context, _ access.Workspaces, notice *keys.Notice) (*keys.Notice, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.gone[notice.Key.ID] {
		return nil, nil
	}
	return notice, nil
}

// receiver is an HTTP server that keeps what it is sent, and answers as answer says.
type receiver struct {
	*httptest.Server

	mutex  sync.Mutex
	ids    []string
	taken  []string
	bodies []string
	// answer returns the status for the nth request; nil for 204. It may write headers.
	answer func(n int, w http.ResponseWriter, r *http.Request) int
}

// got returns the ids of all requests, and took those that the receiver has taken.
func (r *receiver) got() []string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return slices.Clone(r.ids)
}

func (r *receiver) took() []string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return slices.Clone(r.taken)
}

func newReceiver(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request) int) *receiver {
	t.Helper()
	to := &receiver{answer: answer}
	secrets, err := parseSecrets([]byte(testSecret))
	if err != nil {
		t.Fatal(err)
	}
	to.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		id, stamp := r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp")
		seconds, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil || r.Header.Get("Webhook-Signature") != secrets.sign(id, time.Unix(seconds, 0), body) || r.Method != http.MethodPost ||
			r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %v: %q", r.Method, r.Header, body)
		}
		to.mutex.Lock()
		to.ids, to.bodies = append(to.ids, id), append(to.bodies, string(body))
		n := len(to.ids)
		to.mutex.Unlock()
		status := http.StatusNoContent
		if to.answer != nil {
			status = to.answer(n, w, r)
		}
		if status < 300 {
			to.mutex.Lock()
			to.taken = append(to.taken, id)
			to.mutex.Unlock()
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(to.Close)
	return to
}

// scene is a Sender with what it works with.
type scene struct {
	config   Config
	source   *source
	attempts []Attempt
	waits    []time.Duration
	// onWait is called for each wait, and returns false to end Run. A wait takes no time.
	onWait func(duration time.Duration) bool
}

func newScene(t *testing.T, url string) *scene {
	t.Helper()
	folder := t.TempDir()
	secret := filepath.Join(folder, "secret")
	if err := os.WriteFile(secret, []byte(testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &scene{source: &source{now: testTime, gone: make(map[string]bool)}}
	s.config = Config{
		Source: s.source, Ready: func() error { return nil }, URL: url, SecretFile: secret, PlaceFile: filepath.Join(folder, "keysvc.notices"),
		Interval: time.Hour, Now: s.source.Now, Done: func(attempt Attempt) { s.attempts = append(s.attempts, attempt) },
		Wait: func(ctx context.Context, duration time.Duration) bool {
			s.waits = append(s.waits, duration)
			return ctx.Err() == nil && s.onWait(duration)
		},
	}
	return s
}

// run runs a Sender until onWait returns false. Without an onWait that is after the first look.
func (s *scene) run(ctx context.Context, t *testing.T) *Sender {
	t.Helper()
	if s.onWait == nil {
		s.onWait = func(duration time.Duration) bool { return duration != s.config.Interval }
	}
	sender := New(s.config)
	sender.Run(ctx)
	return sender
}

func (s *scene) pass(duration time.Duration) {
	s.source.mutex.Lock()
	defer s.source.mutex.Unlock()
	s.source.now = s.source.now.Add(duration)
}

// TestMessagesAreSignedAsTheSpecificationSays compares with the example of Standard Webhooks.
func TestMessagesAreSignedAsTheSpecificationSays(t *testing.T) {
	secrets, err := parseSecrets([]byte(testSecret))
	if err != nil {
		t.Fatal(err)
	}
	got := secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, text := range []string{fmt.Sprint(secrets), fmt.Sprintf("%+v %#v", secrets, secrets)} {
		if strings.Contains(text, "49 242") || strings.Contains(text, "0x31") {
			t.Errorf("the secret prints: %s", text)
		}
	}
}

// TestNoticesAreSentInOrderOnce in pages, also when they fall due later and over restarts.
func TestNoticesAreSentInOrderOnce(t *testing.T) {
	t.Parallel()
	to := newReceiver(t, nil)
	s := newScene(t, to.URL)
	var want []string
	for number := range pageSize + 7 {
		want = append(want, s.source.add(number).ID)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for len(to.took()) < len(want) {
		s.pass(time.Duration(random.IntN(200)) * time.Minute)
		sender := s.run(t.Context(), t)
		if state := sender.State(); state.Waiting != 0 || state.Failures != 0 || state.Failed != 0 {
			t.Errorf("got %+v", state)
		}
	}
	if !slices.Equal(to.got(), want) {
		t.Errorf("got %d: %q", len(to.got()), to.got())
	}
	if s.source.largest > pageSize {
		t.Errorf("%d notices in memory", s.source.largest)
	}
	var first message
	if err := json.Unmarshal([]byte(to.bodies[0]), &first); err != nil {
		t.Fatal(err)
	}
	used := testTime.Add(-time.Hour)
	if first.Data.LastUsedTime == nil || !first.Data.LastUsedTime.Equal(used) {
		t.Errorf("got %s", to.bodies[0])
	}
	first.Data.LastUsedTime = nil
	if first != (message{Type: "key.ending", Timestamp: testTime, Data: data{
		NoticeID: want[0], Days: 7, InUse: true, KeyID: "0000000000000000", KeyName: `ci "x"`, WorkspaceID: "acme", MemberID: "ann",
		State: "active", ExpireTime: testTime.Add(7 * 24 * time.Hour),
	}}) || strings.Contains(to.bodies[1], "last_used_time") {
		t.Errorf("got %s\n%s", to.bodies[0], to.bodies[1])
	}
}

// TestNoticeIsSentUntilItIsTaken: what waits is counted, the waits grow, and the receiver may ask for more.
func TestNoticeIsSentUntilItIsTaken(t *testing.T) {
	t.Parallel()
	statuses := []int{500, 404, 429, 302, 400, 503, 410, 200}
	to := newReceiver(t, func(n int, w http.ResponseWriter, _ *http.Request) int {
		if n <= len(statuses) {
			w.Header().Set("Location", "/elsewhere")
			if statuses[n-1] == 429 {
				w.Header().Set("Retry-After", "1200")
			}
			return statuses[n-1]
		}
		return 204
	})
	s := newScene(t, to.URL+"/hunter2")
	first, second := s.source.add(0).ID, s.source.add(1).ID
	s.pass(time.Hour)
	var sender *Sender
	states := []State{}
	s.onWait = func(duration time.Duration) bool {
		states = append(states, sender.State())
		return duration != s.config.Interval
	}
	sender = New(s.config)
	sender.Run(t.Context())
	want := append(slices.Repeat([]string{first}, len(statuses)), second)
	if !slices.Equal(to.got(), want) {
		t.Errorf("got %q", to.got())
	}
	bound := firstRetry
	for index, wait := range s.waits[:len(statuses)-1] {
		least := time.Duration(0)
		if statuses[index] == 429 {
			least = 20 * time.Minute
		}
		if wait < least || wait > max(least, bound) {
			t.Errorf("wait %d is %s", index, wait)
		}
		if states[index].Waiting != 2 || states[index].Failures != int64(index+1) {
			t.Errorf("before wait %d: %+v", index, states[index])
		}
		bound *= 2
	}
	if state := sender.State(); state != (State{Sent: 2, Failed: int64(len(statuses) - 1)}) {
		t.Errorf("at the end: %+v", state)
	}
	for _, attempt := range s.attempts {
		if attempt.Error != nil && (attempt.Notice.ID != first || !strings.HasPrefix(attempt.Error.Error(), "the receiver answered with status ")) {
			t.Errorf("got %+v", attempt)
		}
	}
}

// TestRestartRepeatsAtMostTheLastNotice ends the Sender at every request, before or after the receiver has
// taken the notice.
func TestRestartRepeatsAtMostTheLastNotice(t *testing.T) {
	t.Parallel()
	var stop context.CancelFunc
	random := rand.New(rand.NewPCG(3, 4))
	to := newReceiver(t, func(int, http.ResponseWriter, *http.Request) int {
		switch random.IntN(3) {
		case 0:
			stop()
			return 500
		case 1:
			stop() // taken, but the Sender may not hear of it
		}
		return 200
	})
	s := newScene(t, to.URL)
	var want []string
	for number := range 60 {
		want = append(want, s.source.add(number).ID)
	}
	s.pass(24 * time.Hour)
	s.onWait = func(time.Duration) bool { return false }
	for slices.Index(to.took(), want[len(want)-1]) < 0 {
		var ctx context.Context
		ctx, stop = context.WithCancel(t.Context())
		before := len(to.got())
		s.run(ctx, t)
		stop()
		if len(to.got()) > before && before > 0 {
			at, last := slices.Index(want, to.got()[before]), slices.Index(want, to.got()[before-1])
			if at != last && at != last+1 {
				t.Fatalf("after number %d came %d", last, at)
			}
		}
	}
	if got := slices.Compact(slices.Clone(to.got())); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestNoticeThatIsNoLongerTrueIsNotSent: a key that was rotated while the receiver was away.
func TestNoticeThatIsNoLongerTrueIsNotSent(t *testing.T) {
	t.Parallel()
	up := false
	to := newReceiver(t, func(int, http.ResponseWriter, *http.Request) int {
		if up {
			return 200
		}
		return 503
	})
	s := newScene(t, to.URL)
	first, second := s.source.add(0), s.source.add(1)
	s.pass(time.Hour)
	s.onWait = func(duration time.Duration) bool {
		s.source.mutex.Lock()
		defer s.source.mutex.Unlock()
		up, s.source.gone[first.Key.ID] = true, true
		return duration != s.config.Interval
	}
	s.run(t.Context(), t)
	if !slices.Equal(to.took(), []string{second.ID}) {
		t.Errorf("got %q", to.took())
	}
}

// TestNothingIsSentWhileTheClockMayBeWrong, also if the doubt begins between two notices.
func TestNothingIsSentWhileTheClockMayBeWrong(t *testing.T) {
	t.Parallel()
	jumped := errors.New("jumped")
	doubt := jumped
	to := newReceiver(t, func(n int, _ http.ResponseWriter, _ *http.Request) int {
		if n == 2 {
			doubt = jumped
		}
		return 200
	})
	s := newScene(t, to.URL)
	for number := range 5 {
		s.source.add(number)
	}
	s.pass(time.Hour)
	s.config.Ready = func() error { return doubt }
	s.run(t.Context(), t)
	if len(to.got()) != 0 {
		t.Errorf("got %q", to.got())
	}
	if _, err := os.Stat(s.config.PlaceFile); err == nil {
		t.Error("the place was written")
	}
	doubt = nil
	s.run(t.Context(), t)
	if len(to.got()) != 2 {
		t.Errorf("got %q", to.got())
	}
	doubt = nil
	s.run(t.Context(), t)
	if len(to.got()) != 5 {
		t.Errorf("got %q", to.got())
	}
}

// TestErrorsTellNoSecret: a URL may have one in its path.
func TestErrorsTellNoSecret(t *testing.T) {
	t.Parallel()
	to := newReceiver(t, nil)
	to.Close()
	s := newScene(t, to.URL+"/hunter2?a=hunter2")
	s.source.add(0)
	s.pass(time.Hour)
	s.onWait = func(time.Duration) bool { return len(s.attempts) < 3 }
	s.run(t.Context(), t)
	if err := os.WriteFile(s.config.SecretFile, []byte("whsec_hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CheckSecretFile(s.config.SecretFile); !errors.Is(err, errSecrets) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
	if len(s.attempts) != 3 {
		t.Fatalf("got %+v", s.attempts)
	}
	for _, attempt := range s.attempts {
		if attempt.Error == nil || strings.Contains(attempt.Error.Error(), "hunter2") {
			t.Errorf("got %v", attempt.Error)
		}
	}
}

// TestPlaceThatCannotBeUsedRepeatsNotices with the same ids; one that lies ahead hides none.
func TestPlaceThatCannotBeUsedRepeatsNotices(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"damaged": "keysvc notices v2 x\n", "empty": "", "long": strings.Repeat("x", maxPlaceFile+1), "two lines": placeHeader + "1::\n1::\n",
		"ahead": placeHeader + keys.NoticePlace{Due: testTime.AddDate(3, 0, 0), KeyID: "~", NotEndedBy: testTime.AddDate(3, 0, 0)}.String() + "\n",
	} {
		to := newReceiver(t, nil)
		s := newScene(t, to.URL)
		s.source.add(0)
		if name != "ahead" {
			s.pass(time.Hour)
		}
		if err := os.WriteFile(s.config.PlaceFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		s.onWait = func(time.Duration) bool { s.pass(time.Hour); return len(s.waits) < 2 }
		s.source.all[0].DueTime = testTime.Add(time.Minute)
		s.run(t.Context(), t)
		told := slices.ContainsFunc(s.attempts, func(a Attempt) bool { return a.Error != nil && a.Failures == 0 && a.Notice == nil })
		if len(to.got()) != 1 || told == (name == "ahead") {
			t.Errorf("%s: %q, %+v", name, to.got(), s.attempts)
		}
	}
}

// TestPlaceThatCannotBeWrittenHoldsUpWhatFollows, so that a restart repeats one notice and not more.
func TestPlaceThatCannotBeWrittenHoldsUpWhatFollows(t *testing.T) {
	t.Parallel()
	to := newReceiver(t, nil)
	s := newScene(t, to.URL)
	s.source.add(0)
	s.source.add(1)
	s.pass(time.Hour)
	folder := filepath.Join(t.TempDir(), "later")
	s.config.PlaceFile = filepath.Join(folder, "keysvc.notices")
	s.onWait = func(duration time.Duration) bool {
		if len(s.waits) < 3 {
			if len(to.got()) != 1 {
				t.Errorf("got %q", to.got())
			}
			return true
		}
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		return duration != s.config.Interval
	}
	s.run(t.Context(), t)
	if len(to.got()) != 2 {
		t.Errorf("got %q", to.got())
	}
}

func FuzzParseSecrets(f *testing.F) {
	for _, seed := range []string{testSecret, testSecret + "\n\n" + testSecret + "\n", "whsec_", "whsec_AAAA", "x", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSx="} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		parsed, err := parseSecrets(text)
		if (err == nil) != (len(parsed.keys) > 0) || len(parsed.keys) > maxSecrets {
			t.Fatalf("%d secrets, %v", len(parsed.keys), err)
		}
		for _, key := range parsed.keys {
			if len(key) < minSecret || len(key) > maxSecret {
				t.Errorf("a secret of %d bytes", len(key))
			}
		}
	})
}

func FuzzParsePlaceFile(f *testing.F) {
	for _, seed := range []string{"", placeHeader, placeHeader + "\n", placeHeader + "::\n", placeHeader + "1774353600000000:~:1774353600000000\n", placeHeader + "1:~:\n\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if place, err := parsePlaceFile(text); err == nil && placeHeader+place.String()+"\n" != text {
			t.Errorf("%q is %q", text, place)
		}
	})
}
