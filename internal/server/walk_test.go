package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

// The walk of bad input tries, for every field of every request, everything that can be wrong
// with the field. A field without a case fails TestEveryFieldHasACase.

// walk is the walk of one method.
type walk struct {
	// method is its full name, as in grpc's generated constants.
	method string
	// base returns a valid request.
	base func(*fixture) proto.Message
	// refused is the reason that the base request is refused for, because the store is a file; "" if it is
	// answered.
	refused string
	// cases are the mistakes to try.
	cases []badCase
	// fine are the fields that take any value, each with the reason.
	fine map[string]string
}

// badCase is one mistake in the base request.
type badCase struct {
	// path is the field that the case is about.
	path string
	name string
	// edit puts the mistake into the request.
	edit func(*fixture, proto.Message)
	// code, reason and violations are those of the expected error. Their zero values mean
	// INVALID_ARGUMENT, FIELD_INVALID, and path; notAField means no violation.
	code       codes.Code
	reason     string
	violations []string
}

// notAField is for errors that name no field.
var notAField = []string{}

func (c badCase) withDefaults() badCase {
	if c.code == codes.OK {
		c.code = codes.InvalidArgument
	}
	if c.reason == "" {
		c.reason = "FIELD_INVALID"
	}
	if c.violations == nil {
		c.violations = []string{c.path}
	}
	return c
}

// as returns the cases with another expected error.
func as(code codes.Code, reason string, violations []string, cases ...badCase) []badCase {
	for index := range cases {
		cases[index].code, cases[index].reason, cases[index].violations = code, reason, violations
	}
	return cases
}

// fixture has the records that the requests of the walk name.
type fixture struct {
	*bench
	// key is live and belongs to acme's ann, an owner; other belongs to another workspace.
	key, other *keysvcv1.CreateKeyResponse
	// foreignPage is a page token of ListKeys with another filter, and memberPage is one of
	// ListMembers. Both are valid only for the requests that they come from. page and members are
	// valid for the base requests.
	foreignPage, page, memberPage, foreignMemberPage string
	// eventPage and foreignEventPage are the same of ListAuditEvents, and workspacePage and
	// foreignWorkspacePage of ListWorkspaces.
	eventPage, foreignEventPage         string
	workspacePage, foreignWorkspacePage string
	// noticePage and foreignNoticePage are the same of ListNotices.
	noticePage, foreignNoticePage string
	digest                        string
	policy                        *keysvcv1.Policy
	epoch                         string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{bench: start(t, options{})}
	ctx := testContext(t)
	f.putMember(t, "acme", "ann", "owner")
	f.putMember(t, "acme", "max", "manager")
	f.push(t, "acme", "sue", "owner", keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
	f.putMember(t, "other", "bob", "owner")
	f.putMember(t, "other", "eve", "owner")
	if _, err := f.members.PutMember(ctx, &keysvcv1.PutMemberRequest{
		WorkspaceId: "acme", MemberId: "vic", Role: "admin", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE, SourceVersion: proto.Int64(5),
	}); err != nil {
		t.Fatal(err)
	}
	f.create(t, "acme", "ann", "emails:read")
	response, err := f.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "walk", Scopes: []string{"signatures:read"},
		Labels: map[string]string{"team": "web"}, RequestId: new("used"),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.key = response
	f.create(t, "other", "bob", "signatures:read")
	f.other = f.create(t, "other", "bob", "signatures:read")
	f.page = f.listKeys(t, &keysvcv1.ListKeysRequest{WorkspaceId: "acme", PageSize: 1})
	f.foreignPage = f.listKeys(t, &keysvcv1.ListKeysRequest{WorkspaceId: "other", PageSize: 1})
	f.memberPage = f.listMembers(t, "acme")
	f.foreignMemberPage = f.listMembers(t, "other")
	f.eventPage, f.foreignEventPage = f.listEvents(t, "acme"), f.listEvents(t, "other")
	f.workspacePage = f.listWorkspaces(t)
	f.foreignWorkspacePage = f.listWorkspaces(t, keysvcv1.WorkspaceState_WORKSPACE_STATE_ACTIVE)
	f.noticePage, f.foreignNoticePage = f.listNotices(t, "acme"), f.listNotices(t, "other")
	current, err := f.policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	f.policy, f.digest, f.epoch = current.GetPolicy(), current.GetDigest(), current.GetEpoch()
	return f
}

func (f *fixture) listKeys(t *testing.T, request *keysvcv1.ListKeysRequest) string {
	t.Helper()
	response, err := f.keys.ListKeys(testContext(t), request)
	if err != nil || response.GetNextPageToken() == "" {
		t.Fatalf("no page token: %v", err)
	}
	return response.GetNextPageToken()
}

func (f *fixture) listMembers(t *testing.T, workspaceID string) string {
	t.Helper()
	response, err := f.members.ListMembers(testContext(t), &keysvcv1.ListMembersRequest{WorkspaceId: workspaceID, PageSize: 1})
	if err != nil || response.GetNextPageToken() == "" {
		t.Fatalf("no page token: %v", err)
	}
	return response.GetNextPageToken()
}

func (f *fixture) listWorkspaces(t *testing.T, states ...keysvcv1.WorkspaceState) string {
	t.Helper()
	response, err := f.members.ListWorkspaces(testContext(t), &keysvcv1.ListWorkspacesRequest{States: states, PageSize: 1})
	if err != nil || response.GetNextPageToken() == "" {
		t.Fatalf("no page token: %v", err)
	}
	return response.GetNextPageToken()
}

func (f *fixture) listNotices(t *testing.T, workspaceID string) string {
	t.Helper()
	response, err := f.keys.ListNotices(testContext(t), &keysvcv1.ListNoticesRequest{WorkspaceId: workspaceID, PageSize: 1})
	if err != nil || response.GetNextPageToken() == "" {
		t.Fatalf("no page token: %v", err)
	}
	return response.GetNextPageToken()
}

func (f *fixture) listEvents(t *testing.T, workspaceID string) string {
	t.Helper()
	response, err := f.audit.ListAuditEvents(testContext(t), &keysvcv1.ListAuditEventsRequest{WorkspaceId: workspaceID, PageSize: 1})
	if err != nil || response.GetNextPageToken() == "" {
		t.Fatalf("no page token: %v", err)
	}
	return response.GetNextPageToken()
}

// set returns a case that sets the field to another value.
func set(path, name string, value any) badCase {
	return badCase{path: path, name: name, edit: func(_ *fixture, request proto.Message) { put(request, path, value) }}
}

// long is a text of n characters that are allowed everywhere.
func long(n int) string { return strings.Repeat("x", n) }

// wrongCharacters are texts that are no identifiers.
var wrongCharacters = map[string]string{
	"space inside":     "a b",
	"space in front":   " a",
	"space behind":     "a ",
	"slash":            "a/b",
	"non-ASCII letter": "ä",
	"emoji":            "a😀",
	"NUL":              "a\x00b",
	"newline":          "a\n",
	"tab":              "\ta",
	"escape":           "\x1b[31ma",
	"DEL":              "a\x7f",
	"C1 control":       "a\u0085b",
	"zero width":       "a\u200bb",
	"bidi override":    "\u202ea",
}

// wrong returns a case for each of the texts.
func wrong(path string, texts map[string]string) []badCase {
	var cases []badCase
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		cases = append(cases, set(path, name, texts[name]))
	}
	return cases
}

// id returns the cases of an optional identifier.
func id(path string) []badCase {
	return append(wrong(path, wrongCharacters), set(path, "129 characters", long(129)), set(path, "10,000 characters", long(10_000)))
}

// required returns the cases of a required identifier. On a field with presence, the case
// "missing" leaves it out.
func required(path string) []badCase { return append(id(path), set(path, "empty", "")) }

func keyID(path string) []badCase {
	cases := append(wrong(path, wrongCharacters),
		set(path, "empty", ""),
		set(path, "15 characters", long(15)),
		set(path, "17 characters", long(17)),
		set(path, "10,000 characters", long(10_000)),
		set(path, "16 characters, one wrong", "0123456789abcde-"),
		set(path, "16 characters, one NUL", "0123456789abcde\x00"),
		set(path, "16 letters, not ASCII", strings.Repeat("ä", 16)),
	)
	return append(cases, as(codes.NotFound, "KEY_NOT_FOUND", notAField,
		set(path, "unknown", "0123456789abcdef"),
		badCase{path: path, name: "of another workspace", edit: func(f *fixture, request proto.Message) {
			put(request, path, f.other.GetKey().GetKeyId())
		}})...)
}

func requestIDs(path string) []badCase {
	return slices.Concat(wrong(path, wrongCharacters),
		[]badCase{set(path, "empty", ""), set(path, "65 characters", long(65))},
		as(codes.AlreadyExists, "REQUEST_ID_USED", notAField, set(path, "used before", "used")))
}

func pageSizes() []badCase {
	return []badCase{set("page_size", "negative", -1), set("page_size", "the least", -1<<31)}
}

func pageTokens(good, foreign func(*fixture) string) []badCase {
	const path = "page_token"
	from := func(name string, change func(string) string) badCase {
		return badCase{path: path, name: name, edit: func(f *fixture, request proto.Message) {
			put(request, path, change(good(f)))
		}}
	}
	cases := append(wrong(path, wrongCharacters),
		set(path, "made up", "AAAA"),
		set(path, "made up and long", long(1000)),
		set(path, "10,000 characters", long(10_000)),
		from("cut", func(token string) string { return token[:len(token)-1] }),
		from("longer", func(token string) string { return token + "AA" }),
		from("padded", func(token string) string { return token + "=" }),
		from("changed in front", func(token string) string { return flip(token, 0) }),
		from("changed behind", func(token string) string { return flip(token, len(token)-3) }),
		badCase{path: path, name: "from another filter", edit: func(f *fixture, request proto.Message) { put(request, path, foreign(f)) }},
		badCase{path: path, name: "of another list", edit: func(f *fixture, request proto.Message) {
			other := f.memberPage
			if _, isMembers := request.(*keysvcv1.ListMembersRequest); isMembers {
				other = f.page
			}
			put(request, path, other)
		}},
	)
	return as(codes.InvalidArgument, "PAGE_TOKEN_INVALID", nil, cases...)
}

// flip replaces one character of a page token by another allowed one.
func flip(token string, at int) string {
	other := "A"
	if token[at] == 'A' {
		other = "B"
	}
	return token[:at] + other + token[at+1:]
}

func names(path string) []badCase {
	return wrong(path, map[string]string{
		"empty":          "",
		"129 characters": long(129),
		"129 letters":    strings.Repeat("ä", 129),
		"10,000":         long(10_000),
		"space in front": " a",
		"space behind":   "a ",
		"a space":        " ",
		"newline":        "a\nb",
		"newline behind": "a\n",
		"NUL":            "a\x00",
		"tab":            "a\tb",
		"escape":         "\x1b[31m",
		"DEL":            "a\x7f",
		"zero width":     "a\u200bb",
		"no-break space": "a\u00a0b",
		"bidi override":  "a\u202eb",
		"line separator": "a\u2028b",
		"private use":    "a\ue000b",
	})
}

func scopeLists(path string) []badCase {
	list := func(name, at string, scopes ...string) badCase {
		c := set(path, name, scopes)
		if at != "" {
			c.violations = []string{path + at}
		}
		return c
	}
	many := func(n int) []string {
		scopes := make([]string, n)
		for index := range scopes {
			scopes[index] = fmt.Sprintf("r%d:read", index)
		}
		return scopes
	}
	cases := []badCase{
		list("empty list", ""),
		list("101", "", many(101)...),
		list("10,000", "", many(10_000)...),
		list("10,000 of the same", "", slices.Repeat([]string{"signatures:read"}, 10_000)...),
		list("everything", "[0]", "*"),
		list("all of a resource", "[1]", "emails:read", "signatures:*"),
		list("duplicate", "[1]", "signatures:read", "signatures:read"),
		list("duplicate, apart", "[2]", "signatures:read", "emails:read", "signatures:read"),
		list("empty scope", "[0]", ""),
		list("no action", "[0]", "signatures"),
		list("capitals", "[0]", "Signatures:Read"),
		list("10,000 characters", "[0]", "signatures:"+long(10_000)),
	}
	for _, name := range slices.Sorted(maps.Keys(wrongCharacters)) {
		cases = append(cases, list(name, "[0]", "signatures:"+wrongCharacters[name]))
	}
	return append(cases,
		as(codes.InvalidArgument, "SCOPE_UNKNOWN", []string{path + "[1]"}, list("unknown", "", "signatures:read", "signatures:paint"))...)
}

func labelMaps(path string) []badCase {
	many := make(map[string]string)
	for index := range 33 {
		many[fmt.Sprint("l", index)] = ""
	}
	labels := func(name, key, value string) badCase { return set(path, name, map[string]string{key: value}) }
	cases := []badCase{
		set(path, "33", many),
		labels("empty key", "", "v"),
		labels("key of 64 bytes", long(64), "v"),
		labels("key with a colon", "a:b", "v"),
		labels("value of 256 bytes", "k", long(256)),
		labels("value of 128 two-byte letters", "k", strings.Repeat("ä", 128)),
		labels("value with newline", "k", "a\nb"),
		labels("value with NUL", "k", "\x00"),
		labels("value with escape", "k", "\x1b[0m"),
		labels("value with a zero width", "k", "a\u200b"),
	}
	for _, name := range slices.Sorted(maps.Keys(wrongCharacters)) {
		if name != "slash" {
			cases = append(cases, labels("key with "+name, wrongCharacters[name], "v"))
		}
	}
	return cases
}

func cidrLists(path string) []badCase {
	one := func(name, cidr string) badCase {
		c := set(path, name, []string{"192.0.2.0/24", cidr})
		c.violations = []string{path + "[1]"}
		return c
	}
	many := make([]string, 33)
	for index := range many {
		many[index] = fmt.Sprintf("10.0.%d.0/24", index)
	}
	return []badCase{
		set(path, "33", many),
		set(path, "10,000 of the same", slices.Repeat([]string{"10.0.0.0/8"}, 10_000)),
		one("empty", ""),
		one("host bits", "10.0.0.1/8"),
		one("host bits in IPv6", "2001:db8::1/32"),
		one("mapped", "::ffff:10.0.0.0/104"),
		one("an address", "10.0.0.1"),
		one("too long a prefix", "10.0.0.0/33"),
		one("a negative prefix", "10.0.0.0/-1"),
		one("leading zero", "010.0.0.0/8"),
		one("a zone", "fe80::%eth0/64"),
		one("a name", "localhost/8"),
		one("newline", "10.0.0.0/8\n"),
		one("NUL", "10.0.0.0/8\x00"),
		one("non-ASCII", "１0.0.0.0/8"),
		one("10,000 characters", long(10_000)),
	}
}

func expireTimes(path string) []badCase {
	at := func(name string, when func(now time.Time) time.Time) badCase {
		return badCase{path: path, name: name, edit: func(f *fixture, request proto.Message) {
			put(request, path, timestamppb.New(when(f.clock.Now())))
		}}
	}
	return append(notTimes(path),
		at("now", func(now time.Time) time.Time { return now }),
		at("a second ago", func(now time.Time) time.Time { return now.Add(-time.Second) }),
		at("1970", func(time.Time) time.Time { return time.Unix(0, 0) }),
		at("a year and 6 minutes", func(now time.Time) time.Time { return now.AddDate(1, 0, 0).Add(6 * time.Minute) }),
		at("two years", func(now time.Time) time.Time { return now.AddDate(2, 0, 0) }),
		at("9999", func(time.Time) time.Time { return time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC) }),
	)
}

func notTimes(path string) []badCase {
	return []badCase{
		set(path, "negative nanoseconds", &timestamppb.Timestamp{Seconds: 1, Nanos: -1}),
		set(path, "too many nanoseconds", &timestamppb.Timestamp{Seconds: 1, Nanos: 1e9}),
		set(path, "after 9999", &timestamppb.Timestamp{Seconds: 1 << 60}),
		set(path, "before 1", &timestamppb.Timestamp{Seconds: -1 << 60}),
	}
}

// manyKeyIDs returns n different ids of keys.
func manyKeyIDs(n int) []string {
	ids := make([]string, n)
	for index := range ids {
		ids[index] = fmt.Sprintf("%016d", index)
	}
	return ids
}

func actor() []badCase { return required("actor_member_id") }

func sourceVersionRange() []badCase {
	return []badCase{
		set("source_version", "negative", int64(-1)), set("source_version", "the least", int64(-1<<63)),
		set("source_version", "over the bound", int64(4e18+1)), set("source_version", "the greatest", int64(1<<63-1)),
	}
}

func sourceVersions() []badCase {
	return append(sourceVersionRange(),
		badCase{
			path: "source_version", name: "behind", code: codes.Aborted, reason: "SOURCE_VERSION_OUTDATED", violations: notAField,
			edit: func(_ *fixture, request proto.Message) {
				put(request, "member_id", "vic")
				put(request, "source_version", int64(4))
			},
		})
}

// badTokens are texts that are no valid token of this workspace. Their answers must be alike.
func badTokens(f *fixture) map[string]string {
	token := f.key.GetToken()
	other := f.other.GetToken()
	return map[string]string{
		"empty":                   "",
		"a space":                 " ",
		"space in front":          " " + token,
		"space behind":            token + " ",
		"newline behind":          token + "\n",
		"Bearer in front":         "Bearer " + token,
		"twice":                   token + token,
		"cut":                     token[:len(token)-1],
		"16 KiB":                  strings.Repeat("scribe_ksk1_", 16<<10/12),
		"non-ASCII":               "scribe_ksk1_ключ_секрет",
		"emoji in place of a bit": token[:30] + "😀" + token[34:],
		"NUL":                     "\x00",
		"control characters":      "\x1b[31m" + token,
		"capitals":                strings.ToUpper(token),
		"checksum wrong":          flip(token, len(token)-1),
		"no checksum":             token[:len(token)-6],
		"unknown id":              sealed("scribe_ksk1_" + "0123456789abcdef" + "_" + secretOf(token)),
		"wrong secret":            sealed(token[:29] + strings.Repeat("0", 43)),
		"another key's secret":    sealed(token[:29] + secretOf(other)),
		"wrong prefix":            sealed("other" + token[6:72]),
		"only an id":              f.key.GetKey().GetKeyId(),
	}
}

// wrappedTokens are the bad tokens that consist of a valid token and more text. They are not
// valid, but RevokeToken accepts them.
var wrappedTokens = map[string]bool{
	"space in front": true, "space behind": true, "newline behind": true, "Bearer in front": true, "twice": true, "control characters": true,
}

// walks are the walks of all methods.
func walks() []walk {
	return []walk{
		{
			method: keysvcv1.KeyService_CreateKey_FullMethodName,
			base: func(*fixture) proto.Message {
				return &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "new", Scopes: []string{"signatures:read"}}
			},
			cases: slices.Concat(
				required("workspace_id"),
				as(codes.NotFound, "MEMBER_NOT_FOUND", notAField, set("workspace_id", "unknown", "nowhere"), set("member_id", "unknown", "nobody"),
					set("member_id", "of another workspace", "bob")),
				required("member_id"),
				as(codes.FailedPrecondition, "MEMBER_SUSPENDED", notAField, set("member_id", "suspended", "sue")),
				names("name"),
				scopeLists("scopes"),
				[]badCase{{
					path: "scopes", name: "beyond the role", code: codes.PermissionDenied, reason: "SCOPE_BEYOND_ROLE", violations: notAField,
					edit: func(_ *fixture, request proto.Message) {
						put(request, "member_id", "max")
						put(request, "scopes", []string{"emails:read", "financial_documents:read"})
					},
				}},
				expireTimes("expire_time"), labelMaps("labels"), cidrLists("allowed_cidrs"), requestIDs("request_id"), actor(),
				localCases(),
			),
		},
		{
			method: keysvcv1.KeyService_GetKey_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.GetKeyRequest{WorkspaceId: "acme", KeyId: f.key.GetKey().GetKeyId()}
			},
			cases: slices.Concat(id("workspace_id"), keyID("key_id"),
				as(codes.NotFound, "KEY_NOT_FOUND", notAField, set("workspace_id", "another", "other"), set("workspace_id", "unknown", "nowhere"))),
		},
		{
			method: keysvcv1.KeyService_ListKeys_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.ListKeysRequest{WorkspaceId: "acme", PageSize: 1, PageToken: f.page}
			},
			cases: slices.Concat(
				// A page token belongs to its filters: those of the base request have to go with it.
				without("page_token",
					id("workspace_id"), required("member_id"),
					wrong("scope", wrongCharacters),
					[]badCase{
						set("scope", "empty", ""),
						set("scope", "everything", "*"),
						set("scope", "all of a resource", "signatures:*"),
						set("scope", "two colons", "a:b:c"),
						set("scope", "10,000 characters", "signatures:"+long(10_000)),
						set("states", "unspecified", []protoreflect.EnumNumber{0}),
						set("states", "unknown", []protoreflect.EnumNumber{1, 99}),
						set("states", "negative", []protoreflect.EnumNumber{-1}),
						set("states", "10,000 unknown", slices.Repeat([]protoreflect.EnumNumber{99}, 10_000)),
					},
					notTimes("expiring_before"), notTimes("unused_since"),
					[]badCase{
						set("name_contains", "129 characters", long(129)), set("name_contains", "10,000 characters", long(10_000)),
						set("name_contains", "a line break", "a\nb"),
						{path: "with_total_size", name: "of all workspaces", violations: []string{"workspace_id"}, edit: func(_ *fixture, request proto.Message) {
							put(request, "workspace_id", "")
							put(request, "with_total_size", true)
						}},
					},
				),
				pageSizes(),
				pageTokens(func(f *fixture) string { return f.page }, func(f *fixture) string { return f.foreignPage }),
				as(codes.InvalidArgument, "PAGE_TOKEN_INVALID", []string{"page_token"},
					set("workspace_id", "not the page token's", "other"),
					set("workspace_id", "not the page token's either", ""),
					set("member_id", "not the page token's", "ann"),
					set("scope", "not the page token's", "emails:read"),
					set("states", "not the page token's", []protoreflect.EnumNumber{1}),
					set("expiring_before", "not the page token's", timestamppb.New(testTime)),
					set("unused_since", "not the page token's", timestamppb.New(testTime)),
					set("issued_locally", "not the page token's", true),
					set("issued_locally", "not the page token's either", false),
					set("imported", "not the page token's", true),
					set("imported", "not the page token's either", false),
					set("name_contains", "not the page token's", "key"),
				),
			),
		},
		{
			method: keysvcv1.KeyService_ListNotices_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.ListNoticesRequest{WorkspaceId: "acme", PageSize: 1, PageToken: f.noticePage}
			},
			cases: slices.Concat(
				without("page_token", id("workspace_id"), notTimes("due_after")),
				pageSizes(),
				pageTokens(func(f *fixture) string { return f.noticePage }, func(f *fixture) string { return f.foreignNoticePage }),
				as(codes.InvalidArgument, "PAGE_TOKEN_INVALID", []string{"page_token"},
					set("workspace_id", "not the page token's", "other"), set("in_use", "not the page token's", true))),
		},
		{
			method: keysvcv1.KeyService_UpdateKey_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.UpdateKeyRequest{
					Key: &keysvcv1.Key{
						WorkspaceId: "acme", KeyId: f.key.GetKey().GetKeyId(),
						Name: "updated", Scopes: []string{"emails:read"},
					},
					UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name", "labels", "scopes", "allowed_cidrs"}},
				}
			},
			cases: slices.Concat(
				[]badCase{{
					path: "key", name: "missing", violations: []string{"key.workspace_id", "key.key_id", "key.name", "key.scopes"},
					edit: func(_ *fixture, request proto.Message) { put(request, "key", nil) },
				}},
				required("key.workspace_id"), keyID("key.key_id"),
				as(codes.NotFound, "KEY_NOT_FOUND", notAField, set("key.workspace_id", "another", "other")),
				names("key.name"), labelMaps("key.labels"), scopeLists("key.scopes"), cidrLists("key.allowed_cidrs"),
				[]badCase{
					set("update_mask", "missing", nil),
					set("update_mask", "empty", &fieldmaskpb.FieldMask{}),
					set("update_mask", "everything", &fieldmaskpb.FieldMask{Paths: []string{"*"}}),
					set("update_mask", "unknown", &fieldmaskpb.FieldMask{Paths: []string{"name", "nope"}}),
					set("update_mask", "empty path", &fieldmaskpb.FieldMask{Paths: []string{""}}),
					set("update_mask", "key_id", &fieldmaskpb.FieldMask{Paths: []string{"key_id"}}),
					set("update_mask", "expire_time", &fieldmaskpb.FieldMask{Paths: []string{"expire_time"}}),
					set("update_mask", "revoke_time", &fieldmaskpb.FieldMask{Paths: []string{"revoke_time"}}),
					set("update_mask", "state", &fieldmaskpb.FieldMask{Paths: []string{"state"}}),
					set("update_mask", "member_id", &fieldmaskpb.FieldMask{Paths: []string{"member_id"}}),
					set("update_mask", "a part of labels", &fieldmaskpb.FieldMask{Paths: []string{"labels.team"}}),
					set("update_mask", "capitals", &fieldmaskpb.FieldMask{Paths: []string{"Name"}}),
					set("update_mask", "with key in front", &fieldmaskpb.FieldMask{Paths: []string{"key.name"}}),
					set("update_mask", "control characters", &fieldmaskpb.FieldMask{Paths: []string{"name\x00"}}),
					set("update_mask", "10,000", &fieldmaskpb.FieldMask{Paths: slices.Repeat([]string{"name"}, 10_000)}),
					set("etag", "empty", ""),
					set("etag", "10,000 characters", long(10_000)),
				},
				as(codes.Aborted, "ETAG_MISMATCH", notAField, append(wrong("etag", wrongCharacters), set("etag", "another", "zzz"))...),
				actor(),
			),
			fine: map[string]string{
				"key.member_id":           "no mask may name it; it is the server's",
				"key.state":               "as member_id",
				"key.create_time":         "as member_id",
				"key.expire_time":         "as member_id",
				"key.last_used_time":      "as member_id",
				"key.revoke_time":         "as member_id",
				"key.etag":                "as member_id; the request has its own",
				"key.secrets":             "as member_id",
				"key.secrets.create_time": "as member_id",
				"key.secrets.expire_time": "as member_id",

				"key.secrets.issued_locally":     "as member_id",
				"key.secrets.last_used_time":     "as member_id",
				"key.secrets.imported":           "as member_id",
				"key.import_time":                "as member_id",
				"key.created_by":                 "as member_id",
				"key.created_by.caller":          "as member_id",
				"key.created_by.actor_member_id": "as member_id",
				"key.revoked_by":                 "as member_id",
				"key.revoked_by.caller":          "as member_id",
				"key.revoked_by.actor_member_id": "as member_id",
				"key.stop_time":                  "as member_id",
				"key.stop_reason":                "as member_id",
			},
		},
		{
			method: keysvcv1.KeyService_RotateKey_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: f.key.GetKey().GetKeyId(), Overlap: durationpb.New(time.Hour)}
			},
			cases: slices.Concat(
				required("workspace_id"), keyID("key_id"),
				[]badCase{
					set("overlap", "missing", nil),
					set("overlap", "negative", durationpb.New(-1)),
					set("overlap", "over 30 days", durationpb.New(30*24*time.Hour+1)),
					set("overlap", "two signs", &durationpb.Duration{Seconds: 1, Nanos: -1}),
					set("overlap", "too large", &durationpb.Duration{Seconds: 1 << 62}),
					set("overlap", "too many nanoseconds", &durationpb.Duration{Nanos: 2e9}),
				},
				expireTimes("expire_time"), requestIDs("request_id"), actor(),
				digests("token_digest", nil),
				[]badCase{{path: "token_digest", name: "of a secret of the key", edit: func(f *fixture, request proto.Message) {
					put(request, "token_digest", digestOf(f.key.GetToken()))
				}}},
			),
		},
		{
			method: keysvcv1.KeyService_FinishRotation_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.FinishRotationRequest{WorkspaceId: "acme", KeyId: f.key.GetKey().GetKeyId()}
			},
			cases: slices.Concat(required("workspace_id"), keyID("key_id"), actor()),
		},
		{
			method: keysvcv1.KeyService_RevokeKey_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: f.key.GetKey().GetKeyId()}
			},
			cases: slices.Concat(required("workspace_id"), keyID("key_id"), actor()),
		},
		{
			method: keysvcv1.KeyService_ReleaseKeys_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.ReleaseKeysRequest{WorkspaceId: "acme", KeyIds: []string{f.key.GetKey().GetKeyId()}}
			},
			cases: slices.Concat(
				required("workspace_id"), actor(),
				[]badCase{
					set("key_ids", "none", []string{}), set("key_ids", "101 keys", manyKeyIDs(101)), set("key_ids", "10,000 keys", manyKeyIDs(10_000)),
				},
				as(codes.InvalidArgument, "FIELD_INVALID", []string{"key_ids[0]"},
					set("key_ids", "an empty one", []string{""}), set("key_ids", "15 characters", []string{long(15)})),
				as(codes.InvalidArgument, "FIELD_INVALID", []string{"key_ids[1]"},
					set("key_ids", "one twice", []string{"0123456789abcdef", "0123456789abcdef"})),
				as(codes.NotFound, "KEY_NOT_FOUND", notAField, set("key_ids", "unknown", []string{"0123456789abcdef"})),
			),
			fine: map[string]string{"validate_only": "a bool"},
		},
		{
			method: keysvcv1.KeyService_RevokeToken_FullMethodName,
			base:   func(f *fixture) proto.Message { return &keysvcv1.RevokeTokenRequest{Token: f.key.GetToken()} },
			cases: slices.Concat(
				as(codes.NotFound, "KEY_NOT_FOUND", notAField, slices.DeleteFunc(eachBadToken("token"), func(c badCase) bool {
					return wrappedTokens[c.name]
				})...),
				actor(), presentedCases(),
				as(codes.NotFound, "KEY_NOT_FOUND", notAField, digestInPlace("token_digest", "unknown", bytes.Repeat([]byte{1}, 32), "0123456789abcdef"),
					digestInPlace("token_digest", "without a key id", bytes.Repeat([]byte{1}, 32), "")),
			),
		},
		{
			method: keysvcv1.KeyService_ImportKeys_FullMethodName,
			base: func(*fixture) proto.Message {
				return &keysvcv1.ImportKeysRequest{WorkspaceId: "acme", Keys: []*keysvcv1.KeyImport{
					{TokenSha256: bytes.Repeat([]byte{7}, 32), MemberId: "ann", Name: "imported", Scopes: []string{"emails:read"}},
				}}
			},
			cases: slices.Concat(required("workspace_id"), actor(), []badCase{
				{path: "keys", name: "empty", edit: func(_ *fixture, request proto.Message) { put(request, "keys", nil) }},
				{path: "keys", name: "33", edit: func(_ *fixture, request proto.Message) {
					imported := request.(*keysvcv1.ImportKeysRequest)
					imported.Keys = slices.Repeat(imported.GetKeys(), 33)
				}},
			}),
			fine: map[string]string{
				"keys.":         "a key has its own error; see TestImportRefusesEachBadKeyAlone",
				"validate_only": "both values are fine",
			},
		},
		{
			method: keysvcv1.MemberService_PutMember_FullMethodName,
			base: func(*fixture) proto.Message {
				return &keysvcv1.PutMemberRequest{
					WorkspaceId: "acme", MemberId: "new", Role: "manager",
					State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
				}
			},
			cases: slices.Concat(
				required("workspace_id"), required("member_id"),
				[]badCase{
					set("role", "empty", ""),
					set("state", "missing", protoreflect.EnumNumber(0)),
					set("state", "removed", protoreflect.EnumNumber(3)),
					set("state", "unknown", protoreflect.EnumNumber(99)),
					set("state", "negative", protoreflect.EnumNumber(-1)),
				},
				as(codes.InvalidArgument, "ROLE_UNKNOWN", nil, append(wrong("role", wrongCharacters),
					set("role", "unknown", "root"), set("role", "capital", "Owner"), set("role", "space behind the name", "owner "),
					set("role", "10,000 characters", long(10_000)))...),
				sourceVersions(), actor(),
			),
		},
		{
			method: keysvcv1.MemberService_GetMember_FullMethodName,
			base:   func(*fixture) proto.Message { return &keysvcv1.GetMemberRequest{WorkspaceId: "acme", MemberId: "ann"} },
			cases: slices.Concat(required("workspace_id"), required("member_id"),
				as(codes.NotFound, "MEMBER_NOT_FOUND", notAField,
					set("workspace_id", "unknown", "nowhere"), set("workspace_id", "another", "other"),
					set("member_id", "unknown", "nobody"), set("member_id", "of another workspace", "bob"))),
		},
		{
			method: keysvcv1.MemberService_ListMembers_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.ListMembersRequest{WorkspaceId: "acme", PageSize: 1, PageToken: f.memberPage}
			},
			cases: slices.Concat(without("page_token", required("workspace_id")), pageSizes(),
				pageTokens(func(f *fixture) string { return f.memberPage }, func(f *fixture) string { return f.foreignMemberPage }),
				as(codes.InvalidArgument, "PAGE_TOKEN_INVALID", []string{"page_token"}, set("workspace_id", "not the page token's", "other"))),
		},
		{
			method: keysvcv1.MemberService_ListWorkspaces_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.ListWorkspacesRequest{PageSize: 1, PageToken: f.workspacePage}
			},
			cases: slices.Concat(
				without("page_token", as(codes.InvalidArgument, "FIELD_INVALID", nil,
					set("states", "unspecified", []protoreflect.EnumNumber{0}),
					set("states", "unknown", []protoreflect.EnumNumber{1, 99}),
					set("states", "negative", []protoreflect.EnumNumber{-1}))),
				pageSizes(),
				pageTokens(func(f *fixture) string { return f.workspacePage }, func(f *fixture) string { return f.foreignWorkspacePage }),
				as(codes.InvalidArgument, "PAGE_TOKEN_INVALID", []string{"page_token"},
					set("states", "not the page token's", []protoreflect.EnumNumber{1}))),
		},
		{
			method: keysvcv1.MemberService_RemoveMember_FullMethodName,
			base: func(*fixture) proto.Message {
				return &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "ann"}
			},
			cases: slices.Concat(required("workspace_id"), required("member_id"), sourceVersions(), actor()),
		},
		{
			method: keysvcv1.MemberService_RemoveWorkspace_FullMethodName,
			base:   func(*fixture) proto.Message { return &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme"} },
			cases: slices.Concat(required("workspace_id"), sourceVersionRange(), actor(),
				as(codes.Aborted, "SOURCE_VERSION_OUTDATED", notAField, set("source_version", "behind a member", int64(5)))),
		},
		{
			method: keysvcv1.PolicyService_GetPolicy_FullMethodName,
			base:   func(*fixture) proto.Message { return &keysvcv1.GetPolicyRequest{} },
		},
		policyWalk(),
		{
			method: keysvcv1.SettingsService_GetSettings_FullMethodName,
			base:   func(*fixture) proto.Message { return &keysvcv1.GetSettingsRequest{} },
		},
		{
			method: keysvcv1.SettingsService_FinishUpgrade_FullMethodName, refused: "SETTINGS_NOT_STORED",
			base:  func(*fixture) proto.Message { return &keysvcv1.FinishUpgradeRequest{} },
			cases: slices.Concat([]badCase{set("schema", "negative", -1), set("schema", "the least", -1<<31)}, actor()),
		},
		{
			method: keysvcv1.SettingsService_SetStaleness_FullMethodName, refused: "SETTINGS_NOT_STORED",
			base: func(*fixture) proto.Message {
				return &keysvcv1.SetStalenessRequest{Staleness: durationpb.New(time.Second)}
			},
			cases: slices.Concat([]badCase{
				set("staleness", "missing", nil), set("staleness", "0", durationpb.New(0)), set("staleness", "negative", durationpb.New(-time.Second)),
				set("staleness", "under 100 ms", durationpb.New(100*time.Millisecond-1)), set("staleness", "over a minute", durationpb.New(time.Minute+1)),
				set("staleness", "two signs", &durationpb.Duration{Seconds: 1, Nanos: -1}),
				set("staleness", "too large", &durationpb.Duration{Seconds: 1 << 62}),
			}, actor()),
		},
		{
			method: keysvcv1.AuditService_ListAuditEvents_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.ListAuditEventsRequest{WorkspaceId: "acme", PageSize: 1, PageToken: f.eventPage}
			},
			cases: slices.Concat(without("page_token", slices.Concat(id("workspace_id"), auditFilters())), pageSizes(),
				pageTokens(func(f *fixture) string { return f.eventPage }, func(f *fixture) string { return f.foreignEventPage }),
				as(codes.InvalidArgument, "PAGE_TOKEN_INVALID", []string{"page_token"},
					set("workspace_id", "not the page token's", "other"), set("workspace_id", "none, and not the page token's", ""),
					set("member_id", "not the page token's", "ann"), set("caller", "not the page token's", "web"),
					set("after_revision", "not the page token's", int64(1)),
					set("before_revision", "not the page token's", int64(1)), set("refused", "not the page token's", true))),
		},
		{
			method: keysvcv1.AuditService_ExplainKey_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.ExplainKeyRequest{WorkspaceId: "acme", KeyId: f.key.GetKey().GetKeyId(), RequiredScope: "signatures:read"}
			},
			cases: slices.Concat(id("workspace_id"), keyID("key_id"), requirementCases(), addressCases(),
				as(codes.NotFound, "KEY_NOT_FOUND", notAField, set("workspace_id", "unknown", "nowhere"), set("workspace_id", "another", "other"))),
		},
		{
			method: keysvcv1.BackupService_Backup_FullMethodName,
			base:   func(*fixture) proto.Message { return &keysvcv1.BackupRequest{} },
			cases: []badCase{
				set("bytes_per_second", "negative", int64(-1)), set("bytes_per_second", "less than 64 KiB", int64(65535)),
				set("bytes_per_second", "more than 1 GiB", int64(1<<30+1)),
			},
		},
		{
			method: keysvcv1.DebugService_Profile_FullMethodName,
			base: func(*fixture) proto.Message {
				return &keysvcv1.ProfileRequest{Kind: keysvcv1.ProfileKind_PROFILE_KIND_CPU, Duration: durationpb.New(time.Second)}
			},
			cases: []badCase{
				set("kind", "none", protoreflect.EnumNumber(0)), set("kind", "unknown", protoreflect.EnumNumber(99)),
				set("duration", "negative", durationpb.New(-time.Second)), set("duration", "under 1 s", durationpb.New(time.Second-1)),
				set("duration", "over 5 minutes", durationpb.New(5*time.Minute+1)),
			},
		},
		{
			method: keysvcv1.CallerService_WhoAmI_FullMethodName,
			base:   func(*fixture) proto.Message { return &keysvcv1.WhoAmIRequest{} },
		},
		{
			method: keysvcv1.StatusService_GetStatus_FullMethodName,
			base:   func(*fixture) proto.Message { return &keysvcv1.GetStatusRequest{} },
		},
		{
			method: keysvcv1.ValidationService_ValidateKey_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.ValidateKeyRequest{Token: f.key.GetToken(), RequiredScope: "signatures:read", WithDetails: true, IncludeGrant: true}
			},
			cases: validationCases(),
			fine: map[string]string{
				"token":         "any text gets a decision; see TestRefusedTokensLookAlike",
				"with_details":  "a bool",
				"include_grant": "a bool",
			},
		},
		{
			method: keysvcv1.ValidationService_BatchValidateKeys_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.BatchValidateKeysRequest{Requests: []*keysvcv1.ValidateKeyRequest{
					{Token: f.key.GetToken(), RequiredScope: "signatures:read"},
				}}
			},
			cases: []badCase{
				{path: "requests", name: "empty", edit: func(_ *fixture, request proto.Message) { put(request, "requests", nil) }},
				{path: "requests", name: "257", edit: func(_ *fixture, request proto.Message) {
					batch := request.(*keysvcv1.BatchValidateKeysRequest)
					batch.Requests = slices.Repeat(batch.GetRequests(), 257)
				}},
			},
			fine: map[string]string{"requests.": "an item has its own error; see TestBadItemsOfABatch"},
		},
		{
			method: keysvcv1.SyncService_AwaitRevision_FullMethodName,
			base: func(f *fixture) proto.Message {
				return &keysvcv1.AwaitRevisionRequest{Revision: 1, Epoch: f.epoch}
			},
			cases: append(
				[]badCase{
					set("revision", "missing", int64(0)), set("revision", "negative", int64(-1)), set("revision", "the least", int64(-1<<63)),
					set("epoch", "missing", ""),
				},
				append(as(codes.FailedPrecondition, "EPOCH_MISMATCH", notAField, wrong("epoch", wrongCharacters)...),
					as(codes.FailedPrecondition, "EPOCH_MISMATCH", notAField, set("epoch", "10,000 characters", long(10_000)))...)...),
		},
		syncWalk(),
	}
}

// digestOf returns the digest of a token; that of a foreign text if text is not a token.
func digestOf(text string) []byte {
	digest := token.ForeignDigest(text)
	if parsed, err := token.Parse(text); err == nil {
		digest = parsed.Digest()
	}
	return digest[:]
}

// digests returns the cases of a field with a digest. prepare, if it is not nil, completes the request.
func digests(path string, prepare func(proto.Message)) []badCase {
	var cases []badCase
	for name, digest := range map[string][]byte{
		"one byte": {1}, "31 bytes": bytes.Repeat([]byte{1}, 31), "33 bytes": bytes.Repeat([]byte{1}, 33),
		"64 bytes": bytes.Repeat([]byte("0f"), 32), "10,000 bytes": bytes.Repeat([]byte{1}, 10_000), "zeros": make([]byte, 32),
	} {
		cases = append(cases, badCase{path: path, name: name, edit: func(_ *fixture, request proto.Message) {
			if prepare != nil {
				prepare(request)
			}
			put(request, path, digest)
		}})
	}
	return cases
}

// localCases are those of a key whose secret the caller draws.
func localCases() []badCase {
	digest, nonce := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 16)
	cases := digests("token_digest", func(request proto.Message) { put(request, "key_id_nonce", nonce) })
	for name, wrong := range map[string][]byte{"missing": nil, "one byte": {1}, "15 bytes": nonce[1:], "17 bytes": append(slices.Clone(nonce), 0), "10,000 bytes": make([]byte, 10_000)} {
		cases = append(cases, badCase{path: "key_id_nonce", name: name, edit: func(_ *fixture, request proto.Message) {
			put(request, "token_digest", digest)
			put(request, "key_id_nonce", wrong)
		}})
	}
	return append(cases, set("key_id_nonce", "without a digest", nonce))
}

// digestInPlace returns a case with a digest and a key id in the place of the token.
func digestInPlace(path, name string, digest []byte, keyID string) badCase {
	return badCase{path: path, name: name, edit: func(_ *fixture, request proto.Message) {
		put(request, "token", "")
		put(request, "token_digest", digest)
		put(request, "key_id", keyID)
	}}
}

// presentedCases are those of a digest in the place of a token.
func presentedCases() []badCase {
	digest := bytes.Repeat([]byte{1}, 32)
	cases := append(digests("token_digest", func(request proto.Message) { put(request, "token", "") }),
		set("token_digest", "beside the token", digest),
		set("key_id", "beside the token", "0123456789abcdef"),
		badCase{path: "key_id", name: "without a digest", edit: func(_ *fixture, request proto.Message) {
			put(request, "token", "")
			put(request, "key_id", "0123456789abcdef")
		}},
	)
	for _, name := range slices.Sorted(maps.Keys(wrongCharacters)) {
		cases = append(cases, digestInPlace("key_id", name, digest, wrongCharacters[name]))
	}
	return append(cases, digestInPlace("key_id", "15 characters", digest, long(15)), digestInPlace("key_id", "17 characters", digest, long(17)),
		digestInPlace("key_id", "10,000 characters", digest, long(10_000)))
}

// syncWalk is the walk of the first message of Sync, and of later ones. The path of a case
// says which message it is about; invoke sends a hello before all others.
func syncWalk() walk {
	use := func(field, name string, value any) badCase {
		return badCase{
			path: "ping.uses." + field, name: name, violations: []string{"ping.uses[0]." + field},
			edit: func(_ *fixture, request proto.Message) { put(request, "ping.uses[0]."+field, value) },
		}
	}
	uses := func(count int) badCase {
		return badCase{path: "ping.uses", name: fmt.Sprint(count), edit: func(_ *fixture, request proto.Message) {
			ping := request.(*keysvcv1.SyncRequest).GetPing()
			ping.Uses = slices.Repeat(ping.GetUses(), count)
		}}
	}
	decisions := func(count int) badCase {
		return badCase{path: "ping.decisions", name: fmt.Sprint(count), edit: func(_ *fixture, request proto.Message) {
			ping := request.(*keysvcv1.SyncRequest).GetPing()
			ping.Decisions = slices.Repeat(ping.GetDecisions(), count)
		}}
	}
	decided := func(name string, count int64) badCase {
		return badCase{
			path: "ping.decisions.count", name: name, violations: []string{"ping.decisions[0].count"},
			edit: func(_ *fixture, request proto.Message) { put(request, "ping.decisions[0].count", count) },
		}
	}
	hash := func(name string, length int) badCase { return set("hello.audit_hash", name, make([]byte, length)) }
	visible := func(name string, length int) badCase {
		return set("hello.visible_workspaces", name, make([]byte, length))
	}
	cases := []badCase{
		set("hello.epoch", "129 characters", long(129)), set("hello.epoch", "10,000 characters", long(10_000)),
		set("hello.revision", "negative", int64(-1)), set("hello.revision", "the least", int64(-1<<63)),
		hash("one byte", 1), hash("31 bytes", 31), hash("33 bytes", 33), hash("10,000 bytes", 10_000),
		visible("one byte", 1), visible("15 bytes", 15), visible("17 bytes", 17), visible("10,000 bytes", 10_000),
		set("hello.hash_revision", "negative", int64(-1)), set("hello.hash_revision", "beyond revision", int64(1)),
		set("ping.nonce", "missing", uint64(0)),
		set("ping.revision", "negative", int64(-1)), set("ping.revision", "what was never sent", int64(1<<40)),
		set("ping.revision", "the most", int64(1<<63-1)),
		uses(4097), uses(10_000),
		decisions(17), decisions(10_000), decided("none", 0), decided("negative", -1), decided("too many", 1_000_000_001),
		set("applied.revision", "negative", int64(-1)), set("applied.revision", "what was never sent", int64(1<<40)),
		use("time", "missing", nil),
	}
	for name, text := range map[string]string{"empty": "", "15 characters": long(15), "17 characters": long(17), "10,000 characters": long(10_000)} {
		cases = append(cases, use("key_id", name, text))
	}
	for name, text := range wrongCharacters {
		cases = append(cases, use("key_id", name, text), use("key_id", "16 with "+name, (text + long(16))[:16]))
	}
	for _, c := range notTimes("time") {
		c.path, c.violations = "ping.uses.time", []string{"ping.uses[0].time"}
		edit := c.edit
		c.edit = func(f *fixture, request proto.Message) {
			edit(f, request.(*keysvcv1.SyncRequest).GetPing().GetUses()[0])
		}
		cases = append(cases, c)
	}
	return walk{
		method: keysvcv1.SyncService_Sync_FullMethodName,
		base: func(f *fixture) proto.Message {
			return &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: &keysvcv1.SyncPing{
				Nonce: 1, Uses: []*keysvcv1.KeyUse{{KeyId: f.key.GetKey().GetKeyId(), Time: timestamppb.New(testTime)}},
				Decisions: []*keysvcv1.DecisionCount{{Count: 1}},
			}}}
		},
		cases: cases,
		fine: map[string]string{
			"hello": "first and once; see TestSyncRefusesMessagesOutOfOrder", "ping": "not first; see there", "applied": "as well",
			"ping.decisions.reason": "a reason that is not known is counted as such",
			"ping.uses.secret_tag":  "a tag that no secret has counts for the key alone",
		},
	}
}

// requirementCases are the mistakes in what a request needs.
func requirementCases() []badCase {
	return slices.Concat(
		[]badCase{
			set("required_scope", "missing", ""),
			set("identity_only", "with a scope", true),
		},
		as(codes.InvalidArgument, "SCOPE_UNKNOWN", nil, append(wrong("required_scope", wrongCharacters),
			set("required_scope", "unknown", "signatures:paint"), set("required_scope", "everything", "*"),
			set("required_scope", "all of a resource", "signatures:*"), set("required_scope", "capitals", "Signatures:Read"),
			set("required_scope", "10,000 characters", long(10_000)))...),
	)
}

// policyTexts are no titles or descriptions of at most some characters.
func policyTexts(most int) map[string]string {
	return map[string]string{
		"too long": long(most + 1), "10,000 characters": long(10_000), "newline": "a\nb", "NUL": "a\x00", "nothing to see": "\u3164",
		"space in front": " a", "space behind": "a ",
	}
}

// severalScopes are the mistakes in a requirement of several scopes.
func severalScopes(field string) []badCase {
	alone := func(name string, scopes ...string) badCase {
		return badCase{path: field, name: name, edit: func(_ *fixture, request proto.Message) {
			put(request, "required_scope", "")
			put(request, field, scopes)
		}}
	}
	many := make([]string, 17)
	for index := range many {
		many[index] = fmt.Sprint("emails:a", index)
	}
	return slices.Concat(
		[]badCase{
			set(field, "beside required_scope", []string{"emails:read"}),
			alone("the same twice", "emails:read", "emails:read"), alone("17", many...),
		},
		as(codes.InvalidArgument, "SCOPE_UNKNOWN", nil,
			alone("unknown", "emails:read", "signatures:paint"), alone("everything", "*"), alone("empty", ""), alone("newline", "emails:read\n")),
	)
}

// addressCases are the mistakes in a client address.
func addressCases() []badCase {
	return append(wrong("client_address", wrongCharacters),
		set("client_address", "a name", "localhost"),
		set("client_address", "with a port", "192.0.2.1:80"),
		set("client_address", "IPv6 with a port", "[2001:db8::1]:80"),
		set("client_address", "a prefix", "192.0.2.0/24"),
		set("client_address", "out of range", "300.1.1.1"),
		set("client_address", "two addresses", "192.0.2.1, 192.0.2.2"),
		set("client_address", "10,000 characters", long(10_000)),
	)
}

// auditFilters are the mistakes in the filters of a list of events, except for the workspace.
func auditFilters() []badCase {
	key := slices.DeleteFunc(keyID("key_id"), func(c badCase) bool { return c.name == "empty" || c.code == codes.NotFound })
	return slices.Concat(key, id("member_id"), notTimes("since"), notTimes("until"), []badCase{
		set("caller", "1,025 bytes", long(1025)),
		{path: "caller", name: "a token", edit: func(f *fixture, request proto.Message) { put(request, "caller", f.key.GetToken()) }},
		set("after_revision", "negative", int64(-1)),
		set("after_revision", "the least", int64(-1<<63)),
		set("before_revision", "negative", int64(-1)),
	})
}

func validationCases() []badCase {
	return slices.Concat(
		presentedCases(), requirementCases(), severalScopes("all_of"), severalScopes("any_of"), id("workspace_id"), addressCases(),
		[]badCase{
			{path: "min_revision", name: "negative", edit: func(f *fixture, request proto.Message) {
				put(request, "min_revision", int64(-1))
				put(request, "epoch", f.epoch)
			}},
			{path: "min_revision", name: "without epoch", violations: []string{"epoch"}, edit: func(_ *fixture, request proto.Message) {
				put(request, "min_revision", int64(1))
			}},
			set("epoch", "without min_revision", "0123456789abcdef01234567"),
			{
				path: "min_revision", name: "in the future", code: codes.Unavailable, reason: "REVISION_NOT_REACHED", violations: notAField,
				edit: func(f *fixture, request proto.Message) {
					put(request, "min_revision", int64(1)<<62)
					put(request, "epoch", f.epoch)
				},
			},
			{
				path: "epoch", name: "another", code: codes.FailedPrecondition, reason: "EPOCH_MISMATCH", violations: notAField,
				edit: func(_ *fixture, request proto.Message) {
					put(request, "min_revision", int64(1))
					put(request, "epoch", "0123456789abcdef01234567")
				},
			},
			{
				path: "epoch", name: "control characters", code: codes.FailedPrecondition, reason: "EPOCH_MISMATCH", violations: notAField,
				edit: func(_ *fixture, request proto.Message) {
					put(request, "min_revision", int64(1))
					put(request, "epoch", "\x00\n")
				},
			},
		},
	)
}

// without clears a field before each case.
func without(path string, groups ...[]badCase) []badCase {
	var cases []badCase
	for _, c := range slices.Concat(groups...) {
		edit := c.edit
		c.edit = func(f *fixture, request proto.Message) {
			put(request, path, "")
			edit(f, request)
		}
		cases = append(cases, c)
	}
	return cases
}

func eachBadToken(path string) []badCase {
	var cases []badCase
	// The names are the same for every fixture.
	blank := &fixture{
		key:   &keysvcv1.CreateKeyResponse{Token: "scribe_ksk1_" + long(16) + "_" + long(49), Key: &keysvcv1.Key{}},
		other: &keysvcv1.CreateKeyResponse{Token: "scribe_ksk1_" + long(16) + "_" + long(49)},
	}
	for _, name := range slices.Sorted(maps.Keys(badTokens(blank))) {
		cases = append(cases, badCase{path: path, name: name, edit: func(f *fixture, request proto.Message) {
			put(request, path, badTokens(f)[name])
		}})
	}
	return cases
}

func policyWalk() walk {
	// policyNames are wrong as names of resources, actions and roles.
	policyNames := map[string]string{
		"empty": "", "65 characters": long(65), "10,000 characters": long(10_000), "capital": "Emails", "digit in front": "1a",
		"space": "a b", "colon": "a:b", "wildcard": "*", "newline": "a\n", "NUL": "a\x00", "non-ASCII": "ä", "escape": "\x1b",
	}
	at := func(path, violation string, cases []badCase) []badCase {
		for index := range cases {
			cases[index].path, cases[index].violations = path, []string{violation}
		}
		return cases
	}
	roleScope := func(name, scope string) badCase {
		c := set("policy.roles[0].scopes", name, []string{scope})
		c.path, c.violations = "policy.roles.scopes", []string{"policy.roles[0].scopes[0]"}
		return c
	}
	action := func(name, action string) badCase {
		c := set("policy.resources[0].actions", name, []string{"read", "write", "delete", action})
		c.path, c.violations = "policy.resources.actions", []string{"policy.resources[0].actions[3]"}
		return c
	}
	limit := func(field string, most int) []badCase {
		path := "policy.limits." + field
		return []badCase{set(path, "missing", 0), set(path, "negative", -1), set(path, "too much", most+1), set(path, "the most", 1<<31-1)}
	}
	var actions []badCase
	for _, name := range slices.Sorted(maps.Keys(policyNames)) {
		actions = append(actions, action(name, policyNames[name]))
	}
	return walk{
		method: keysvcv1.PolicyService_ApplyPolicy_FullMethodName,
		base: func(f *fixture) proto.Message {
			changed := proto.CloneOf(f.policy)
			changed.Roles = append(changed.GetRoles(), &keysvcv1.PolicyRole{Name: "auditor", Scopes: []string{"emails:read"}})
			return &keysvcv1.ApplyPolicyRequest{Policy: changed, ReplacesDigest: f.digest}
		},
		cases: slices.Concat(
			[]badCase{set("policy", "missing", nil)},
			wrong("policy.token_prefix", map[string]string{
				"empty": "", "one character": "a", "13 characters": long(13), "underscore": "a_b", "capital": "Ab", "digit in front": "1ab",
				"newline": "ab\n", "NUL": "ab\x00", "non-ASCII": "ää", "10,000 characters": long(10_000),
			}),
			at("policy.resources.name", "policy.resources[8].name", wrong("policy.resources[8].name", policyNames)),
			at("policy.resources.title", "policy.resources[1].title", wrong("policy.resources[1].title", policyTexts(64))),
			at("policy.resources.description", "policy.resources[1].description", wrong("policy.resources[1].description", policyTexts(256))),
			at("policy.actions.name", "policy.actions[1].name", []badCase{
				set("policy.actions[1].name", "empty", ""), set("policy.actions[1].name", "of no resource", "paint"),
				set("policy.actions[1].name", "the same twice", "read"), set("policy.actions[1].name", "10,000 characters", long(10_000)),
			}),
			at("policy.actions.title", "policy.actions[1].title", wrong("policy.actions[1].title", policyTexts(64))),
			at("policy.actions.description", "policy.actions[1].description", wrong("policy.actions[1].description", policyTexts(256))),
			[]badCase{{path: "policy.actions", name: "one without a name", violations: []string{"policy.actions[3].name"}, edit: func(_ *fixture, request proto.Message) {
				policy := request.(*keysvcv1.ApplyPolicyRequest).GetPolicy()
				policy.Actions = append(policy.GetActions(), &keysvcv1.PolicyAction{Title: "Paint"})
			}}},
			[]badCase{
				{path: "policy.resources", name: "1,001 scopes", violations: []string{"policy.resources"}, edit: func(_ *fixture, request proto.Message) {
					many := make([]string, 1001-20)
					for index := range many {
						many[index] = fmt.Sprint("a", index)
					}
					put(request, "policy.resources[0].actions", many)
				}},
				{path: "policy.resources", name: "the same twice", violations: []string{"policy.resources[9].name"}, edit: func(_ *fixture, request proto.Message) {
					policy := request.(*keysvcv1.ApplyPolicyRequest).GetPolicy()
					policy.Resources = append(policy.GetResources(), policy.GetResources()[0])
				}},
				{path: "policy.roles", name: "none", edit: func(_ *fixture, request proto.Message) { put(request, "policy.roles", nil) }},
				{path: "policy.roles", name: "101", edit: func(_ *fixture, request proto.Message) {
					policy := request.(*keysvcv1.ApplyPolicyRequest).GetPolicy()
					policy.Roles = nil
					for index := range 101 {
						policy.Roles = append(policy.GetRoles(), &keysvcv1.PolicyRole{Name: fmt.Sprint("r", index)})
					}
				}},
				{path: "policy.roles", name: "the same twice", violations: []string{"policy.roles[5].name"}, edit: func(_ *fixture, request proto.Message) {
					policy := request.(*keysvcv1.ApplyPolicyRequest).GetPolicy()
					policy.Roles = append(policy.GetRoles(), policy.GetRoles()[4])
				}},
				{
					path: "policy.resources.actions", name: "none", violations: []string{"policy.resources[7].actions", "policy.roles[2].scopes[7]"},
					edit: func(_ *fixture, request proto.Message) {
						put(request, "policy.resources[7].actions", nil)
						put(request, "policy.roles[2].scopes[7]", "integrations:read")
					},
				},
			},
			actions,
			at("policy.roles.name", "policy.roles[4].name", wrong("policy.roles[4].name", policyNames)),
			[]badCase{
				roleScope("empty", ""), roleScope("no action", "emails"), roleScope("unknown resource", "nope:read"),
				roleScope("unknown action", "emails:paint"), roleScope("any resource", "*:read"), roleScope("newline", "emails:read\n"),
				roleScope("NUL", "\x00"), roleScope("capitals", "Emails:read"), roleScope("10,000 characters", long(10_000)),
			},
			[]badCase{{
				path: "policy.limits", name: "missing",
				violations: []string{"policy.limits.live_keys_per_workspace", "policy.limits.scopes_per_key", "policy.limits.key_name_characters"},
				edit:       func(_ *fixture, request proto.Message) { put(request, "policy.limits", nil) },
			}},
			limit("live_keys_per_workspace", 1_000_000), limit("scopes_per_key", 1000), limit("key_name_characters", 1024),
			[]badCase{
				set("policy.retention", "missing", nil),
				set("policy.retention", "none", durationpb.New(0)),
				set("policy.retention", "negative", durationpb.New(-24*time.Hour)),
				set("policy.retention", "not whole days", durationpb.New(36*time.Hour)),
				set("policy.retention", "over ten years", durationpb.New(3651*24*time.Hour)),
				set("policy.retention", "two signs", &durationpb.Duration{Seconds: 86400, Nanos: -1}),
				set("policy.retention", "too large", &durationpb.Duration{Seconds: 1 << 62}),
				set("replaces_digest", "missing", ""),
			},
			as(codes.Aborted, "POLICY_CHANGED", notAField, append(wrong("replaces_digest", wrongCharacters),
				set("replaces_digest", "another", strings.Repeat("0", 64)), set("replaces_digest", "10,000 characters", long(10_000)))...),
			actor(),
		),
		fine: map[string]string{"validate_only": "a bool; the dump shows in TestPolicyPlanChangesNothing that it holds"},
	}
}

// TestBadInputIsRefusedByField sends every case of every walk.
func TestBadInputIsRefusedByField(t *testing.T) {
	t.Parallel()
	for _, walk := range walks() {
		t.Run(strings.TrimPrefix(walk.method, "/keysvc.v1."), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			before := f.dump(t)
			for _, c := range walk.cases {
				t.Run(c.path+"/"+c.name, func(t *testing.T) {
					c := c.withDefaults()
					request := walk.base(f)
					c.edit(f, request)
					err := f.invoke(t, walk.method, request)
					found := expectError(t, err, c.code, c.reason)
					var fields []string
					for _, violation := range found.bad.GetFieldViolations() {
						fields = append(fields, violation.GetField())
						if violation.GetDescription() == "" {
							t.Errorf("the violation of %s says nothing", violation.GetField())
						}
					}
					if !slices.Equal(fields, c.violations) && len(fields)+len(c.violations) > 0 {
						t.Errorf("got violations of %q, want %q; the message is %q", fields, c.violations, status.Convert(err).Message())
					}
					if message := status.Convert(err).Message(); len(message) > 4096 || strings.ContainsFunc(message, isControl) {
						t.Errorf("not fit to be shown: %.200q", message)
					}
					expectUnchanged(t, before, f.dump(t))
				})
			}
			if err := f.invoke(t, walk.method, walk.base(f)); walk.refused != "" {
				expectError(t, err, codes.FailedPrecondition, walk.refused)
			} else if err != nil {
				t.Errorf("the request that all of them were derived from is refused, too: %v", err)
			}
		})
	}
}

func isControl(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f }

// TestBadItemsOfABatch sends the cases of ValidateKey as items of a batch.
func TestBadItemsOfABatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	before := f.dump(t)
	good := &keysvcv1.ValidateKeyRequest{Token: f.key.GetToken(), RequiredScope: "signatures:read"}
	for _, c := range validationCases() {
		t.Run(c.path+"/"+c.name, func(t *testing.T) {
			c := c.withDefaults()
			item := proto.CloneOf(good)
			c.edit(f, item)
			response, err := f.validation.BatchValidateKeys(testContext(t), &keysvcv1.BatchValidateKeysRequest{
				Requests: []*keysvcv1.ValidateKeyRequest{good, item, good},
			})
			if err != nil || len(response.GetResponses()) != 3 {
				t.Fatalf("got %d responses, %v", len(response.GetResponses()), err)
			}
			for _, index := range []int{0, 2} {
				if response.GetResponses()[index].GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
					t.Errorf("the item beside it got %v", response.GetResponses()[index].GetReason())
				}
			}
			bad := response.GetResponses()[1]
			reason := strings.TrimPrefix(bad.GetError().GetReason().String(), "ERROR_REASON_")
			if bad.GetDecision() != keysvcv1.Decision_DECISION_UNSPECIFIED || bad.GetPrincipal() != nil || bad.GetKeyId() != "" ||
				codes.Code(bad.GetError().GetCode()) != c.code || reason != c.reason {
				t.Errorf("got %v, want %s with %s and no decision", bad, c.code, c.reason)
			}
			for _, field := range c.violations {
				if !strings.Contains(bad.GetError().GetMessage(), field+": ") {
					t.Errorf("the message %q does not name %s", bad.GetError().GetMessage(), field)
				}
			}
		})
	}
	// The uses were noted, and are written later.
	expectUnchanged(t, before, f.dump(t))
}

// TestEveryFieldHasACase fails if the API has a request or a field without a case, or if the walk
// has a case for a request or a field that the API does not have.
func TestEveryFieldHasACase(t *testing.T) {
	known := make(map[string]walk)
	for _, walk := range walks() {
		known[walk.method] = walk
	}
	for method := range methodsOf(t) {
		name := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
		walk, found := known[name]
		delete(known, name)
		if !found {
			t.Errorf("%s has no walk of bad input", name)
			continue
		}
		fields := fieldsOf(method.Input(), "")
		for _, field := range fields {
			if !walk.covers(field) {
				t.Errorf("%s: no case for the field %s", name, field)
			}
		}
		for _, c := range walk.cases {
			if !slices.Contains(fields, c.path) {
				t.Errorf("%s: the case %q is about %s, which is no field", name, c.name, c.path)
			}
		}
		for field := range walk.fine {
			if !slices.Contains(fields, field) && !strings.HasSuffix(field, ".") {
				t.Errorf("%s: %s is no field", name, field)
			}
		}
	}
	for name := range known {
		t.Errorf("%s has a walk and is no method", name)
	}
}

func (w walk) covers(field string) bool {
	for fine := range w.fine {
		if field == fine || strings.HasSuffix(fine, ".") && strings.HasPrefix(field, fine) {
			return true
		}
	}
	return slices.ContainsFunc(w.cases, func(c badCase) bool { return c.path == field })
}

// methodsOf yields every method of keysvc.v1.
func methodsOf(t *testing.T) func(yield func(protoreflect.MethodDescriptor) bool) {
	t.Helper()
	return func(yield func(protoreflect.MethodDescriptor) bool) {
		protoregistry.GlobalFiles.RangeFilesByPackage("keysvc.v1", func(file protoreflect.FileDescriptor) bool {
			for s := range file.Services().Len() {
				methods := file.Services().Get(s).Methods()
				for m := range methods.Len() {
					if !yield(methods.Get(m)) {
						return false
					}
				}
			}
			return true
		})
	}
}

// fieldsOf returns the paths of all fields of a message, and of those of the messages of this
// API in it.
func fieldsOf(message protoreflect.MessageDescriptor, prefix string) []string {
	var paths []string
	for index := range message.Fields().Len() {
		field := message.Fields().Get(index)
		path := prefix + string(field.Name())
		paths = append(paths, path)
		if field.Message() != nil && !field.IsMap() && field.Message().ParentFile().Package() == "keysvc.v1" {
			nested := fieldsOf(field.Message(), path+".")
			// A required container has a case of its own; other containers have only those of their
			// fields.
			paths = append(paths, nested...)
		}
	}
	return paths
}

// TestTokenInTheWrongFieldIsNeitherStoredNorRepeated puts a live token into every text of
// every request. The request may be refused or not, but the token is neither stored nor in an
// answer or the log.
func TestTokenInTheWrongFieldIsNeitherStoredNorRepeated(t *testing.T) {
	t.Parallel()
	for _, walk := range walks() {
		t.Run(strings.TrimPrefix(walk.method, "/keysvc.v1."), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			// The other fixture is for tails of tokens, which may be stored.
			token, other := f.key.GetToken(), f.other.GetToken()
			before := f.dump(t)
			for path := range textsOf(walk.base(f).ProtoReflect(), "") {
				if path == "token" || strings.HasSuffix(path, "].token") {
					continue // the field is for tokens
				}
				for name, text := range map[string]string{
					"token": token, "with Bearer": "Bearer " + token, "behind a colon": "x:" + token, "tail": other[len(other)-49:],
				} {
					t.Run(path+"/"+name, func(t *testing.T) {
						request := walk.base(f)
						put(request, path, text)
						response := dynamicResponse(t, walk.method)
						err := f.call(t, walk.method, request, response)
						told, _ := proto.Marshal(status.Convert(err).Proto())
						if holdsToken(string(told), token, other) {
							t.Errorf("the error says it again: %v", err)
						}
						if name == "tail" {
							return // the server cannot tell it from an id or a name
						}
						if err == nil {
							shown, _ := proto.Marshal(response)
							if holdsToken(string(shown), token) {
								t.Errorf("the answer says it again: %v", response)
							}
						}
						after := f.dump(t)
						for _, line := range after {
							if holdsToken(line, token) && !slices.Contains(before, line) {
								t.Errorf("it is stored now: %s", line)
							}
						}
						before = after
					})
				}
			}
			if log := f.log.String(); holdsToken(log, token) {
				t.Error("the log has it")
			}
		})
	}
}

// TestTextThatIsNotUTF8IsRefused sends text that is not UTF-8 in every field, without the
// client's own check. gRPC refuses it.
func TestTextThatIsNotUTF8IsRefused(t *testing.T) {
	t.Parallel()
	const marker = "notUTF8here"
	for _, walk := range walks() {
		t.Run(strings.TrimPrefix(walk.method, "/keysvc.v1."), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			before := f.dump(t)
			for path := range textsOf(walk.base(f).ProtoReflect(), "") {
				request := walk.base(f)
				put(request, path, marker)
				encoded, err := proto.Marshal(request)
				if err != nil {
					t.Fatal(err)
				}
				raw := bytes.ReplaceAll(encoded, []byte(marker), []byte("not\xff\xfe8here"))
				if len(raw) == len(encoded) && !bytes.Contains(raw, []byte("\xff\xfe")) {
					t.Fatalf("%s: the marker is not in the request", path)
				}
				var response []byte
				err = f.call(t, walk.method, &raw, &response, grpc.ForceCodec(rawCodec{}))
				if status.Code(err) != codes.Internal {
					t.Errorf("%s: got %v, want INTERNAL", path, err)
				}
			}
			expectUnchanged(t, before, f.dump(t))
		})
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(value any) ([]byte, error) { return *value.(*[]byte), nil }

func (rawCodec) Unmarshal(data []byte, value any) error {
	*value.(*[]byte) = slices.Clone(data)
	return nil
}

func (rawCodec) Name() string { return "proto" }

// textsOf yields the paths of all texts of a message. A list or map has one path, for a new
// element.
func textsOf(message protoreflect.Message, prefix string) func(yield func(string) bool) {
	return func(yield func(string) bool) { walkTexts(message.Descriptor(), prefix, yield) }
}

func walkTexts(message protoreflect.MessageDescriptor, prefix string, yield func(string) bool) bool {
	for index := range message.Fields().Len() {
		field := message.Fields().Get(index)
		path := prefix + string(field.Name())
		switch {
		case field.IsMap():
			if !yield(path+"{key}") || !yield(path+"{value}") {
				return false
			}
		case field.Kind() == protoreflect.StringKind && field.IsList():
			if !yield(path + "[0]") {
				return false
			}
		case field.Kind() == protoreflect.StringKind:
			if !yield(path) {
				return false
			}
		case field.Message() != nil && field.Message().FullName() == "google.protobuf.FieldMask":
			if !yield(path + ".paths[0]") {
				return false
			}
		case field.Message() != nil && field.Message().ParentFile().Package() == "keysvc.v1":
			if field.IsList() {
				path += "[0]"
			}
			if !walkTexts(field.Message(), path+".", yield) {
				return false
			}
		}
	}
	return true
}

// put sets the field at a path; nil clears it. Missing messages on the path are made. The
// last part of the path may be an element of a list, "scopes[0]", or "labels{key}" or
// "labels{value}" for the only element of a map.
func put(request proto.Message, path string, value any) {
	message := request.ProtoReflect()
	steps := strings.Split(path, ".")
	for _, step := range steps[:len(steps)-1] {
		name, index := indexOf(step)
		field := message.Descriptor().Fields().ByName(protoreflect.Name(name))
		if !field.IsList() {
			message = message.Mutable(field).Message()
			continue
		}
		list := message.Mutable(field).List()
		for list.Len() <= index {
			list.AppendMutable()
		}
		message = list.Get(index).Message()
	}
	last := steps[len(steps)-1]
	name, part, inMap := strings.Cut(strings.TrimSuffix(last, "}"), "{")
	name, index := indexOf(name)
	field := message.Descriptor().Fields().ByName(protoreflect.Name(name))
	if field == nil {
		panic(fmt.Sprintf("%s has no field %s", message.Descriptor().FullName(), path))
	}
	if inMap {
		text := value.(string)
		value = map[string]string{"key": text}
		if part == "key" {
			value = map[string]string{text: "value"}
		}
	}
	if index >= 0 {
		list := message.Mutable(field).List()
		for list.Len() <= index {
			list.Append(protoreflect.ValueOfString(""))
		}
		list.Set(index, protoreflect.ValueOf(value))
		return
	}
	message.Clear(field)
	switch value := value.(type) {
	case nil:
	case []string:
		for _, text := range value {
			message.Mutable(field).List().Append(protoreflect.ValueOfString(text))
		}
	case []protoreflect.EnumNumber:
		for _, number := range value {
			message.Mutable(field).List().Append(protoreflect.ValueOfEnum(number))
		}
	case map[string]string:
		for key, text := range value {
			message.Mutable(field).Map().Set(protoreflect.ValueOfString(key).MapKey(), protoreflect.ValueOfString(text))
		}
	case int:
		message.Set(field, protoreflect.ValueOfInt32(int32(value)))
	case proto.Message:
		message.Set(field, protoreflect.ValueOfMessage(value.ProtoReflect()))
	default:
		message.Set(field, protoreflect.ValueOf(value))
	}
}

// indexOf splits "scopes[3]" into name and index; the index is -1 if the text has none.
func indexOf(step string) (name string, index int) {
	name, number, found := strings.Cut(strings.TrimSuffix(step, "]"), "[")
	if !found {
		return name, -1
	}
	index, err := strconv.Atoi(number)
	if err != nil {
		panic(err)
	}
	return name, index
}

// invoke calls a method.
func (b *bench) invoke(t *testing.T, method string, request proto.Message) error {
	t.Helper()
	return b.call(t, method, request, dynamicResponse(t, method))
}

// call calls a method with a request and fills in the response. On a stream it sends the request
// after a hello, unless the request is itself a hello, and the response is the last one.
func (b *bench) call(t *testing.T, method string, request, response any, options ...grpc.CallOption) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	description := &keysvcv1.SyncService_ServiceDesc.Streams[0]
	switch method {
	case keysvcv1.SyncService_Sync_FullMethodName:
	case keysvcv1.BackupService_Backup_FullMethodName:
		description = &keysvcv1.BackupService_ServiceDesc.Streams[0]
	default:
		return b.conn.Invoke(ctx, method, request, response, options...)
	}
	stream, err := b.conn.NewStream(ctx, description, method, options...)
	if err != nil {
		t.Fatal(err)
	}
	said := []any{request}
	hello := &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}
	switch request := request.(type) {
	case *keysvcv1.SyncRequest:
		if request.GetHello() == nil {
			said = []any{hello, request}
		}
	case *[]byte:
		if method != keysvcv1.SyncService_Sync_FullMethodName {
			break
		}
		if decoded := (&keysvcv1.SyncRequest{}); proto.Unmarshal(*request, decoded) != nil && decoded.GetHello() == nil {
			encoded, err := proto.Marshal(hello)
			if err != nil {
				t.Fatal(err)
			}
			said = []any{&encoded, request}
		}
	}
	for _, each := range said {
		if err := stream.SendMsg(each); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for {
		switch err := stream.RecvMsg(response); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// dynamicResponse returns an empty response of a method.
func dynamicResponse(t *testing.T, method string) proto.Message {
	t.Helper()
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + name))
	if err != nil {
		t.Fatal(err)
	}
	output, err := protoregistry.GlobalTypes.FindMessageByName(found.(protoreflect.MethodDescriptor).Output().FullName())
	if err != nil {
		t.Fatal(err)
	}
	return output.New().Interface()
}
