package merge_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

	"github.com/scribe-mail/keysvc/clients/internal/merge"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/race"
)

const timeout = time.Second

// scripted is a keysvc whose faults a test chooses. Each answer names the key id that was asked
// for, and the revision at which the question arrived.
type scripted struct {
	keysvcv1.UnimplementedValidationServiceServer

	// revision grows with each change.
	revision atomic.Int64
	// single and batch are called for each call, after its questions were read; they may be nil. An
	// error ends the call. batch may change the answer.
	single func(ctx context.Context, request *keysvcv1.ValidateKeyRequest) error
	batch  func(ctx context.Context, answer *keysvcv1.BatchValidateKeysResponse) error

	mutex sync.Mutex
	// calls are the sizes of the calls, 0 for a ValidateKey. ended counts those whose client left.
	calls []int
	ended int
}

func (s *scripted) note(change func()) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	change()
}

func (s *scripted) sizes() (sizes []int) {
	s.note(func() { sizes = append(sizes, s.calls...) })
	return sizes
}

func (s *scripted) answer(request *keysvcv1.ValidateKeyRequest) *keysvcv1.ValidateKeyResponse {
	return &keysvcv1.ValidateKeyResponse{
		Decision: keysvcv1.Decision_DECISION_ALLOWED, KeyId: request.GetKeyId(), Revision: s.revision.Load(), ByDigest: true,
	}
}

func (s *scripted) ValidateKey(ctx context.Context, request *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
	answer := s.answer(request)
	s.note(func() { s.calls = append(s.calls, 0) })
	if s.single != nil {
		if err := s.single(ctx, request); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

func (s *scripted) BatchValidateKeys(ctx context.Context, request *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
	answer := &keysvcv1.BatchValidateKeysResponse{}
	for _, item := range request.GetRequests() {
		answer.Responses = append(answer.Responses, s.answer(item))
	}
	s.note(func() { s.calls = append(s.calls, len(request.GetRequests())) })
	if s.batch != nil {
		if err := s.batch(ctx, answer); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

// bubble runs a test with a Merger over a connection to a scripted server. No goroutine may be left
// at its end.
func bubble(t *testing.T, server *scripted, config merge.Config, test func(t *testing.T, merger *merge.Merger, conn *grpc.ClientConn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		listener := bufconn.Listen(1 << 20)
		grpcServer := grpc.NewServer()
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
		config.Validations, config.Timeout = keysvcv1.NewValidationServiceClient(conn), timeout
		merger := merge.New(config)
		defer merger.Close()
		defer conn.Close()
		test(t, merger, conn)
	})
}

func request(id string) *keysvcv1.ValidateKeyRequest {
	return &keysvcv1.ValidateKeyRequest{KeyId: id, TokenDigest: make([]byte, 32), RequiredScope: "signatures:read"}
}

// hold makes the calls of a server wait until the channel is closed.
func hold(server *scripted) (release chan struct{}) {
	release = make(chan struct{})
	wait := func(ctx context.Context) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			server.note(func() { server.ended++ })
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	server.single = func(ctx context.Context, _ *keysvcv1.ValidateKeyRequest) error { return wait(ctx) }
	server.batch = func(ctx context.Context, _ *keysvcv1.BatchValidateKeysResponse) error { return wait(ctx) }
	return release
}

// asking asks questions at once, each with a goroutine of its own, and returns when all of them
// wait.
func asking(t *testing.T, merger *merge.Merger, ctx context.Context, ids ...string) (wait func() map[string]error) { //nolint:revive // the test comes first
	t.Helper()
	var mutex sync.Mutex
	var running sync.WaitGroup
	failed := make(map[string]error)
	for _, id := range ids {
		running.Go(func() {
			answer, err := merger.Ask(ctx, request(id), nil)
			if err == nil && answer.GetKeyId() != id {
				t.Errorf("%s was answered about %s", id, answer.GetKeyId())
			}
			mutex.Lock()
			defer mutex.Unlock()
			failed[id] = err
		})
	}
	synctest.Wait()
	return func() map[string]error {
		running.Wait()
		return failed
	}
}

func names(count int) (ids []string) {
	for index := range count {
		ids = append(ids, fmt.Sprintf("key%d", index))
	}
	return ids
}

func equal(got, want []int) bool { return fmt.Sprint(got) == fmt.Sprint(want) }

func TestWhatWaitsGoesInTheNextCall(t *testing.T) {
	server := &scripted{}
	bubble(t, server, merge.Config{}, func(t *testing.T, merger *merge.Merger, _ *grpc.ClientConn) {
		release := hold(server)
		wait := asking(t, merger, t.Context(), names(20)...)
		if sizes := server.sizes(); !equal(sizes, []int{0, 0}) {
			t.Errorf("calls %v before any was answered; two alone are to be under way", sizes)
		}
		close(release)
		for id, err := range wait() {
			if err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
		if sizes := server.sizes(); !equal(sizes, []int{0, 0, 18}) {
			t.Errorf("calls %v; the other 18 are to go together", sizes)
		}
		if counts := merger.Counts(); counts != (merge.Counts{Batches: 1, Merged: 18}) {
			t.Errorf("counted %+v", counts)
		}
		for _, id := range names(3) { // one after another
			if err := asking(t, merger, t.Context(), id)()[id]; err != nil {
				t.Error(err)
			}
		}
		if sizes := server.sizes(); !equal(sizes, []int{0, 0, 18, 0, 0, 0}) {
			t.Errorf("calls %v; a lone question is to go alone", sizes)
		}
	})
}

func TestSeparateCallsAreNeverMerged(t *testing.T) {
	server := &scripted{}
	bubble(t, server, merge.Config{Separate: true}, func(t *testing.T, merger *merge.Merger, _ *grpc.ClientConn) {
		release := hold(server)
		wait := asking(t, merger, t.Context(), names(20)...)
		close(release)
		wait()
		if sizes := server.sizes(); !equal(sizes, make([]int, 20)) {
			t.Errorf("calls %v", sizes)
		}
	})
}

// A server that hangs must not hold back the questions that go to another.
func TestSlowCallsDoNotHoldOthersBack(t *testing.T) {
	server := &scripted{}
	slow := 2
	server.single = func(ctx context.Context, _ *keysvcv1.ValidateKeyRequest) error {
		hangs := false
		server.note(func() { slow--; hangs = slow >= 0 })
		if hangs {
			<-ctx.Done() // at the same moment as the client's
			return status.FromContextError(ctx.Err()).Err()
		}
		return nil
	}
	bubble(t, server, merge.Config{}, func(t *testing.T, merger *merge.Merger, _ *grpc.ClientConn) {
		hanging := asking(t, merger, t.Context(), "slow1", "slow2")
		began := time.Now()
		for id, err := range asking(t, merger, t.Context(), names(5)...)() {
			if err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
		if took := time.Since(began); took > 10*time.Millisecond {
			t.Errorf("took %s", took)
		}
		for id, err := range hanging() {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("%s: %v", id, err)
			}
		}
	})
}

// A caller that leaves disturbs nobody; when all have left, the call is cancelled.
func TestCallIsCancelledWhenAllItsCallersHaveLeft(t *testing.T) {
	server := &scripted{}
	bubble(t, server, merge.Config{}, func(t *testing.T, merger *merge.Merger, _ *grpc.ClientConn) {
		release := hold(server)
		server.single = nil
		// 1. Fill both calls, so that what follows goes in one batch each.
		first, leave := context.WithCancel(t.Context())
		defer leave()
		held := make(chan struct{})
		server.single = func(context.Context, *keysvcv1.ValidateKeyRequest) error { <-held; return nil }
		lone := asking(t, merger, t.Context(), "lone1", "lone2")
		leaving := asking(t, merger, first, "leaving1", "leaving2", "leaving3")
		staying := asking(t, merger, t.Context(), "staying1")
		close(held)
		synctest.Wait()
		// 2. Those who leave return at once, and the others' call goes on.
		leave()
		for id, err := range leaving() {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", id, err)
			}
		}
		synctest.Wait()
		server.note(func() {
			if server.ended != 0 {
				t.Error("the call was cancelled although a caller waits")
			}
		})
		// 3. A batch whose callers all leave is cancelled.
		second, leave := context.WithCancel(t.Context())
		defer leave()
		held = make(chan struct{})
		alone := asking(t, merger, t.Context(), "lone3")
		leaving = asking(t, merger, second, "leaving1", "leaving2")
		close(held)
		alone()
		synctest.Wait()
		leave()
		leaving()
		synctest.Wait()
		server.note(func() {
			if server.ended != 1 {
				t.Errorf("%d calls were cancelled; calls %v", server.ended, server.calls)
			}
		})
		close(release)
		lone()
		for id, err := range staying() {
			if err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
	})
}

// A batch that failed for one of its questions, or that the server does not take, becomes single
// calls; one that failed by itself fails each question as its own call would have.
func TestFailedBatches(t *testing.T) {
	for _, test := range []struct {
		name string
		// batch is the error of the batch; item is set if one item has it instead.
		batch codes.Code
		item  bool
		want  codes.Code
		calls []int
		// after are the calls for the same questions once more.
		after []int
	}{
		{name: "overloaded", batch: codes.ResourceExhausted, want: codes.ResourceExhausted, calls: []int{0, 0, 2}, after: []int{0, 0, 2}},
		{name: "not reached", batch: codes.Unavailable, want: codes.Unavailable, calls: []int{0, 0, 2}, after: []int{0, 0, 2}},
		{name: "caller unknown", batch: codes.Unauthenticated, want: codes.Unauthenticated, calls: []int{0, 0, 2}, after: []int{0, 0, 2}},
		{name: "no batches", batch: codes.Unimplemented, calls: []int{0, 0, 2, 0, 0}, after: []int{0, 0, 0, 0}},
		{name: "smaller batches", batch: codes.InvalidArgument, calls: []int{0, 0, 2, 0, 0}, after: []int{0, 0, 0, 0}},
		{name: "broken", batch: codes.Internal, calls: []int{0, 0, 2, 0, 0}, after: []int{0, 0, 2, 0, 0}},
		{name: "bad item", batch: codes.InvalidArgument, item: true, calls: []int{0, 0, 2, 0}, after: []int{0, 0, 2, 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := &scripted{}
			bubble(t, server, merge.Config{}, func(t *testing.T, merger *merge.Merger, _ *grpc.ClientConn) {
				for round, want := range [][]int{test.calls, test.after} {
					release := hold(server)
					server.batch = func(_ context.Context, answer *keysvcv1.BatchValidateKeysResponse) error {
						if test.item {
							answer.Responses[0] = &keysvcv1.ValidateKeyResponse{Error: &keysvcv1.ValidationError{Code: int32(test.batch)}}
							return nil
						}
						return status.Error(test.batch, "no")
					}
					before := len(server.sizes())
					wait := asking(t, merger, t.Context(), "first", "second")
					merged := asking(t, merger, t.Context(), "third", "fourth")
					close(release)
					for id, err := range wait() {
						if err != nil {
							t.Errorf("%s: %v", id, err)
						}
					}
					for id, err := range merged() {
						if status.Code(err) != test.want {
							t.Errorf("round %d, %s: %v, want %v", round, id, err, test.want)
						}
					}
					if sizes := server.sizes()[before:]; !equal(sizes, want) {
						t.Errorf("round %d: calls %v, want %v", round, sizes, want)
					}
				}
				if test.batch == codes.Unimplemented {
					time.Sleep(time.Minute) // a server that was upgraded is found
					release := hold(server)
					before := len(server.sizes())
					wait := asking(t, merger, t.Context(), names(5)...)
					close(release)
					wait()
					if sizes := server.sizes()[before:]; !equal(sizes, []int{0, 0, 3}) {
						t.Errorf("a minute later: calls %v", sizes)
					}
				}
			})
		})
	}
}

// Text that is not UTF-8 makes gRPC refuse a message. It must not fail the questions of others.
func TestWhatWouldSpoilABatchGoesAlone(t *testing.T) {
	server := &scripted{}
	bubble(t, server, merge.Config{}, func(t *testing.T, merger *merge.Merger, _ *grpc.ClientConn) {
		release := hold(server)
		wait := asking(t, merger, t.Context(), names(5)...)
		if _, err := merger.Ask(t.Context(), &keysvcv1.ValidateKeyRequest{WorkspaceId: "\xff"}, nil); status.Code(err) != codes.Internal {
			t.Errorf("not UTF-8: %v", err)
		}
		large := make([]byte, 17<<10)
		alone := make(chan error, 1)
		go func() {
			_, err := merger.Ask(t.Context(), &keysvcv1.ValidateKeyRequest{TokenDigest: large}, nil)
			alone <- err
		}()
		synctest.Wait()
		if sizes := server.sizes(); !equal(sizes, []int{0, 0, 0}) {
			t.Errorf("calls %v; the large one is to go at once", sizes)
		}
		close(release)
		wait()
		if err := <-alone; err != nil {
			t.Error(err)
		}
	})
}

// A call lasts as long as its most patient caller, and carries no question of a caller that left
// while it waited.
func TestCallLastsForItsMostPatientCaller(t *testing.T) {
	server := &scripted{}
	bubble(t, server, merge.Config{}, func(t *testing.T, merger *merge.Merger, _ *grpc.ClientConn) {
		held := make(chan struct{})
		server.single = func(context.Context, *keysvcv1.ValidateKeyRequest) error { <-held; return nil }
		server.batch = func(ctx context.Context, _ *keysvcv1.BatchValidateKeysResponse) error {
			select {
			case <-time.After(100 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return status.FromContextError(ctx.Err()).Err()
			}
		}
		lone := asking(t, merger, t.Context(), "lone1", "lone2")
		hasty, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		gone, leave := context.WithCancel(t.Context())
		first := asking(t, merger, hasty, "hasty")
		left := asking(t, merger, gone, "gone")
		second := asking(t, merger, t.Context(), "patient")
		leave()
		left()
		close(held)
		lone()
		if err := first()["hasty"]; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("hasty: %v", err)
		}
		if err := second()["patient"]; err != nil {
			t.Errorf("patient: %v", err)
		}
		if sizes := server.sizes(); !equal(sizes, []int{0, 0, 2}) {
			t.Errorf("calls %v; the question of a caller that left is not to be asked", sizes)
		}
	})
}

// What waits fails at once, without waiting for the calls under way.
func TestCloseFailsWhatWaits(t *testing.T) {
	server := &scripted{}
	bubble(t, server, merge.Config{}, func(t *testing.T, merger *merge.Merger, _ *grpc.ClientConn) {
		release := hold(server)
		lone := asking(t, merger, t.Context(), "lone1", "lone2")
		wait := asking(t, merger, t.Context(), names(5)...)
		began := time.Now()
		merger.Close()
		for id, err := range wait() {
			if status.Code(err) != codes.Unavailable || time.Since(began) > 0 {
				t.Errorf("%s: %v after %s", id, err, time.Since(began))
			}
		}
		close(release)
		lone()
	})
}

// A question that is asked after Close goes alone, and fails as calls do.
func TestCloseEndsWhatWaits(t *testing.T) {
	server := &scripted{}
	bubble(t, server, merge.Config{}, func(t *testing.T, merger *merge.Merger, conn *grpc.ClientConn) {
		hold(server)
		wait := asking(t, merger, t.Context(), names(5)...)
		conn.Close()
		merger.Close()
		for id, err := range wait() {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("%s: %v", id, err)
			}
		}
		if _, err := merger.Ask(t.Context(), request("late"), nil); status.Code(err) != codes.Unavailable {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// TestEveryCallerGetsItsOwnAnswer lets many callers ask at random, with deadlines and
// cancellations, a server that is slow, fails, answers items with errors and does not know batches
// for a time. Each caller gets the answer to its own question, as of a revision that is not older
// than the question, or an error that it may get; and none waits past its deadline.
func TestEveryCallerGetsItsOwnAnswer(t *testing.T) {
	for seed := range race.Rounds(20, 4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomCallers(t, uint64(seed)) })
	}
}

func randomCallers(t *testing.T, seed uint64) {
	t.Helper()
	server := &scripted{}
	var mutex sync.Mutex
	random := rand.New(rand.NewPCG(seed, 1))
	draw := func(below int) int {
		mutex.Lock()
		defer mutex.Unlock()
		return random.IntN(below)
	}
	trouble := []codes.Code{codes.Unavailable, codes.ResourceExhausted, codes.Internal, codes.Unimplemented, codes.InvalidArgument, codes.Unknown}
	// take spends time, and sometimes fails.
	take := func(ctx context.Context) error {
		select {
		case <-time.After(time.Duration(draw(4000)) * time.Microsecond):
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		switch draw(60) {
		case 0:
			return status.Error(trouble[draw(len(trouble))], "trouble")
		case 1:
			<-ctx.Done()
			return status.FromContextError(ctx.Err()).Err()
		}
		return nil
	}
	server.single = func(ctx context.Context, _ *keysvcv1.ValidateKeyRequest) error { return take(ctx) }
	server.batch = func(ctx context.Context, answer *keysvcv1.BatchValidateKeysResponse) error {
		switch draw(20) {
		case 0:
			answer.Responses[draw(len(answer.GetResponses()))] = &keysvcv1.ValidateKeyResponse{Error: &keysvcv1.ValidationError{Code: int32(codes.Unavailable)}}
		case 1:
			answer.Responses = answer.GetResponses()[1:]
		}
		return take(ctx)
	}
	bubble(t, server, merge.Config{}, func(t *testing.T, merger *merge.Merger, _ *grpc.ClientConn) {
		stop := make(chan struct{})
		var changing, callers sync.WaitGroup
		changing.Go(func() {
			for {
				select {
				case <-time.After(100 * time.Microsecond):
					server.revision.Add(1)
				case <-stop:
					return
				}
			}
		})
		for caller := range 32 {
			callers.Go(func() {
				for count := range 20 {
					// Callers ask the same and different questions.
					oneQuestion(t, server, merger, fmt.Sprintf("key%d", (caller+count)%12), draw)
					time.Sleep(time.Duration(draw(300)) * time.Microsecond)
				}
			})
		}
		callers.Wait()
		close(stop)
		changing.Wait()
		if merger.Counts().Batches == 0 {
			t.Error("nothing was merged")
		}
	})
}

// oneQuestion asks, and judges the answer.
func oneQuestion(t *testing.T, server *scripted, merger *merge.Merger, id string, draw func(int) int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	limit := timeout
	if draw(4) == 0 {
		limit = time.Duration(draw(8000)) * time.Microsecond
		if draw(2) == 0 {
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		} else {
			defer time.AfterFunc(limit, cancel).Stop()
		}
	}
	began, revision := time.Now(), server.revision.Load()
	answer, err := merger.Ask(ctx, request(id), nil)
	if took := time.Since(began); took > limit {
		t.Errorf("%s: waited %s of %s", id, took, limit)
	}
	switch {
	case err == nil && answer.GetKeyId() != id:
		t.Errorf("%s was answered about %s", id, answer.GetKeyId())
	case err == nil && answer.GetRevision() < revision:
		t.Errorf("%s was asked at revision %d and answered as of %d", id, revision, answer.GetRevision())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		if limit == timeout {
			t.Errorf("%s: %v, but its context has not ended", id, err)
		}
	case err != nil && status.Code(err) == codes.Unknown && status.Convert(err).Message() != "trouble":
		t.Errorf("%s: %v", id, err)
	}
}
