package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
)

// shortS is a staleness short enough for tests.
const shortS = 500 * time.Millisecond

func withShortS(settings *config.Settings) { settings.Staleness = shortS }

// session is the client's side of one Sync.
type session struct {
	*testing.T

	stream grpc.BidiStreamingClient[keysvcv1.SyncRequest, keysvcv1.SyncResponse]
	cancel context.CancelFunc
}

// dialSync opens a stream without a hello.
func (b *bench) dialSync(t *testing.T) *session {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	t.Cleanup(cancel)
	stream, err := b.sync.Sync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &session{T: t, stream: stream, cancel: cancel}
}

// join begins or resumes a session.
func (b *bench) join(t *testing.T, hello *keysvcv1.SyncHello) (*session, *keysvcv1.SyncWelcome) {
	t.Helper()
	s := b.dialSync(t)
	s.send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: hello}})
	welcome := s.next().GetWelcome()
	if welcome == nil {
		t.Fatal("something else than welcome came first")
	}
	return s, welcome
}

func (s *session) send(request *keysvcv1.SyncRequest) {
	s.Helper()
	if err := s.stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
		s.Fatal(err)
	}
}

func (s *session) ping(nonce uint64, revision int64, uses ...*keysvcv1.KeyUse) {
	s.Helper()
	s.send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: &keysvcv1.SyncPing{Nonce: nonce, Revision: revision, Uses: uses}}})
}

func (s *session) applied(revision int64) {
	s.Helper()
	s.send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Applied{Applied: &keysvcv1.SyncApplied{Revision: revision}}})
}

func (s *session) next() *keysvcv1.SyncResponse {
	s.Helper()
	response, err := s.stream.Recv()
	if err != nil {
		s.Fatal(err)
	}
	return response
}

// leased sends a ping and returns the pong.
func (s *session) leased(revision int64) *keysvcv1.SyncPong {
	s.Helper()
	s.ping(1, revision)
	for {
		if pong := s.next().GetPong(); pong != nil {
			return pong
		}
	}
}

// end returns the error that the stream ends with; nil if it ends with OK.
func (s *session) end() error {
	for {
		if _, err := s.stream.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// settled waits until no lease from before the start counts any more.
func (b *bench) settled(t *testing.T) {
	t.Helper()
	at := b.putMember(t, "settled", "ann", "owner")
	if _, err := b.await(t, at); err != nil {
		t.Fatal(err)
	}
}

// position is in the answer of every change.
type position interface {
	GetRevision() int64
	GetEpoch() string
}

func (b *bench) await(t *testing.T, at position) (*keysvcv1.AwaitRevisionResponse, error) {
	t.Helper()
	return b.sync.AwaitRevision(testContext(t), &keysvcv1.AwaitRevisionRequest{Revision: at.GetRevision(), Epoch: at.GetEpoch()})
}

// TestSyncResumesWhereItBroke follows a session from its welcome over changes and a broken
// connection to the changes that it missed.
func TestSyncResumesWhereItBroke(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	put := b.putMember(t, "acme", "ann", "owner")
	first, welcome := b.join(t, &keysvcv1.SyncHello{})
	if welcome.GetEpoch() != put.GetEpoch() || welcome.GetRevision() != put.GetRevision() || !welcome.GetReset_() ||
		welcome.GetStaleness().AsDuration() != time.Second || len(welcome.GetAuditHash()) != 32 || welcome.GetHashRevision() != put.GetRevision() {
		t.Errorf("got %v", welcome)
	}
	created := b.create(t, "acme", "ann", "emails:read")
	first.ping(7, welcome.GetRevision())
	events := first.next().GetEvents()
	if len(events.GetEvents()) != 1 || events.GetRevision() != created.GetRevision() {
		t.Fatalf("got %v", events)
	}
	event := events.GetEvents()[0]
	if event.GetKind() != keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY || event.GetSubject() != created.GetKey().GetKeyId() ||
		event.GetWorkspaceId() != "acme" || event.GetRevision() != created.GetRevision() || len(event.GetAuditHash()) != 32 {
		t.Errorf("got %v", event)
	}
	if pong := first.next().GetPong(); pong.GetNonce() != 7 || pong.GetRevision() != created.GetRevision() {
		t.Errorf("got %v", pong)
	}
	first.cancel()
	if err := first.end(); status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}

	revoked, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: created.GetKey().GetKeyId()})
	if err != nil {
		t.Fatal(err)
	}
	known := &keysvcv1.SyncHello{
		Epoch: welcome.GetEpoch(), Revision: events.GetRevision(), AuditHash: event.GetAuditHash(), HashRevision: event.GetRevision(),
	}
	second, resumed := b.join(t, known)
	if resumed.GetReset_() || resumed.GetRevision() != known.GetRevision() {
		t.Errorf("got %v", resumed)
	}
	if missed := second.next().GetEvents(); missed.GetRevision() != revoked.GetRevision() || len(missed.GetEvents()) != 1 {
		t.Errorf("got %v", missed)
	}
	for name, change := range map[string]func(*keysvcv1.SyncHello){
		"another epoch": func(h *keysvcv1.SyncHello) { h.Epoch = "other" },
		"another hash":  func(h *keysvcv1.SyncHello) { h.AuditHash = make([]byte, 32) },
		"beyond":        func(h *keysvcv1.SyncHello) { h.Revision = 1 << 40 },
	} {
		hello := &keysvcv1.SyncHello{Epoch: known.GetEpoch(), Revision: known.GetRevision(), AuditHash: known.GetAuditHash(), HashRevision: known.GetHashRevision()}
		change(hello)
		if _, got := b.join(t, hello); !got.GetReset_() || got.GetRevision() != revoked.GetRevision() {
			t.Errorf("%s: got %v", name, got)
		}
	}
	if got := b.server.Feed(); got.Sessions < 4 || got.Revision != revoked.GetRevision() {
		t.Errorf("got %+v", got)
	}

	// Another process on the same file still resumes the session.
	b.stop(t, patience)
	if began, ended := b.log.lines("sync session began"), b.log.lines("sync session ended"); len(began) != 5 || len(ended) != 5 {
		t.Errorf("%d sessions began in the log, and %d ended", len(began), len(ended))
	}
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	again := start(t, options{file: b.file, settings: func(s *config.Settings) { s.AllowClockBehind = true }})
	third, resumed := again.join(t, known)
	if resumed.GetReset_() || third.next().GetEvents().GetRevision() != revoked.GetRevision() {
		t.Errorf("after a restart: got %v", resumed)
	}
}

// TestSlowReaderIsReset: a client that does not read is reset, and gets nothing out of order
// before that.
func TestSlowReaderIsReset(t *testing.T) {
	t.Parallel()
	const workspaces, changes = 32, 60
	b := start(t, options{ringSize: 64})
	s, welcome := b.join(t, &keysvcv1.SyncHello{})
	var group sync.WaitGroup
	for number := range workspaces {
		group.Go(func() {
			for index := range changes {
				_, err := b.members.PutMember(testContext(t), &keysvcv1.PutMemberRequest{
					WorkspaceId: fmt.Sprint(long(100), number), MemberId: fmt.Sprint(long(100), index), Role: "owner",
					State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	last, resets := welcome.GetRevision(), 0
	newest := b.server.Feed().Revision
	for last < newest {
		switch kind := s.next().GetKind().(type) {
		case *keysvcv1.SyncResponse_Events:
			for _, event := range kind.Events.GetEvents() {
				if event.GetRevision() != last+1 {
					t.Fatalf("revision %d after %d", event.GetRevision(), last)
				}
				last++
			}
		case *keysvcv1.SyncResponse_Reset_:
			resets++
			last = kind.Reset_.GetRevision()
		}
	}
	if resets == 0 {
		t.Error("it was never reset")
	}
	if pong := s.leased(last); pong.GetRevision() != newest {
		t.Errorf("got %v", pong)
	}
}

// TestAwaitRevisionWaitsForEverySession waits for one session, in each state of it.
func TestAwaitRevisionWaitsForEverySession(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		session         func(b *bench, t *testing.T, change func())
		applied, lapsed int32
		least           time.Duration
	}{
		"none": {func(_ *bench, _ *testing.T, change func()) { change() }, 0, 0, 0},
		"without a lease": {func(b *bench, t *testing.T, change func()) {
			b.join(t, &keysvcv1.SyncHello{})
			change()
		}, 0, 0, 0},
		"applying": {func(b *bench, t *testing.T, change func()) {
			s, welcome := b.join(t, &keysvcv1.SyncHello{})
			s.leased(welcome.GetRevision())
			go func() {
				for {
					response, err := s.stream.Recv()
					if err != nil {
						return
					}
					if mark := max(response.GetMark().GetRevision(), response.GetEvents().GetMark()); mark != 0 {
						s.applied(mark)
					}
				}
			}()
			change()
		}, 1, 0, 0},
		"silent": {func(b *bench, t *testing.T, change func()) {
			s, welcome := b.join(t, &keysvcv1.SyncHello{})
			s.leased(welcome.GetRevision())
			change()
		}, 0, 1, shortS / 4},
		"disconnected": {func(b *bench, t *testing.T, change func()) {
			s, welcome := b.join(t, &keysvcv1.SyncHello{})
			s.leased(welcome.GetRevision())
			s.cancel()
			change()
		}, 0, 1, 0},
		"half-closed": {func(b *bench, t *testing.T, change func()) {
			s, welcome := b.join(t, &keysvcv1.SyncHello{})
			s.leased(welcome.GetRevision())
			if err := s.stream.CloseSend(); err != nil {
				t.Error(err)
			}
			if err := s.end(); err != nil {
				t.Errorf("it ends with %v", err)
			}
			change()
		}, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, options{settings: withShortS})
			b.settled(t)
			var at *keysvcv1.PutMemberResponse
			test.session(b, t, func() { at = b.putMember(t, "acme", "ann", "owner") })
			began := time.Now()
			got, err := b.await(t, at)
			took := time.Since(began)
			if err != nil || got.GetApplied() != test.applied || got.GetLapsed() != test.lapsed || took < test.least ||
				got.GetRevision() < at.GetRevision() || got.GetEpoch() != at.GetEpoch() {
				t.Errorf("got %v, %v after %s", got, err, took)
			}
		})
	}
}

// TestAwaitRevisionWaitsForLeasesFromBeforeTheStart waits for leases that an earlier process
// granted (S4).
func TestAwaitRevisionWaitsForLeasesFromBeforeTheStart(t *testing.T) {
	t.Parallel()
	b := start(t, options{settings: func(s *config.Settings) { s.Staleness = time.Second }})
	at := b.putMember(t, "acme", "ann", "owner")
	if got, err := b.await(t, at); err != nil || got.GetLapsed() != 1 || got.GetApplied() != 0 {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := b.await(t, at); err != nil || got.GetLapsed() != 0 {
		t.Errorf("once it is over: got %v, %v", got, err)
	}
	_, err := b.sync.AwaitRevision(testContext(t), &keysvcv1.AwaitRevisionRequest{Revision: at.GetRevision() + 1, Epoch: at.GetEpoch()})
	expectError(t, err, codes.Unavailable, "REVISION_NOT_REACHED")
}

// TestSyncNotesReportedUses: uses that near-caches report are noted, if they are plausible.
func TestSyncNotesReportedUses(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	created := b.create(t, "acme", "ann", "emails:read").GetKey()
	b.clock.pass(time.Hour)
	s, welcome := b.join(t, &keysvcv1.SyncHello{})
	lastUsed := func() time.Time {
		t.Helper()
		got, err := b.keys.GetKey(testContext(t), &keysvcv1.GetKeyRequest{KeyId: created.GetKeyId()})
		if err != nil {
			t.Fatal(err)
		}
		if got.GetKey().GetLastUsedTime() == nil {
			return time.Time{}
		}
		return got.GetKey().GetLastUsedTime().AsTime()
	}
	report := func(keyID string, at time.Time) {
		t.Helper()
		s.ping(1, welcome.GetRevision(), &keysvcv1.KeyUse{KeyId: keyID, Time: timestamppb.New(at)})
		s.next()
	}
	report("0123456789abcdef", b.clock.in(0).AsTime())
	if got := lastUsed(); !got.IsZero() {
		t.Errorf("used at %s", got)
	}
	report(created.GetKeyId(), testTime.Add(-time.Hour))
	if got := lastUsed(); !got.Equal(created.GetCreateTime().AsTime()) {
		t.Errorf("before it was created: used at %s", got)
	}
	use := testTime.Add(time.Minute)
	report(created.GetKeyId(), use)
	if got := lastUsed(); !got.Equal(use) {
		t.Errorf("used at %s, want %s", got, use)
	}
	report(created.GetKeyId(), use.Add(-time.Second))
	if got := lastUsed(); !got.Equal(use) {
		t.Errorf("an older use: used at %s, want %s", got, use)
	}
	report(created.GetKeyId(), testTime.Add(24*time.Hour))
	if got := lastUsed(); got.After(b.clock.in(0).AsTime()) || !got.After(use) {
		t.Errorf("a use that is to come: used at %s", got)
	}
}

// TestSyncRefusesMessagesOutOfOrder sends well-formed messages at the wrong time.
func TestSyncRefusesMessagesOutOfOrder(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	hello := &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}
	ping := &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: &keysvcv1.SyncPing{Nonce: 1}}}
	applied := &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Applied{Applied: &keysvcv1.SyncApplied{}}}
	beyond := &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Applied{Applied: &keysvcv1.SyncApplied{Revision: 99}}}
	for name, test := range map[string]struct {
		says  []*keysvcv1.SyncRequest
		field string
	}{
		"ping first":         {[]*keysvcv1.SyncRequest{ping}, "ping"},
		"applied first":      {[]*keysvcv1.SyncRequest{applied}, "applied"},
		"nothing first":      {[]*keysvcv1.SyncRequest{{}}, "kind"},
		"hello twice":        {[]*keysvcv1.SyncRequest{hello, hello}, "hello"},
		"nothing":            {[]*keysvcv1.SyncRequest{hello, ping, {}}, "kind"},
		"what was never":     {[]*keysvcv1.SyncRequest{hello, beyond}, "applied.revision"},
		"no mistake":         {[]*keysvcv1.SyncRequest{hello, ping, applied, ping}, ""},
		"leaves after hello": {[]*keysvcv1.SyncRequest{hello}, ""},
		"leaves at once":     {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := b.dialSync(t)
			for _, request := range test.says {
				s.send(request)
			}
			if err := s.stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			err := s.end()
			if test.field == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			found := expectError(t, err, codes.InvalidArgument, "FIELD_INVALID")
			if violations := found.bad.GetFieldViolations(); len(violations) != 1 || violations[0].GetField() != test.field {
				t.Errorf("got %v, want a violation of %s", violations, test.field)
			}
		})
	}
}

// TestSyncBoundsSessionsAndMessages: the number of sessions has a bound, and the rate of
// messages on each.
func TestSyncBoundsSessionsAndMessages(t *testing.T) {
	t.Parallel()
	b := start(t, options{settings: func(s *config.Settings) { s.MaxSessions, s.Staleness = 1, time.Minute }})
	first, welcome := b.join(t, &keysvcv1.SyncHello{})
	second := b.dialSync(t)
	second.send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}})
	if found := expectError(t, second.end(), codes.ResourceExhausted, "TOO_MANY_REQUESTS"); found.retry == nil {
		t.Error("it is not told when to try again")
	}
	for range 200 {
		first.ping(1, welcome.GetRevision())
	}
	expectError(t, first.end(), codes.ResourceExhausted, "TOO_MANY_REQUESTS")
	// There is room for a session again.
	b.join(t, &keysvcv1.SyncHello{})
}

// TestStopSaysGoodbye: a stop does not wait for sessions, nor for their leases.
func TestStopSaysGoodbye(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	silent := b.dialSync(t) // has not said hello
	var sessions []*session
	for range 5 {
		s, welcome := b.join(t, &keysvcv1.SyncHello{})
		s.leased(welcome.GetRevision())
		sessions = append(sessions, s)
	}
	began := time.Now()
	b.stop(t, patience)
	if took := time.Since(began); took > patience/2 {
		t.Errorf("the stop took %s", took)
	}
	for _, s := range sessions {
		if s.next().GetGoodbye() == nil {
			t.Error("something else than goodbye came")
		}
		if err := s.end(); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
	}
	if err := silent.end(); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}

// TestSyncEndsSilentAndOldStreams: a stream without a hello ends, a session whose client says
// nothing ends, and one whose client goes on pinging ends when it is old.
func TestSyncEndsSilentAndOldStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, options{})
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		stream, err := b.sync.Sync(ctx)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err = stream.Recv()
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v, want DEADLINE_EXCEEDED", err)
		}
		if took := time.Since(began); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("it took %s", took)
		}

		stream, err = b.sync.Sync(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		s := &session{T: t, stream: stream}
		s.next()
		if s.next().GetGoodbye() == nil {
			t.Error("something else than goodbye came")
		}
		// A client that says nothing stays for 5 minutes, up to a tenth more or less.
		if took := time.Since(began); took < 4*time.Minute || took > 6*time.Minute {
			t.Errorf("it took %s", took)
		}
		if err := s.end(); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}

		// A client that pings stays for session-age, an hour, up to a tenth more or less.
		began = time.Now()
		stream, err = b.sync.Sync(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s = &session{T: t, stream: stream}
		s.send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}})
		revision, pongs := s.next().GetWelcome().GetRevision(), 0
		over := make(chan struct{})
		go func() {
			ticker := time.NewTicker(time.Minute)
			defer ticker.Stop()
			for {
				_ = stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: &keysvcv1.SyncPing{Nonce: 1, Revision: revision}}})
				select {
				case <-ticker.C:
				case <-over:
					return
				}
			}
		}()
		for response := s.next(); response.GetGoodbye() == nil; response = s.next() {
			if response.GetPong() != nil {
				pongs++
			}
		}
		close(over)
		if took := time.Since(began); took < 54*time.Minute || took > 66*time.Minute || pongs < 50 {
			t.Errorf("it took %s, and %d pings were answered", took, pongs)
		}
		if err := s.end(); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
		b.stop(t, patience)
	})
}
