package nearcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/scribe-mail/keysvc/clients/internal/merge"
	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/race"
)

// scripted is a server whose answers a test writes. Each test runs in a bubble: time passes
// only while all goroutines wait, and no goroutine may be left at the end.
type scripted struct {
	keysvcv1.UnimplementedSyncServiceServer
	keysvcv1.UnimplementedValidationServiceServer

	// session holds a session after its hello. The default sends Welcome and answers pings.
	session func(stream syncStream) error
	// answer answers a batch. The default allows everything.
	answer func(ctx context.Context, request *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error)

	mutex   sync.Mutex
	opened  []time.Time
	pings   []time.Time
	uses    []*keysvcv1.KeyUse
	applied int
	closed  int
	batches []int
	// atOnce is the number of calls in progress, maxAtOnce its maximum.
	atOnce, maxAtOnce int
}

type syncStream = grpc.BidiStreamingServer[keysvcv1.SyncRequest, keysvcv1.SyncResponse]

// note changes a count under the lock.
func (s *scripted) note(change func()) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	change()
}

func (s *scripted) Sync(stream syncStream) error {
	s.note(func() { s.opened = append(s.opened, time.Now()) })
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if s.session != nil {
		return s.session(stream)
	}
	if err := stream.Send(welcome()); err != nil {
		return err
	}
	return s.serve(stream)
}

// serve answers pings and counts them, until the client closes the stream.
func (s *scripted) serve(stream syncStream) error {
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			s.note(func() { s.closed++ })
			return nil
		}
		if err != nil {
			return err
		}
		if request.GetApplied() != nil {
			s.note(func() { s.applied++ })
		}
		if ping := request.GetPing(); ping != nil {
			s.note(func() { s.pings, s.uses = append(s.pings, time.Now()), append(s.uses, ping.GetUses()...) })
			if err := stream.Send(&keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Pong{
				Pong: &keysvcv1.SyncPong{Nonce: ping.GetNonce(), Revision: ping.GetRevision()},
			}}); err != nil {
				return err
			}
		}
	}
}

func welcome() *keysvcv1.SyncResponse {
	return &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Welcome{Welcome: &keysvcv1.SyncWelcome{
		Epoch: "e", Revision: 10, Reset_: true, Staleness: durationpb.New(time.Second),
	}}}
}

func (s *scripted) BatchValidateKeys(ctx context.Context, request *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
	s.note(func() {
		s.batches = append(s.batches, len(request.GetRequests()))
		s.atOnce++
		s.maxAtOnce = max(s.maxAtOnce, s.atOnce)
	})
	defer s.note(func() { s.atOnce-- })
	if s.answer != nil {
		return s.answer(ctx, request)
	}
	time.Sleep(time.Millisecond)
	return allowing(request), nil
}

// ValidateKey is a batch of one, with the error of its item as its own.
func (s *scripted) ValidateKey(ctx context.Context, request *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
	answers, err := s.BatchValidateKeys(ctx, &keysvcv1.BatchValidateKeysRequest{Requests: []*keysvcv1.ValidateKeyRequest{request}})
	if err != nil {
		return nil, err
	}
	if len(answers.GetResponses()) != 1 {
		return &keysvcv1.ValidateKeyResponse{}, nil
	}
	answer := answers.GetResponses()[0]
	if problem := answer.GetError(); problem != nil {
		return nil, status.Error(codes.Code(problem.GetCode()), problem.GetMessage())
	}
	return answer, nil
}

// allowing answers every question with ALLOWED.
func allowing(request *keysvcv1.BatchValidateKeysRequest) *keysvcv1.BatchValidateKeysResponse {
	answers := &keysvcv1.BatchValidateKeysResponse{}
	for _, each := range request.GetRequests() {
		answer := response(nil)
		answer.Decision = keysvcv1.Decision_DECISION_ALLOWED
		answer.Principal = &keysvcv1.Principal{KeyId: "of " + each.GetToken(), WorkspaceId: "w", MemberId: "m", Role: "r"}
		answers.Responses = append(answers.Responses, answer)
	}
	return answers
}

// bubble runs a test with a Cache of a scripted server, in a bubble.
func bubble(t *testing.T, server *scripted, config Config, test func(t *testing.T, cache *Cache)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		listener := bufconn.Listen(1 << 20)
		grpcServer := grpc.NewServer()
		keysvcv1.RegisterSyncServiceServer(grpcServer, server)
		keysvcv1.RegisterValidationServiceServer(grpcServer, server)
		var serving sync.WaitGroup
		serving.Go(func() { grpcServer.Serve(listener) }) // it ends with Stop
		defer serving.Wait()
		defer grpcServer.Stop()
		conn, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		merger := merge.New(merge.Config{Validations: keysvcv1.NewValidationServiceClient(conn), Timeout: time.Second})
		defer merger.Close()
		config.Sync, config.Ask = keysvcv1.NewSyncServiceClient(conn), merger.Ask
		config.WithoutCall = func(*keyauth.Question) (keyauth.Answer, bool, error) { return keyauth.Answer{}, false, nil }
		config.Request = func(question keyauth.Question) *keysvcv1.ValidateKeyRequest {
			return &keysvcv1.ValidateKeyRequest{Token: question.Token, RequiredScope: question.Requirement.Scope()}
		}
		config.Read = func(_ *keyauth.Question, response *keysvcv1.ValidateKeyResponse) (keyauth.Answer, error) {
			answer := keyauth.Answer{Decision: response.GetDecision(), Reason: response.GetReason()}
			if principal := response.GetPrincipal(); principal != nil {
				answer.Principal = &keyauth.Principal{
					KeyID: principal.GetKeyId(), WorkspaceID: principal.GetWorkspaceId(), MemberID: principal.GetMemberId(), Role: principal.GetRole(),
				}
			}
			return answer, nil
		}
		cache := New(config)
		defer cache.Close()
		cache.want(time.Now()) // as the first question does
		synctest.Wait()
		test(t, cache)
	})
}

// ask asks a question, and fails the test if the answer is not ALLOWED.
func ask(t *testing.T, cache *Cache, number int) {
	t.Helper()
	if answer, err := cache.Validate(t.Context(), *question(number)); err != nil || answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
		t.Errorf("Validate = %+v, %v", answer, err)
	}
}

// An idle cache lets its lease end, and renews it when it is asked again (C1).
func TestIdleCacheStopsPingingUntilAsked(t *testing.T) {
	server := &scripted{}
	bubble(t, server, Config{}, func(t *testing.T, cache *Cache) {
		ask(t, cache, 1)
		time.Sleep(10 * time.Second)
		server.note(func() {
			if count := len(server.pings); count < 29 || count > 35 {
				t.Errorf("%d pings in 10 s; S/3 is between them, or a little less", count)
			}
		})
		time.Sleep(idleAfter)
		before := 0
		server.note(func() { before = len(server.pings) })
		time.Sleep(time.Hour)
		if snapshot := cache.Snapshot(); snapshot.Fresh != 0 || !snapshot.Connected || snapshot.Entries != 1 {
			t.Errorf("idle: %+v", snapshot)
		}
		server.note(func() {
			if len(server.pings) > before {
				t.Errorf("%d pings while nobody asks", len(server.pings)-before)
			}
		})
		ask(t, cache, 1) // the server is asked
		time.Sleep(time.Second)
		calls := len(server.batches)
		ask(t, cache, 1)
		if snapshot := cache.Snapshot(); snapshot.Fresh == 0 || len(server.batches) != calls {
			t.Errorf("in use again: %+v, %d calls", snapshot, len(server.batches)-calls)
		}
	})
}

// A cache that only answers from memory still pings, and reports the uses.
func TestHitsKeepTheLeaseRenewed(t *testing.T) {
	server := &scripted{}
	bubble(t, server, Config{}, func(t *testing.T, cache *Cache) {
		for range 300 {
			ask(t, cache, 1)
			time.Sleep(time.Second)
		}
		server.note(func() {
			// The entry lasts ten minutes, so there is one call until then.
			if len(server.batches) != 1 {
				t.Errorf("%d calls", len(server.batches))
			}
			if count := len(server.uses); count < 290 || count > 300 {
				t.Errorf("%d uses were reported of 300", count)
			}
			if last := server.uses[len(server.uses)-1]; last.GetKeyId() != "of token1" {
				t.Errorf("the use of %q", last.GetKeyId())
			}
		})
	})
}

// If the address of an argument escaped, a hit would cost an allocation.
func TestHitAllocatesNothing(t *testing.T) {
	bubble(t, &scripted{}, Config{}, func(t *testing.T, cache *Cache) {
		ask(t, cache, 1)
		ctx, question := t.Context(), *question(1)
		if count := testing.AllocsPerRun(100, func() { cache.Validate(ctx, question) }); count != 0 {
			t.Errorf("%v allocations for a hit", count)
		}
		if hits := cache.Snapshot().Hits; hits < 100 {
			t.Errorf("%d hits", hits)
		}
	})
}

// use lets time pass in which the cache is used.
func use(cache *Cache, during time.Duration) {
	for began := time.Now(); time.Since(began) < during; time.Sleep(10 * time.Second) {
		cache.want(time.Now())
	}
}

// A service that asks nothing holds no session, and a session that the server ends because nothing
// comes is not opened again before the next question.
func TestSessionsBeginWithAQuestion(t *testing.T) {
	server := &scripted{}
	server.session = func(stream syncStream) error {
		if err := stream.Send(welcome()); err != nil {
			return err
		}
		timer := time.AfterFunc(5*time.Minute, func() { stream.Send(farewell()) }) // the client was silent
		defer timer.Stop()
		ended := make(chan error, 1)
		go func() { ended <- server.serve(stream) }()
		select {
		case err := <-ended:
			return err
		case <-time.After(5*time.Minute + time.Second):
			return status.Error(codes.Unavailable, "goodbye")
		}
	}
	opened := func() (count int) {
		server.note(func() { count = len(server.opened) })
		return count
	}
	bubble(t, server, Config{}, func(t *testing.T, cache *Cache) {
		silent := New(cache.config)
		defer silent.Close()
		time.Sleep(time.Hour)
		if count := opened(); count != 1 || cache.Snapshot().Connected {
			t.Errorf("%d sessions in an hour in which nothing was asked after the first minute", count)
		}
		ask(t, cache, 1)
		synctest.Wait()
		if count := opened(); count != 2 || !cache.Snapshot().Connected {
			t.Errorf("%d sessions after a question; want one more", count)
		}
	})
}

// The second server accepts a session and then ends it at once.
func TestRefusedSessionsAreRetriedWithBackoff(t *testing.T) {
	for name, session := range map[string]func(syncStream) error{
		"refused":           func(syncStream) error { return status.Error(codes.Unavailable, "no") },
		"ended at once":     func(stream syncStream) error { return stream.Send(welcome()) },
		"sent away at once": func(stream syncStream) error { return errors.Join(stream.Send(welcome()), stream.Send(farewell())) },
		"not welcomed":      func(stream syncStream) error { return errors.Join(stream.Send(farewell()), stream.Context().Err()) },
	} {
		t.Run(name, func(t *testing.T) {
			server := &scripted{session: session}
			bubble(t, server, Config{}, func(t *testing.T, cache *Cache) {
				use(cache, 10*time.Minute)
				server.note(func() {
					// With full jitter, an average of 2.5 s between attempts.
					if count := len(server.opened); count < 150 || count > 400 {
						t.Errorf("%d attempts in ten minutes", count)
					}
					for index, at := range server.opened[1:] {
						if gap := at.Sub(server.opened[index]); gap > longestWait+time.Millisecond {
							t.Errorf("attempt %d came after %s", index+1, gap)
						}
					}
				})
				ask(t, cache, 1) // without a lease, the server answers
			})
		})
	}
}

func farewell() *keysvcv1.SyncResponse {
	return &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Goodbye{Goodbye: &keysvcv1.SyncGoodbye{}}}
}

func TestGoodbyeIsFollowedByTheNextSessionAtOnce(t *testing.T) {
	server := &scripted{}
	sessions := 0
	server.session = func(stream syncStream) error {
		if err := stream.Send(welcome()); err != nil {
			return err
		}
		if sessions++; sessions > 3 {
			return server.serve(stream)
		}
		timer := time.AfterFunc(time.Minute, func() { stream.Send(farewell()) }) // the client leaves
		defer timer.Stop()
		ended := make(chan error, 1)
		go func() { ended <- server.serve(stream) }()
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Minute + time.Millisecond):
			return status.Error(codes.Unavailable, "goodbye")
		}
	}
	bubble(t, server, Config{}, func(t *testing.T, cache *Cache) {
		use(cache, 4*time.Minute)
		server.note(func() {
			if len(server.opened) != 4 {
				t.Fatalf("%d sessions", len(server.opened))
			}
			for index, at := range server.opened[1:] {
				if gap := at.Sub(server.opened[index]); gap > time.Minute+2*time.Millisecond {
					t.Errorf("the next session came after %s", gap)
				}
			}
		})
		if snapshot := cache.Snapshot(); !snapshot.Connected || snapshot.Sessions != 4 {
			t.Errorf("%+v", snapshot)
		}
	})
}

// A message that this version does not understand drops everything (C8).
func TestUnknownMessagesDropEverything(t *testing.T) {
	server := &scripted{}
	server.session = func(stream syncStream) error {
		if err := stream.Send(welcome()); err != nil {
			return err
		}
		go server.serve(stream) // it ends with the stream
		select {
		case <-time.After(time.Minute):
			if err := stream.Send(&keysvcv1.SyncResponse{}); err != nil {
				return err
			}
		case <-stream.Context().Done():
		}
		<-stream.Context().Done()
		return nil
	}
	var resets, ended int
	hooks := Hooks{Reset: func() { resets++ }, SessionEnded: func(reason error) {
		if reason != nil {
			ended++
		}
	}}
	bubble(t, server, Config{Hooks: hooks}, func(t *testing.T, cache *Cache) {
		ask(t, cache, 1)
		time.Sleep(time.Minute)
		synctest.Wait()
		if snapshot := cache.Snapshot(); snapshot.Entries != 0 || snapshot.Fresh != 0 || resets < 2 || ended < 1 {
			t.Errorf("%+v, %d resets, %d sessions ended", snapshot, resets, ended)
		}
	})
}

// Many requests ask few questions at once, as after a Reset.
func TestEqualQuestionsAreAskedOnceInFewCalls(t *testing.T) {
	server := &scripted{}
	bubble(t, server, Config{}, func(t *testing.T, cache *Cache) {
		different := race.Rounds(2_000, 400)
		askers := 10 * different
		var asking sync.WaitGroup
		for number := range askers {
			asking.Go(func() { ask(t, cache, number%different) })
		}
		asking.Wait()
		total := 0
		for _, size := range server.batches {
			total += size
		}
		if total < different || total > different+different/2 {
			t.Errorf("%d askers of %d questions: %d went to the server, in %d calls, %d at once", askers, different, total, len(server.batches), server.maxAtOnce)
		}
		if len(server.batches) > 40 {
			t.Errorf("%d calls", len(server.batches))
		}
	})
}

// Questions that wait in the queue fail after the timeout, further questions at once.
func TestQuestionsBeyondTheQueueFailAtOnce(t *testing.T) {
	server := &scripted{answer: func(ctx context.Context, _ *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	bubble(t, server, Config{}, func(t *testing.T, cache *Cache) {
		began := time.Now()
		var busy, late atomic.Int64
		var asking sync.WaitGroup
		for number := range maxFlights + 5000 {
			asking.Go(func() {
				_, err := cache.Validate(t.Context(), *question(number))
				switch {
				case errors.Is(err, errBusy):
					busy.Add(1)
				case status.Code(err) == codes.Unavailable:
					late.Add(1)
				default:
					t.Errorf("question %d: %v", number, err)
				}
			})
		}
		asking.Wait()
		if passed := time.Since(began); passed != time.Second {
			t.Errorf("it took %s", passed)
		}
		if busy.Load() < 3000 || busy.Load()+late.Load() != maxFlights+5000 {
			t.Errorf("%d found the queue full, %d were not answered in time", busy.Load(), late.Load())
		}
	})
}

func TestAnswersThatMakeNoSenseAreErrors(t *testing.T) {
	answers := map[string]func(*keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error){
		"an error": func(*keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
			return nil, status.Error(codes.Internal, "no")
		},
		"an item's error": func(request *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
			response := allowing(request)
			response.Responses[0].Error = &keysvcv1.ValidationError{Code: int32(codes.InvalidArgument)}
			return response, nil
		},
		"an item's unknown error": func(request *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
			response := allowing(request)
			response.Responses[0].Error = &keysvcv1.ValidationError{Code: 99}
			return response, nil
		},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			server := &scripted{answer: func(_ context.Context, request *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
				return answer(request)
			}}
			bubble(t, server, Config{}, func(t *testing.T, cache *Cache) {
				got, err := cache.Validate(t.Context(), *question(1))
				if err == nil || got.Decision == keysvcv1.Decision_DECISION_ALLOWED || status.Code(err) == codes.Unauthenticated {
					t.Errorf("Validate = %+v, %v", got, err)
				}
			})
		})
	}
}

// After Close nothing is answered from memory; the server is told the last uses, and then the
// end (C11).
func TestCloseEndsAnswersBeforeTellingTheServer(t *testing.T) {
	server := &scripted{}
	bubble(t, server, Config{}, func(t *testing.T, cache *Cache) {
		ask(t, cache, 1)
		ask(t, cache, 1) // from memory
		cache.Close()
		if answer, err := cache.Validate(t.Context(), *question(1)); !errors.Is(err, errClosed) {
			t.Errorf("Validate = %+v, %v", answer, err)
		}
		synctest.Wait()
		server.note(func() {
			if server.closed != 1 || len(server.uses) != 1 {
				t.Errorf("%d streams were closed, %d uses reported", server.closed, len(server.uses))
			}
		})
		cache.Close() // again does nothing
	})
}

// A mark comes as a message, or with events.
func TestMarksAreAnswered(t *testing.T) {
	server := &scripted{}
	server.session = func(stream syncStream) error {
		for _, message := range []*keysvcv1.SyncResponse{
			welcome(),
			{Kind: &keysvcv1.SyncResponse_Events{Events: &keysvcv1.SyncEvents{Revision: 11, Mark: 11}}},
		} {
			if err := stream.Send(message); err != nil {
				return err
			}
		}
		time.AfterFunc(time.Second, func() {
			stream.Send(&keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Mark{Mark: &keysvcv1.SyncMark{Revision: 11}}})
		})
		return server.serve(stream)
	}
	bubble(t, server, Config{}, func(t *testing.T, _ *Cache) {
		server.note(func() {
			if server.applied != 1 {
				t.Errorf("%d answers to the mark with the events", server.applied)
			}
		})
		time.Sleep(2 * time.Second)
		server.note(func() {
			if server.applied != 2 {
				t.Errorf("%d answers to both marks", server.applied)
			}
		})
	})
}

func TestHooksAreCalled(t *testing.T) {
	var told []string
	var mutex sync.Mutex
	note := func(format string, arguments ...any) {
		mutex.Lock()
		defer mutex.Unlock()
		told = append(told, fmt.Sprintf(format, arguments...))
	}
	hooks := Hooks{
		Missed:       func() { note("missed") },
		Filled:       func(kept bool) { note("filled, kept: %t", kept) },
		Invalidated:  func(lag time.Duration) { note("invalidated after %s", lag) },
		Reset:        func() { note("reset") },
		SessionBegan: func() { note("began") },
		SessionEnded: func(reason error) { note("ended: %v", reason) },
	}
	server := &scripted{}
	server.session = func(stream syncStream) error {
		if err := stream.Send(welcome()); err != nil {
			return err
		}
		time.AfterFunc(time.Minute, func() {
			stream.Send(&keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Events{Events: &keysvcv1.SyncEvents{
				Revision: 12, Events: []*keysvcv1.SyncEvent{
					{Revision: 11, Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY, WorkspaceId: "w"},
					{Revision: 12, Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY, WorkspaceId: "w", Time: timestamppb.New(time.Now().Add(-3 * time.Second))},
					{Revision: 12, Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY, WorkspaceId: "w", Time: timestamppb.New(time.Now().Add(3 * time.Second))},
				},
			}}})
		})
		return server.serve(stream)
	}
	bubble(t, server, Config{Hooks: hooks}, func(t *testing.T, cache *Cache) {
		ask(t, cache, 1)
		ask(t, cache, 1)
		time.Sleep(2 * time.Minute)
		cache.Close()
		want := []string{"reset", "began", "missed", "filled, kept: true", "invalidated after 3s", "invalidated after 0s", "ended: <nil>"}
		if fmt.Sprint(told) != fmt.Sprint(want) {
			t.Errorf("told %q\nwant %q", told, want)
		}
	})
}

// A refusal is kept for a second, but there is no grant in it: the hook reports that nothing was
// kept, as the counters do.
func TestFilledHookReportsARefusalAsNotKept(t *testing.T) {
	server := &scripted{}
	server.answer = func(_ context.Context, request *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
		response := allowing(request)
		for _, each := range response.GetResponses() {
			each.Decision, each.Reason = keysvcv1.Decision_DECISION_UNAUTHENTICATED, keysvcv1.Reason_REASON_KEY_REVOKED
			each.Principal, each.Grant = nil, nil
		}
		return response, nil
	}
	var filled []bool
	bubble(t, server, Config{Hooks: Hooks{Filled: func(kept bool) { filled = append(filled, kept) }}}, func(t *testing.T, cache *Cache) {
		for range 2 {
			answer, err := cache.Validate(t.Context(), *question(1))
			if err != nil || answer.Decision != keysvcv1.Decision_DECISION_UNAUTHENTICATED {
				t.Fatalf("Validate = %+v, %v", answer, err)
			}
		}
		if snapshot := cache.Snapshot(); snapshot.Kept != 0 || snapshot.Unkept != 1 || snapshot.Refused != 1 {
			t.Errorf("%+v", snapshot)
		}
		if len(filled) != 1 || filled[0] {
			t.Errorf("the hook was called with %t, want once with false", filled)
		}
	})
}

// Rule 10 of keyauth.Watcher.
func TestWatchEndsWithTheKeyOrWithoutAnAnswer(t *testing.T) {
	server := &scripted{}
	var refuse, fail atomic.Bool
	server.answer = func(_ context.Context, request *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
		if fail.Load() {
			return nil, status.Error(codes.Unavailable, "no")
		}
		response := allowing(request)
		response.Responses[0].Grant.ValidFor = durationpb.New(20 * time.Second)
		if refuse.Load() {
			response.Responses[0] = &keysvcv1.ValidateKeyResponse{
				Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_EXPIRED, Epoch: "e", Revision: 10,
			}
		}
		return response, nil
	}
	bubble(t, server, Config{}, func(t *testing.T, cache *Cache) {
		time.AfterFunc(50*time.Second, func() { refuse.Store(true) })
		began := time.Now()
		answer, err := cache.Watch(t.Context(), *question(1))
		if passed := time.Since(began); err != nil || answer.Reason != keysvcv1.Reason_REASON_KEY_EXPIRED || passed < 60*time.Second || passed > 61*time.Second {
			t.Errorf("Watch = %+v, %v after %s", answer, err, passed)
		}
		refuse.Store(false)
		time.Sleep(2 * refusalLife)
		time.AfterFunc(50*time.Second, func() { fail.Store(true) })
		began = time.Now()
		answer, err = cache.Watch(t.Context(), *question(1))
		if passed := time.Since(began); status.Code(err) != codes.Unavailable || passed < 60*time.Second || passed > 61*time.Second {
			t.Errorf("Watch = %+v, %v after %s", answer, err, passed)
		}
		fail.Store(false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := cache.Watch(ctx, *question(1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Watch with a context that ended: %v", err)
		}
	})
}

func TestAnswersThatDoNotFitIntoABatchAreAskedAgain(t *testing.T) {
	const questions, fits = 100, 7
	server := &scripted{answer: func(_ context.Context, request *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
		answers := allowing(request)
		for index := fits; index < len(answers.GetResponses()); index++ {
			answers.Responses[index] = &keysvcv1.ValidateKeyResponse{Error: &keysvcv1.ValidationError{
				Code: int32(codes.ResourceExhausted), Reason: keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
			}}
		}
		return answers, nil
	}}
	bubble(t, server, Config{}, func(t *testing.T, cache *Cache) {
		var asking sync.WaitGroup
		for number := range questions {
			asking.Go(func() {
				if answer, err := cache.Validate(t.Context(), *question(number)); err != nil || answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
					t.Errorf("question %d: %v, %v", number, answer.Decision, err)
				}
			})
		}
		asking.Wait()
	})
}
