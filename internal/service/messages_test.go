package service

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/policy"
)

// TestDomainStatesHaveTheNumbersOfTheAPI: states are translated by their number, so each must have
// that of the API's state of the same name, and none may be missing.
func TestDomainStatesHaveTheNumbersOfTheAPI(t *testing.T) {
	for prefix, each := range map[string]struct {
		names  map[int32]string
		domain map[int32]string
	}{
		"KEY_STATE_": {keysvcv1.KeyState_name, map[int32]string{
			int32(keys.KeyStateUnspecified): "UNSPECIFIED", int32(keys.KeyActive): "ACTIVE", int32(keys.KeySuspended): "SUSPENDED",
			int32(keys.KeyExpired): "EXPIRED", int32(keys.KeyRevoked): "REVOKED", int32(keys.KeyHeld): "HELD",
		}},
		"MEMBER_STATE_": {keysvcv1.MemberState_name, map[int32]string{
			int32(keys.MemberStateUnspecified): "UNSPECIFIED", int32(keys.MemberActive): "ACTIVE",
			int32(keys.MemberSuspended): "SUSPENDED", int32(keys.MemberRemoved): "REMOVED",
		}},
		"STOP_REASON_": {keysvcv1.StopReason_name, map[int32]string{
			int32(keys.StopUnspecified): "UNSPECIFIED", int32(keys.StopRevoked): "REVOKED", int32(keys.StopReported): "REPORTED",
			int32(keys.StopExpired): "EXPIRED", int32(keys.StopMemberRemoved): "MEMBER_REMOVED",
			int32(keys.StopWorkspaceRemoved): "WORKSPACE_REMOVED", int32(keys.StopMemberSuspended): "MEMBER_SUSPENDED",
			int32(keys.StopHeld): "HELD",
		}},
		"ROLE_CHANGE_KIND_": {keysvcv1.RoleChangeKind_name, map[int32]string{
			int32(keys.RoleChangeUnspecified): "UNSPECIFIED", int32(keys.RoleAdded): "ADDED",
			int32(keys.RoleChanged): "CHANGED", int32(keys.RoleRemoved): "REMOVED",
		}},
	} {
		for number, name := range each.names {
			if got := each.domain[number]; got != strings.TrimPrefix(name, prefix) {
				t.Errorf("%s is %d, which is %q in the domain", name, number, got)
			}
		}
	}
}

// TestTimesThatAreNotValidStayOutOfRange: a time or duration that no clock can mean must not become
// one that a verb accepts.
func TestTimesThatAreNotValidStayOutOfRange(t *testing.T) {
	valid := time.Date(2026, time.March, 1, 12, 0, 0, 7, time.UTC)
	for name, c := range map[string]struct {
		stamp *timestamppb.Timestamp
		want  *time.Time
	}{
		"none":              {nil, nil},
		"a time":            {timestamppb.New(valid), &valid},
		"the year 1":        {timestamppb.New(time.Time{}), new(time.Time{})},
		"negative nanos":    {&timestamppb.Timestamp{Nanos: -1}, &notATime},
		"too many nanos":    {&timestamppb.Timestamp{Nanos: 1_000_000_000}, &notATime},
		"the year 0":        {&timestamppb.Timestamp{Seconds: -62135596801}, &notATime},
		"the year 10000":    {&timestamppb.Timestamp{Seconds: 253402300800}, &notATime},
		"the last second":   {&timestamppb.Timestamp{Seconds: 1<<63 - 1}, &notATime},
		"the first second":  {&timestamppb.Timestamp{Seconds: -1 << 63}, &notATime},
		"the largest nanos": {&timestamppb.Timestamp{Nanos: 1<<31 - 1}, &notATime},
	} {
		if got := timeOf(c.stamp); (got == nil) != (c.want == nil) || got != nil && !got.Equal(*c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	hour := time.Hour
	for name, c := range map[string]struct {
		duration *durationpb.Duration
		want     *time.Duration
	}{
		"none":         {nil, nil},
		"an hour":      {durationpb.New(hour), &hour},
		"zero":         {durationpb.New(0), new(time.Duration(0))},
		"mixed signs":  {&durationpb.Duration{Seconds: 3600, Nanos: -1}, new(keys.NotADuration)},
		"many nanos":   {&durationpb.Duration{Nanos: 1_000_000_000}, new(keys.NotADuration)},
		"20,000 years": {&durationpb.Duration{Seconds: 20_000 * 366 * 86_400}, new(keys.NotADuration)},
	} {
		if got := durationOf(c.duration); (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestPolicyIsTheSameAfterMessages: a policy that is shown and sent back is the same one.
func TestPolicyIsTheSameAfterMessages(t *testing.T) {
	active := policy.Default()
	if got := policyOf(showPolicy(active)); got.Digest() != active.Digest() {
		t.Errorf("got %+v", got)
	}
	if policyOf(nil) != nil {
		t.Error("no policy became one")
	}
	empty := policyOf(&keysvcv1.Policy{})
	if empty.Retention != 0 || empty.Resources != nil || empty.Limits != (policy.Limits{}) {
		t.Errorf("an empty policy is %+v", empty)
	}
}

// TestKeyInMessagesHasEveryField fills a key of the domain, and looks for fields of the message
// that stay empty; of an empty key, times are left out.
func TestKeyInMessagesHasEveryField(t *testing.T) {
	at := time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)
	shown := showKey(&keys.Key{
		ID: "id", WorkspaceID: "acme", MemberID: "ann", Name: "n", Scopes: []string{"a:b"}, Labels: map[string]string{"k": "v"},
		AllowedCIDRs: []string{"192.0.2.0/24"}, State: keys.KeyActive, CreateTime: at, ExpireTime: at, LastUsedTime: at, RevokeTime: at, ImportTime: at,
		Secrets: []keys.KeySecret{{CreateTime: at, ExpireTime: at, LastUsedTime: at, IssuedLocally: true, Imported: true}}, Etag: "1",
		CreatedBy: &keys.ChangedBy{Caller: "backend", MemberID: "eve"}, RevokedBy: &keys.ChangedBy{Caller: "local"},
		StopTime: at, StopReason: keys.StopReported,
	})
	if by := shown.GetCreatedBy(); by.GetCaller() != "backend" || by.GetActorMemberId() != "eve" || shown.GetRevokedBy().GetCaller() != "local" {
		t.Errorf("created by %v, revoked by %v", by, shown.GetRevokedBy())
	}
	fields := shown.ProtoReflect().Descriptor().Fields()
	for index := range fields.Len() {
		if field := fields.Get(index); !shown.ProtoReflect().Has(field) {
			t.Errorf("%s is left out", field.Name())
		}
	}
	if got := showKey(&keys.Key{}); !proto.Equal(got, &keysvcv1.Key{}) {
		t.Errorf("an empty key is %v", got)
	}
	member := showMember(&keys.Member{
		WorkspaceID: "acme", MemberID: "ann", Role: "owner", State: keys.MemberActive, SourceVersion: 1, CreateTime: at, UpdateTime: at,
	})
	fields = member.ProtoReflect().Descriptor().Fields()
	for index := range fields.Len() {
		if field := fields.Get(index); !member.ProtoReflect().Has(field) {
			t.Errorf("%s is left out", field.Name())
		}
	}
}
