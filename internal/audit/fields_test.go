package audit_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/policy"
)

// shown returns fields as text, one in each line.
func shown(fields []*storagev1.FieldChange) string {
	var text strings.Builder
	for _, field := range fields {
		fmt.Fprintf(&text, "%s: %q -> %q\n", field.GetField(), field.GetBefore(), field.GetAfter())
	}
	return text.String()
}

func expect(t *testing.T, got []*storagev1.FieldChange, want string) {
	t.Helper()
	if shown(got) != want {
		t.Errorf("got\n%swant\n%s", shown(got), want)
	}
}

func stamp(hour int) *timestamppb.Timestamp {
	return timestamppb.New(time.Date(2027, time.March, 1, hour, 0, 0, 0, time.UTC))
}

func TestKeyFieldsAreThoseThatDiffer(t *testing.T) {
	before := &storagev1.KeyRecord{
		KeyId: "k", WorkspaceId: "acme", MemberId: "ann", Name: "n", Scopes: []string{"a:b", "a:c"},
		Labels: map[string]string{"kept": "1", "gone": "", "other": "2"}, CreateTime: stamp(1), RequestIds: []string{"r1", "r2"},
		Secrets: []*storagev1.SecretRecord{{Scheme: 3, Hash: []byte("hash"), CreateTime: stamp(1), ExpireTime: stamp(9)}},
	}
	expect(t, audit.KeyFields(before, before), "")
	expect(t, audit.KeyFields(before, proto.CloneOf(before)), "")
	after := proto.CloneOf(before)
	after.Name, after.Scopes, after.AllowedCidrs, after.RevokeTime, after.Reported = "m", []string{"a:c"}, []string{"192.0.2.0/24"}, stamp(3), true
	after.Labels = map[string]string{"kept": "1", "new": "", "other": "3"}
	after.RequestIds = []string{"r1", "r3"}
	after.Secrets = []*storagev1.SecretRecord{
		{Scheme: 3, Hash: []byte("hash"), CreateTime: stamp(2), ExpireTime: stamp(10), IssuedLocally: true},
		{Scheme: 3, Hash: []byte("hash"), CreateTime: stamp(1), ExpireTime: stamp(9), OverlapEndTime: stamp(4)},
	}
	after.ChangeSequence, after.RevokedBy = 7, &storagev1.ChangedByRecord{Caller: "c"}
	expect(t, audit.KeyFields(before, after), `name: ["n"] -> ["m"]
scopes: ["a:b" "a:c"] -> ["a:c"]
labels.gone: [""] -> []
labels.new: [] -> [""]
labels.other: ["2"] -> ["3"]
allowed_cidrs: [] -> ["192.0.2.0/24"]
revoke_time: [] -> ["2027-03-01T03:00:00Z"]
reported: [] -> ["true"]
request_ids: ["r2"] -> ["r3"]
secrets.create_time: ["2027-03-01T01:00:00Z"] -> ["2027-03-01T02:00:00Z" "2027-03-01T01:00:00Z"]
secrets.expire_time: ["2027-03-01T09:00:00Z"] -> ["2027-03-01T10:00:00Z" "2027-03-01T09:00:00Z"]
secrets.overlap_end_time: [] -> ["" "2027-03-01T04:00:00Z"]
secrets.issued_locally: [] -> ["true" ""]
`)
}

func TestPolicyFieldsAreThoseThatDiffer(t *testing.T) {
	before := policy.Default()
	expect(t, audit.PolicyFields(before, policy.Default(), nil, nil), "")
	after := policy.Default()
	after.TokenPrefix, after.Limits.ScopesPerKey, after.Retention = "other", 7, 30*policy.Day
	after.Resources = slices.DeleteFunc(after.Resources, func(resource policy.Resource) bool { return resource.Name == "financial_documents" })
	after.Roles = slices.DeleteFunc(after.Roles, func(role policy.Role) bool {
		return role.Name == "member" || role.Name == "owner" || role.Name == "manager"
	})
	after.Roles = append(after.Roles, policy.Role{Name: "auditor", Scopes: []string{"emails:read"}})
	fields := audit.PolicyFields(before, after, nil, []string{"financial_documents:read"})
	for _, field := range fields { // the catalogue is long
		field.Before, field.After = field.GetBefore()[:min(1, len(field.GetBefore()))], field.GetAfter()[:min(1, len(field.GetAfter()))]
	}
	expect(t, fields, `token_prefix: ["scribe"] -> ["other"]
catalogue: ["assets:delete"] -> ["assets:delete"]
titles: ["`+before.TitlesDigest()+`"] -> ["`+after.TitlesDigest()+`"]
roles.admin.scopes: ["assets:delete"] -> ["assets:delete"]
roles.auditor: [] -> ["exists"]
roles.auditor.scopes: [] -> ["emails:read"]
roles.manager: ["exists"] -> []
roles.manager.scopes: ["assets:delete"] -> []
roles.member: ["exists"] -> []
roles.owner: ["exists"] -> []
roles.owner.scopes: ["assets:delete"] -> []
limits.scopes_per_key: ["100"] -> ["7"]
retention_days: ["90"] -> ["30"]
retired_scopes: [] -> ["financial_documents:read"]
`)
}

// TestCutLeavesOutTheLastValuesAndSaysHowMany: small fields stay whole, large ones keep their first
// values.
func TestCutLeavesOutTheLastValuesAndSaysHowMany(t *testing.T) {
	many := func(count int) []string {
		var values []string
		for number := range count {
			values = append(values, fmt.Sprintf("scope_%04d:read", number))
		}
		return values
	}
	original := &storagev1.AuditRecord{Fields: []*storagev1.FieldChange{
		{Field: "token_prefix", Before: []string{"a"}, After: []string{"b"}},
		{Field: "roles.a.scopes", Before: many(1000), After: many(900)},
		{Field: "roles.b.scopes", After: many(500)},
	}}
	for _, limit := range []int{-1, 0, 100, 1000, 10_000, 30_000, 60_000} {
		event := proto.CloneOf(original)
		audit.Cut(event, limit)
		if size := proto.Size(event); limit >= 1000 && size > limit {
			t.Errorf("%d bytes; at most %d are allowed", size, limit)
		}
		for index, field := range event.GetFields() {
			whole := original.GetFields()[index]
			if field.GetField() != whole.GetField() ||
				!slices.Equal(field.GetBefore(), whole.GetBefore()[:len(field.GetBefore())]) || len(field.GetBefore())+int(field.GetBeforeOmitted()) != len(whole.GetBefore()) ||
				!slices.Equal(field.GetAfter(), whole.GetAfter()[:len(field.GetAfter())]) || len(field.GetAfter())+int(field.GetAfterOmitted()) != len(whole.GetAfter()) {
				t.Errorf("limit %d, field %s: %d and %d values, %d and %d omitted", limit, field.GetField(),
					len(field.GetBefore()), len(field.GetAfter()), field.GetBeforeOmitted(), field.GetAfterOmitted())
			}
		}
		if limit >= 1000 && event.GetFields()[0].GetBeforeOmitted()+event.GetFields()[0].GetAfterOmitted() > 0 {
			t.Errorf("limit %d: the small field was cut", limit)
		}
		if limit == 60_000 && !proto.Equal(event, original) {
			t.Error("cut without need")
		}
	}
}

// BenchmarkKeyFields measures what the fields of an event cost a change.
func BenchmarkKeyFields(b *testing.B) {
	created := &storagev1.KeyRecord{
		KeyId: "k", MemberId: "ann", Name: "deploy", Scopes: []string{"emails:read", "signatures:read"}, CreateTime: stamp(1),
		RequestIds: []string{"r1"}, Secrets: []*storagev1.SecretRecord{{CreateTime: stamp(1), ExpireTime: stamp(9)}},
	}
	revoked := proto.CloneOf(created)
	revoked.RevokeTime = stamp(3)
	b.Run("create", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			audit.KeyFields(nil, created)
		}
	})
	b.Run("revoke", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			audit.KeyFields(created, revoked)
		}
	})
}
