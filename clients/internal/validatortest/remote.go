package validatortest

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Clock is a clock that moves when it is told to. It is safe for concurrent use.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a clock that shows the time at which it is made.
func NewClock() *Clock {
	return &Clock{now: time.Now()} //nolint:forbidigo // a store refuses times far from the system's
}

// Now returns what the clock shows.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock forward.
func (c *Clock) Advance(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(by)
}

// Remote is a Backend over a running keysvc with Scribe's policy.
type Remote struct {
	// Conn is a connection to it, for the changes.
	Conn *grpc.ClientConn
	// Clock is keysvc's.
	Clock *Clock
	// Under is the Validator under test.
	Under keyauth.Validator
	// Changed is called after each change, which has this revision of this epoch; nil
	// suits a Validator that keeps nothing.
	Changed func(t testing.TB, revision int64, epoch string)
}

var _ Backend = (*Remote)(nil)

// Validator implements Backend.
func (r *Remote) Validator() keyauth.Validator { return r.Under }

// PutMember implements Backend.
func (r *Remote) PutMember(t testing.TB, workspaceID, memberID, role string) {
	t.Helper()
	r.putMember(t, workspaceID, memberID, role, keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
}

// SuspendMember implements Backend.
func (r *Remote) SuspendMember(t testing.TB, workspaceID, memberID string) {
	t.Helper()
	found, err := r.members().GetMember(t.Context(), &keysvcv1.GetMemberRequest{WorkspaceId: workspaceID, MemberId: memberID})
	if err != nil {
		t.Fatal(err)
	}
	r.putMember(t, workspaceID, memberID, found.GetMember().GetRole(), keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
}

func (r *Remote) putMember(t testing.TB, workspaceID, memberID, role string, state keysvcv1.MemberState) {
	t.Helper()
	done, err := r.members().PutMember(t.Context(), &keysvcv1.PutMemberRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Role: role, State: state,
	})
	r.changed(t, done, err)
}

// RemoveMember implements Backend.
func (r *Remote) RemoveMember(t testing.TB, workspaceID, memberID string) {
	t.Helper()
	done, err := r.members().RemoveMember(t.Context(), &keysvcv1.RemoveMemberRequest{WorkspaceId: workspaceID, MemberId: memberID})
	r.changed(t, done, err)
}

// CreateKey implements Backend.
func (r *Remote) CreateKey(t testing.TB, key Key) (keyID, token string) {
	t.Helper()
	request := &keysvcv1.CreateKeyRequest{
		WorkspaceId: key.WorkspaceID, MemberId: key.MemberID, Name: "test", Scopes: key.Scopes, AllowedCidrs: texts(key.AllowedCIDRs),
	}
	if !key.ExpireTime.IsZero() {
		request.ExpireTime = timestamppb.New(key.ExpireTime)
	}
	done, err := r.keys().CreateKey(t.Context(), request)
	r.changed(t, done, err)
	return done.GetKey().GetKeyId(), done.GetToken()
}

// RotateKey implements Backend.
func (r *Remote) RotateKey(t testing.TB, workspaceID, keyID string, overlap time.Duration) string {
	t.Helper()
	done, err := r.keys().RotateKey(t.Context(), &keysvcv1.RotateKeyRequest{
		WorkspaceId: workspaceID, KeyId: keyID, Overlap: durationpb.New(overlap),
	})
	r.changed(t, done, err)
	return done.GetToken()
}

// RevokeKey implements Backend.
func (r *Remote) RevokeKey(t testing.TB, workspaceID, keyID string) {
	t.Helper()
	done, err := r.keys().RevokeKey(t.Context(), &keysvcv1.RevokeKeyRequest{WorkspaceId: workspaceID, KeyId: keyID})
	r.changed(t, done, err)
}

// Now implements Backend.
func (r *Remote) Now() time.Time { return r.Clock.Now() }

// Advance implements Backend.
func (r *Remote) Advance(_ testing.TB, by time.Duration) { r.Clock.Advance(by) }

func (r *Remote) keys() keysvcv1.KeyServiceClient { return keysvcv1.NewKeyServiceClient(r.Conn) }

func (r *Remote) members() keysvcv1.MemberServiceClient {
	return keysvcv1.NewMemberServiceClient(r.Conn)
}

func (r *Remote) changed(t testing.TB, done interface {
	GetRevision() int64
	GetEpoch() string
}, err error,
) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if r.Changed != nil {
		r.Changed(t, done.GetRevision(), done.GetEpoch())
	}
}

func texts(prefixes []netip.Prefix) []string {
	var written []string
	for _, prefix := range prefixes {
		written = append(written, prefix.String())
	}
	return written
}
