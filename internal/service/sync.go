package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/budget"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/feed"
	"github.com/scribe-mail/keysvc/internal/patience"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/validation"
)

const (
	// MaxUses is how many uses one ping may report.
	MaxUses = 4096
	// MaxDecisions is how many counts of decisions one ping may report, and maxDecisionCount the largest.
	MaxDecisions     = 16
	maxDecisionCount = 1_000_000_000
	// maxEpochLength is the max length of an epoch, in bytes; real ones are shorter.
	maxEpochLength = 128
	// hashLength is the length of an audit event's hash, in bytes.
	hashLength = 32
	// helloTimeout bounds how long a stream may be open without a hello.
	helloTimeout = 10 * time.Second
	// publishedTimeout bounds the wait of AwaitRevision for a revision that validations do not
	// reflect yet.
	publishedTimeout = time.Second
)

// SyncService implements keysvcv1.SyncServiceServer.
type SyncService struct {
	keysvcv1.UnimplementedSyncServiceServer
	hub        *feed.Hub
	projection *projection.Projection
	validator  *validation.Validator
	errors     Errors
	encoded    encoded
	// decided counts decisions of near-caches by the number of their reason; nil if nobody counts them.
	decided func(reason int, count int64)
}

// NewSync returns the service over the Hub that the projection publishes to. The uses that clients
// report go to the validator.
func NewSync(hub *feed.Hub, projection *projection.Projection, validator *validation.Validator, errors Errors) *SyncService {
	return &SyncService{hub: hub, projection: projection, validator: validator, errors: errors}
}

// CountDecisions makes the service call a function for the decisions that near-caches report, with the
// number of their reason. It must be called before the service is used.
func (s *SyncService) CountDecisions(count func(reason int, count int64)) { s.decided = count }

// errGaveUp ends a session whose client has closed its half of the stream.
var errGaveUp = errors.New("the client gave up its lease")

// visibleTo returns the workspaces that the caller of a session hears of: those that it may validate
// in. Error: CALLER_UNKNOWN or CALLER_NOT_ALLOWED for a caller without any.
func visibleTo(identity *callers.Identity) (access.Workspaces, error) {
	visible := identity.For(access.Validate)
	switch {
	case !identity.May(access.Known):
		return access.Workspaces{}, problem.New(problem.CallerUnknown, "the caller is not known, or no longer")
	case visible.IsEmpty():
		return access.Workspaces{}, problem.New(problem.CallerNotAllowed, "the caller may not validate, or no longer")
	}
	return visible, nil
}

// Sync implements keysvcv1.SyncServiceServer. This goroutine sends, and a second one (syncReader)
// receives. Recv cannot be interrupted, so the goroutine that has to end when the server stops must
// not receive.
func (s *SyncService) Sync(stream grpc.BidiStreamingServer[keysvcv1.SyncRequest, keysvcv1.SyncResponse]) error {
	ctx := stream.Context()
	reader := &syncReader{
		service: s, stream: stream, live: callers.LiveFromContext(ctx),
		hello: make(chan *keysvcv1.SyncHello, 1), opened: make(chan *feed.Session, 1), ended: make(chan error, 1),
	}
	// The reader ends with the stream, which ends when Sync returns, if not before.
	go reader.run()
	defer close(reader.opened)
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	select {
	case hello := <-reader.hello:
		rights := watchRights(reader.live)
		session, err := s.open(ctx, hello, rights)
		if err != nil {
			return s.status(ctx, err)
		}
		timer.Stop()
		reader.opened <- session
		return s.run(ctx, stream, session, rights, reader.ended)
	case err := <-reader.ended:
		return s.status(ctx, err)
	case <-timer.C:
		var fields problem.Fields
		fields.Add("hello", "did not come within %s; it is the first message", helloTimeout)
		return s.status(ctx, fields.Err())
	case <-ctx.Done():
		return s.status(ctx, ctx.Err())
	}
}

// open begins a session. The barrier is taken after the hello has come, so the session reflects what
// was acknowledged before. A client that has applied revisions beyond the barrier was served from
// another history of this store: the store was rolled back. The hub resets such a client, and open
// logs an error, because an operator must know.
func (s *SyncService) open(ctx context.Context, hello *keysvcv1.SyncHello, rights *rights) (*feed.Session, error) {
	visible, err := visibleTo(rights.identity)
	if err != nil {
		return nil, err
	}
	if err := s.projection.Fresh(ctx); err != nil {
		return nil, err
	}
	session, err := s.hub.Open(hello, visible)
	if err == nil && session.Ahead() {
		s.errors.Log.ErrorContext(ctx, "a near-cache has applied changes that this store does not have: the store was rolled back, or the caller is wrong",
			"caller", callers.FromContext(ctx).CallerName(), "applied", hello.GetRevision(), "revision", s.hub.Revision())
	}
	return session, err
}

// run sends a session's messages until the session ends, and returns its status.
func (s *SyncService) run(
	ctx context.Context, stream grpc.ServerStreamingServer[keysvcv1.SyncResponse], session *feed.Session, rights *rights, ended <-chan error,
) error {
	s.errors.Log.DebugContext(ctx, "sync session began", "caller", callers.FromContext(ctx).CallerName())
	err := s.send(stream, session, rights, ended)
	session.Close(errors.Is(err, errGaveUp))
	s.errors.Log.DebugContext(ctx, "sync session ended", slog.Any("reason", err))
	return s.status(ctx, err)
}

// errOver is the status of a session that was sent its last message.
var errOver = status.Error(codes.Unavailable, "the server stops, or the session has become old: connect again")

// rights are what the caller of a session was when they were looked at last, and a channel that is
// closed when the caller's identity changes.
type rights struct {
	live     *callers.Live
	identity *callers.Identity
	changed  <-chan struct{}
}

func watchRights(live *callers.Live) *rights {
	identity, changed := live.Watch()
	return &rights{live: live, identity: identity, changed: changed}
}

// refresh looks at the caller again if its identity has changed, and tells the session what the
// caller sees now (S7). The error ends the session: the caller may no longer validate at all.
func (r *rights) refresh(session *feed.Session) error {
	select {
	case <-r.changed:
	default:
		return nil
	}
	*r = *watchRights(r.live)
	visible, err := visibleTo(r.identity)
	if err == nil {
		session.See(visible)
	}
	return err
}

// send sends a session's messages until the session ends. It waits for the session's wake-ups, and
// for a change of the caller's rights. A change of the store wakes the session, and so does the
// reader when the stream has ended, and the timer when the session's age ends.
func (s *SyncService) send(
	stream grpc.ServerStreamingServer[keysvcv1.SyncResponse], session *feed.Session, rights *rights, ended <-chan error,
) error {
	timer := time.AfterFunc(helloTimeout, session.Wake)
	defer timer.Stop()
	var due time.Time
	for {
		// 1. Look at the caller's rights before each message, because a busy session never waits in
		// step 5.
		if err := rights.refresh(session); err != nil {
			return err
		}
		// 2. Send the next message, if there is one.
		step := session.Next()
		if step.Response != nil {
			if err := s.encoded.send(stream, step.Response); err != nil {
				return err
			}
		}
		if step.Last {
			return errOver
		}
		// 3. Look whether the reader has ended. It writes to ended before it wakes the session, and
		// step.Wait keeps a wake-up until step 5, so an end after this look is not missed.
		select {
		case err := <-ended:
			return err
		default:
		}
		// 4. Wait only if there was nothing to send.
		if step.Wait == nil {
			continue
		}
		// 5. Wait. The timer is set unless it still runs: step.Within always leads to the same
		// moment.
		if now := time.Now(); !now.Before(due) {
			due = now.Add(step.Within)
			timer.Reset(step.Within)
		}
		select {
		case <-step.Wait:
		case <-rights.changed:
		}
	}
}

// encoded holds the message that was encoded last. A thousand sessions send the same message, so it
// is encoded once.
type encoded struct {
	newest atomic.Pointer[encodedResponse]
}

// encodedResponse is a response with its encoding. It implements budget.Shared.
type encodedResponse struct {
	*keysvcv1.SyncResponse
	wire []byte
}

// Wire implements budget.Shared.
func (r *encodedResponse) Wire() []byte { return r.wire }

// send sends a response. It encodes the response unless that was the last one to be encoded. The
// server does not compress, so the encoding is the same for each stream.
func (e *encoded) send(stream grpc.ServerStream, response *keysvcv1.SyncResponse) error {
	if response.GetEvents() == nil {
		return stream.SendMsg(response)
	}
	newest := e.newest.Load()
	if newest == nil || newest.SyncResponse != response {
		wire, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 0, max(proto.Size(response), budget.MinSharedCapacity)), response)
		if err != nil {
			return status.Error(codes.Internal, "internal error")
		}
		newest = &encodedResponse{SyncResponse: response, wire: wire}
		e.newest.Store(newest)
	}
	return stream.SendMsg(newest)
}

// status maps the error that ended a session to a status.
func (s *SyncService) status(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, errGaveUp):
		return nil
	case errors.Is(err, feed.ErrStopping):
		return errOver
	case errors.Is(err, feed.ErrNoStaleness):
		return status.Error(codes.Unavailable, "the staleness bound in the store cannot be read, so no session can begin")
	case errors.Is(err, feed.ErrTooMany):
		err = problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
			"there are as many sessions as the server allows; connect to another one, or later")
	case errors.Is(err, feed.ErrTooFast):
		err = problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
			"far more pings came than leases need: one every third of %s will do", s.hub.Staleness())
	default:
		if _, isStatus := status.FromError(err); isStatus {
			return err // from the stream, which has made it a status
		}
	}
	return s.errors.Status(ctx, err)
}

// syncReader receives the messages of one session's client.
type syncReader struct {
	service *SyncService
	stream  grpc.BidiStreamingServer[keysvcv1.SyncRequest, keysvcv1.SyncResponse]
	live    *callers.Live
	// hello gets the client's hello. opened gets the session that was opened for the hello. It
	// is closed when Sync returns, without a session if the hello was refused.
	hello  chan *keysvcv1.SyncHello
	opened chan *feed.Session
	// ended gets the reason when the reader ends.
	ended chan error
}

// run receives until the stream ends or a message is refused, and writes the reason to ended. It
// writes before it wakes the session, because the sender looks at ended when it is woken.
func (r *syncReader) run() {
	session, err := r.begin()
	if session != nil {
		err = r.read(session)
	}
	r.ended <- err
	if session != nil {
		session.Wake()
	}
}

// begin receives the hello and waits for the session; nil if the hello was refused.
func (r *syncReader) begin() (*feed.Session, error) {
	request, err := r.stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, errGaveUp
	}
	if err != nil {
		return nil, err
	}
	hello, isHello := request.GetKind().(*keysvcv1.SyncRequest_Hello)
	if !isHello {
		return nil, misplaced(request, "came before hello, which is the first message")
	}
	if err := checkHello(hello.Hello); err != nil {
		return nil, err
	}
	r.hello <- hello.Hello
	return <-r.opened, nil
}

// read receives until the stream ends or a message is refused, and returns the reason.
func (r *syncReader) read(session *feed.Session) error {
	for {
		request, err := r.stream.Recv()
		arrived := r.service.hub.Now() // at once, because a lease begins when its ping arrives
		if errors.Is(err, io.EOF) {
			return errGaveUp
		}
		if err == nil {
			err = r.take(session, request, arrived)
		}
		if err != nil {
			return err
		}
	}
}

// take handles a message after the hello.
func (r *syncReader) take(session *feed.Session, request *keysvcv1.SyncRequest, arrived time.Time) error {
	switch kind := request.GetKind().(type) {
	case *keysvcv1.SyncRequest_Ping:
		if err := checkPing(kind.Ping); err != nil {
			return err
		}
		// 1. Record the uses before the pong is sent, so that a client that has the pong sees its
		// uses recorded.
		identity, _ := r.live.Watch()
		for _, use := range kind.Ping.GetUses() {
			r.service.validator.UsedElsewhere(use.GetKeyId(), use.GetSecretTag(), use.GetTime().AsTime(), identity.For(access.Validate))
		}
		if r.service.decided != nil {
			for _, each := range kind.Ping.GetDecisions() {
				r.service.decided(int(each.GetReason()), each.GetCount())
			}
		}
		// 2. Take the pong's barrier after the ping has arrived (S2): the pong promises every change
		// that was acknowledged before.
		if err := r.service.projection.Fresh(r.stream.Context()); err != nil {
			return err
		}
		return beyond(session.Ping(kind.Ping.GetNonce(), kind.Ping.GetRevision(), arrived), "ping.revision")
	case *keysvcv1.SyncRequest_Applied:
		var fields problem.Fields
		if kind.Applied.GetRevision() < 0 {
			fields.Add("applied.revision", "is negative")
			return fields.Err()
		}
		return beyond(session.Applied(kind.Applied.GetRevision()), "applied.revision")
	}
	return misplaced(request, "came again; it is the first message, once")
}

// beyond maps feed.ErrBeyond to the error of a field. Other errors stay as they are.
func beyond(err error, field string) error {
	if !errors.Is(err, feed.ErrBeyond) {
		return err
	}
	var fields problem.Fields
	fields.Add(field, "is beyond what was sent in this session; a revision that was sent, or an earlier one, is required")
	return fields.Err()
}

// misplaced returns the error for a message that may not come at this moment, or whose kind is not
// known.
func misplaced(request *keysvcv1.SyncRequest, why string) error {
	var fields problem.Fields
	switch request.GetKind().(type) {
	case *keysvcv1.SyncRequest_Hello:
		fields.Add("hello", "%s", why)
	case *keysvcv1.SyncRequest_Ping:
		fields.Add("ping", "%s", why)
	case *keysvcv1.SyncRequest_Applied:
		fields.Add("applied", "%s", why)
	default:
		fields.Add("kind", "is missing, or newer than this server; one of hello, ping and applied is required")
	}
	return fields.Err()
}

// checkHello checks the form of a hello.
func checkHello(hello *keysvcv1.SyncHello) error {
	var fields problem.Fields
	within := fields.Within("hello")
	if len(hello.GetEpoch()) > maxEpochLength {
		within.Add("epoch", "has more than %d bytes; the one that welcome gave is required, or none", maxEpochLength)
	}
	if hello.GetRevision() < 0 {
		within.Add("revision", "is negative")
	}
	if length := len(hello.GetAuditHash()); length != 0 && length != hashLength {
		within.Add("audit_hash", "has %d bytes; %d are required, or none", length, hashLength)
	}
	if length := len(hello.GetVisibleWorkspaces()); length != 0 && length != access.FingerprintLength {
		within.Add("visible_workspaces", "has %d bytes; %d are required, or none", length, access.FingerprintLength)
	}
	if hello.GetHashRevision() < 0 || hello.GetHashRevision() > max(hello.GetRevision(), 0) {
		within.Add("hash_revision", "is negative, or beyond revision")
	}
	return fields.Err()
}

// checkPing checks the form of a ping.
func checkPing(ping *keysvcv1.SyncPing) error {
	var fields problem.Fields
	within := fields.Within("ping")
	if ping.GetNonce() == 0 {
		within.Add("nonce", "is missing")
	}
	if ping.GetRevision() < 0 {
		within.Add("revision", "is negative")
	}
	if count := len(ping.GetUses()); count > MaxUses {
		within.Add("uses", "has %d items; %d are allowed", count, MaxUses)
		return fields.Err()
	}
	for index, use := range ping.GetUses() {
		within := within.Within(fmt.Sprintf("uses[%d]", index))
		if !token.ValidID(use.GetKeyId()) {
			within.Add("key_id", "is not the id of a key")
		}
		if use.GetTime().CheckValid() != nil {
			within.Add("time", "is missing, or no time between the years 1 and 9999")
		}
	}
	if count := len(ping.GetDecisions()); count > MaxDecisions {
		within.Add("decisions", "has %d items; %d are allowed", count, MaxDecisions)
		return fields.Err()
	}
	for index, each := range ping.GetDecisions() {
		if count := each.GetCount(); count < 1 || count > maxDecisionCount {
			within.Within(fmt.Sprintf("decisions[%d]", index)).Add("count", "is %d; 1 to %d are allowed", count, maxDecisionCount)
		}
	}
	return fields.Err()
}

// AwaitRevision implements keysvcv1.SyncServiceServer.
func (s *SyncService) AwaitRevision(ctx context.Context, request *keysvcv1.AwaitRevisionRequest) (*keysvcv1.AwaitRevisionResponse, error) {
	response, err := s.await(ctx, request)
	return response, s.errors.Status(ctx, err)
}

func (s *SyncService) await(ctx context.Context, request *keysvcv1.AwaitRevisionRequest) (*keysvcv1.AwaitRevisionResponse, error) {
	var fields problem.Fields
	if request.GetRevision() < 1 {
		fields.Add("revision", "is less than 1; the revision of a change is required")
	}
	if request.GetEpoch() == "" {
		fields.Add("epoch", "is missing; the one that came with the revision is required")
	}
	if err := fields.Err(); err != nil {
		return nil, err
	}
	if request.GetEpoch() != s.hub.Epoch() {
		return nil, problem.New(keysvcv1.ErrorReason_ERROR_REASON_EPOCH_MISMATCH,
			"the revision belongs to another epoch than the store's, so it will not come")
	}
	if err := s.projection.Fresh(ctx); err != nil {
		return nil, err
	}
	if err := s.published(ctx, request.GetRevision()); err != nil {
		return nil, err
	}
	outcome, err := s.hub.AwaitRevision(ctx, request.GetRevision())
	if err != nil {
		return nil, err
	}
	return &keysvcv1.AwaitRevisionResponse{
		Applied:  int32(outcome.Applied), //nolint:gosec // config bounds the number of sessions
		Lapsed:   int32(outcome.Lapsed),  //nolint:gosec // as above, and the sessions that ended within S
		Revision: s.hub.Revision(),
		Epoch:    s.hub.Epoch(),
	}, nil
}

// published returns once this server's validations reflect a revision. By then the hub has it, too:
// the projection publishes a change to the hub before it shows the change.
func (s *SyncService) published(ctx context.Context, revision int64) error {
	bounded, cancel := patience.Bound(ctx, publishedTimeout)
	defer cancel()
	err := s.projection.WaitFor(bounded, revision)
	if err != nil && ctx.Err() == nil {
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_REVISION_NOT_REACHED,
			"revision %d was not reached in time; the wait takes at most %s, and ends before the call's deadline", revision, publishedTimeout)
	}
	return err
}
