package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func testKey() *keysvcv1.Key {
	return &keysvcv1.Key{
		KeyId: testID, WorkspaceId: "acme", MemberId: "ann", Name: "deploy",
		Scopes: []string{"emails:read", "signatures:read"}, State: keysvcv1.KeyState_KEY_STATE_ACTIVE,
		CreateTime: at(-30 * day), ExpireTime: at(12*day + time.Hour), LastUsedTime: at(-3 * time.Hour),
		Labels: map[string]string{"team": "web", "a": "1"}, AllowedCidrs: []string{"203.0.113.0/24"}, Etag: "7",
		Secrets:   []*keysvcv1.KeySecret{{CreateTime: at(-30 * day), ExpireTime: at(12 * day)}},
		CreatedBy: &keysvcv1.ChangedBy{Caller: "backend", ActorMemberId: "ann"},
	}
}

func TestKeyCreateSendsItsFlagsAndPrintsTheTokenAlone(t *testing.T) {
	var got *keysvcv1.CreateKeyRequest
	c := command{addr: start(t, &fake{createKey: func(_ context.Context, r *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error) {
		got = r
		key := testKey()
		key.LastUsedTime = nil
		return &keysvcv1.CreateKeyResponse{Key: key, Token: testToken, Revision: 17, Epoch: "e1"}, nil
	}})}

	r := c.run(
		t, "key", "create", "--workspace", "acme", "--member", "ann", "--name", "deploy",
		"--scope", "signatures:read, emails:read", "--scope", "assets:read", "--expires-in", "90d",
		"--label", "team=web,mail", "--label", "empty=", "--allow-cidr", "203.0.113.0/24,2001:db8::/32",
		"--request-id", "r1", "--actor", "bob",
	)
	if r.status != 0 || r.stdout != testToken+"\n" {
		t.Errorf("status %d, stdout %q, want the token alone", r.status, r.stdout)
	}
	golden(t, "key_create.stderr", r.stderr)
	want := &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "deploy",
		Scopes:       []string{"signatures:read", "emails:read", "assets:read"},
		ExpireTime:   at(90 * day),
		Labels:       map[string]string{"team": "web,mail", "empty": ""},
		AllowedCidrs: []string{"203.0.113.0/24", "2001:db8::/32"},
		RequestId:    new("r1"), ActorMemberId: new("bob"),
	}
	if !proto.Equal(got, want) {
		t.Errorf("request %v, want %v", got, want)
	}

	least := []string{"key", "create", "--workspace", "acme", "--member", "ann", "--name", "deploy", "--scope", "emails:read"}
	r = c.run(t, append(least, "-o", "json", "--expire-time", "2027-03-31T14:00:00+02:00")...)
	golden(t, "key_create.json", r.stdout)
	if r.status != 0 || !strings.Contains(r.stderr, "shown only once") {
		t.Errorf("%+v", r)
	}
	if got.RequestId != nil || got.ActorMemberId != nil || got.GetExpireTime().AsTime() != time.Date(2027, 3, 31, 12, 0, 0, 0, time.UTC) {
		t.Errorf("request %v", got)
	}
	c.run(t, least...)
	if got.GetExpireTime() != nil {
		t.Errorf("expire_time %v without a flag", got.GetExpireTime())
	}

	for _, more := range [][]string{
		{"--expires-in", "0d"},
		{"--expires-in", "-1h"},
		{"--expires-in", "1y"},
		{"--expires-in", "d"},
		{"--expires-in", "90d", "--expire-time", "2027-03-31T12:00:00Z"},
		{"--expire-time", "tomorrow"},
		{"--label", "team"},
		{"--label", "a=1", "--label", "a=2"},
		{"--scope", "a:b,,c:d"},
	} {
		got = nil
		if r := c.run(t, append(least, more...)...); r.status != 2 || !strings.HasPrefix(r.stderr, "error: ") || got != nil {
			t.Errorf("%v: %+v, request %v", more, r, got)
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestKeyCreateReportsThatTheTokenIsLost(t *testing.T) {
	c := command{addr: start(t, &fake{createKey: func(context.Context, *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error) {
		return &keysvcv1.CreateKeyResponse{Key: testKey(), Token: testToken}, nil
	}})}
	var stderr bytes.Buffer
	status := c.runTo(t.Context(), brokenWriter{}, &stderr, "key", "create", "--workspace", "acme", "--member", "ann", "--name", "deploy", "--scope", "emails:read")
	want := "error: write the answer: no space left on device; the token is lost, so revoke the key: keysvc key revoke " + testID + " --workspace acme --yes\n"
	if status != 1 || stderr.String() != want {
		t.Errorf("status %d\n%s\nwant\n%s", status, stderr.String(), want)
	}
}

func TestKeyGetShowsTheWholeKey(t *testing.T) {
	key := testKey()
	c := command{addr: start(t, &fake{getKey: func(_ context.Context, r *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
		if r.GetKeyId() != testID || r.GetWorkspaceId() != "acme" {
			t.Errorf("request %v", r)
		}
		return &keysvcv1.GetKeyResponse{
			Key: key, Role: "manager", EffectiveScopes: []string{"signatures:read"}, Revision: 9_007_199_254_740_993, Epoch: "e1",
		}, nil
	}})}
	args := []string{"key", "get", testID, "--workspace", "acme"}
	r := c.run(t, args...)
	golden(t, "key_get_now.txt", r.stdout)
	if r.status != 0 || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	first := c.run(t, append(args, "-o", "json")...)
	golden(t, "key_get.json", first.stdout)

	key = &keysvcv1.Key{
		KeyId: testID, Name: "evil \x1b[31m\u202ename\n", State: keysvcv1.KeyState(77),
		CreateTime: at(0), ExpireTime: at(-80 * time.Second), RevokeTime: at(-90 * time.Minute),
		Secrets: []*keysvcv1.KeySecret{{CreateTime: at(-day), ExpireTime: at(day)}, {CreateTime: at(-2 * day), ExpireTime: at(20 * time.Second)}},
	}
	golden(t, "key_get_odd.txt", c.run(t, args...).stdout)
}

func TestKeyRevokeShowsTheRevokedKey(t *testing.T) {
	c := command{addr: start(t, &fake{revokeKey: func(_ context.Context, r *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
		if !proto.Equal(r, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: testID, ActorMemberId: new("bob")}) {
			t.Errorf("request %v", r)
		}
		key := testKey()
		key.State, key.RevokeTime = keysvcv1.KeyState_KEY_STATE_REVOKED, at(0)
		key.RevokedBy, key.StopTime, key.StopReason = &keysvcv1.ChangedBy{Caller: "local"}, at(0), keysvcv1.StopReason_STOP_REASON_REVOKED
		return &keysvcv1.RevokeKeyResponse{Key: key}, nil
	}})}
	r := c.run(t, "key", "revoke", testID, "--workspace", "acme", "--yes", "--actor", "bob")
	golden(t, "key_revoke.txt", r.stdout)
	if r.status != 0 || r.stderr != "" {
		t.Errorf("%+v", r)
	}
}

func TestKeyListSendsItsFilters(t *testing.T) {
	var got *keysvcv1.ListKeysRequest
	c := command{addr: start(t, &fake{listKeys: func(_ context.Context, r *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
		got = r
		many := testKey()
		many.KeyId, many.Name, many.State, many.LastUsedTime = "AAAAAAAAAAAAAAAA", "nächtlicher Bericht", keysvcv1.KeyState_KEY_STATE_REVOKED, nil
		many.Scopes = strings.Fields("a:1 a:2 a:3 a:4 a:5 a:6 a:7 a:8")
		many.CreatedBy, many.StopTime, many.StopReason = nil, at(-2*day), keysvcv1.StopReason_STOP_REASON_MEMBER_REMOVED
		return &keysvcv1.ListKeysResponse{Keys: []*keysvcv1.Key{testKey(), many}, Revision: 3, Epoch: "e1"}, nil
	}})}
	r := c.run(
		t, "key", "list", "--workspace", "acme", "--member", "ann", "--state", "active,REVOKED", "--state", "expired",
		"--scope", "emails:read", "--expiring-within", "30d", "--unused-for", "36h",
	)
	golden(t, "key_list.txt", r.stdout)
	if r.status != 0 || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	want := &keysvcv1.ListKeysRequest{
		WorkspaceId: "acme", MemberId: new("ann"), Scope: new("emails:read"),
		States:         []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_ACTIVE, keysvcv1.KeyState_KEY_STATE_REVOKED, keysvcv1.KeyState_KEY_STATE_EXPIRED},
		ExpiringBefore: at(30 * day), UnusedSince: at(-36 * time.Hour), PageSize: 50,
	}
	if !proto.Equal(got, want) {
		t.Errorf("request %v, want %v", got, want)
	}
	golden(t, "key_list.json", c.run(t, "key", "list", "-o", "json", "--expiring-before", "2027-01-01T00:00:00Z").stdout)
	// Without --state, these filters leave out revoked keys.
	want = &keysvcv1.ListKeysRequest{
		States:         []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_ACTIVE, keysvcv1.KeyState_KEY_STATE_SUSPENDED, keysvcv1.KeyState_KEY_STATE_EXPIRED},
		ExpiringBefore: timestamppb.New(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)), PageSize: 50,
	}
	if !proto.Equal(got, want) {
		t.Errorf("request %v, want %v", got, want)
	}
	c.run(t, "key", "list", "--unused-for", "90d", "--state", "revoked")
	if states := got.GetStates(); len(states) != 1 || states[0] != keysvcv1.KeyState_KEY_STATE_REVOKED {
		t.Errorf("states %v", states)
	}
	golden(t, "key_list_wide.txt", c.run(t, "key", "list", "--workspace", "acme", "-o", "wide").stdout)
	c.run(t, "key", "list", "--revoked")
	if states := fmt.Sprint(got.GetStates()); states != "[KEY_STATE_EXPIRED KEY_STATE_REVOKED]" {
		t.Errorf("--revoked: states %s", states)
	}
	live := []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_ACTIVE, keysvcv1.KeyState_KEY_STATE_SUSPENDED}
	c.run(t, "key", "list")
	if !proto.Equal(got, &keysvcv1.ListKeysRequest{PageSize: 50, States: live}) {
		t.Errorf("request %v", got)
	}
}

func TestKeyListSearchesAndCounts(t *testing.T) {
	var got []*keysvcv1.ListKeysRequest
	total := new(int32(7))
	c := command{addr: start(t, &fake{listKeys: func(_ context.Context, r *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
		got = append(got, r)
		response := &keysvcv1.ListKeysResponse{Keys: []*keysvcv1.Key{testKey()}}
		if r.GetWithTotalSize() {
			response.TotalSize, response.NextPageToken = total, "next"
		}
		return response, nil
	}})}
	list := []string{"key", "list", "--workspace", "acme", "--name", "Back up", "--total", "-o", "name"}
	id := testKey().GetKeyId() + "\n"
	c.run(t, list...).want(t, 0, id+id, "7 keys in all\n")
	if len(got) != 2 || got[0].GetNameContains() != "Back up" || got[1].GetNameContains() != "Back up" || got[1].GetWithTotalSize() {
		t.Errorf("requests %v", got)
	}
	total = nil
	c.run(t, list...).want(t, 0, id+id, "the keys were not counted: the workspace has more than 10,000 stored\n")
	c.run(t, "key", "list", "--total").want(t, 2, "",
		"error: --total counts the keys of one workspace: --workspace is needed (see keysvc key list --help)\n")
}

// shelf has total keys and gives at most perPage of them at a time; its page
// tokens are offsets. The page after the first is empty.
type shelf struct {
	total, perPage int
	sizes          []int32
}

func (s *shelf) list(_ context.Context, r *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
	s.sizes = append(s.sizes, r.GetPageSize())
	response := &keysvcv1.ListKeysResponse{}
	offset := 0
	if text, empty := strings.CutSuffix(r.GetPageToken(), "empty"); empty {
		response.NextPageToken = text
		return response, nil
	}
	if r.GetPageToken() != "" {
		if _, err := fmt.Sscan(r.GetPageToken(), &offset); err != nil {
			return nil, err
		}
	}
	for i := range min(s.perPage, int(r.GetPageSize()), s.total-offset) {
		key := testKey()
		key.KeyId = fmt.Sprintf("%016d", offset+i)
		response.Keys = append(response.Keys, key)
	}
	if end := offset + len(response.GetKeys()); end < s.total {
		response.NextPageToken = fmt.Sprint(end)
		if offset == 0 {
			response.NextPageToken += "empty"
		}
	}
	return response, nil
}

func TestListGoesFromPageToPage(t *testing.T) {
	s := &shelf{total: 120, perPage: 40}
	c := command{addr: start(t, &fake{listKeys: s.list})}
	ids := func(table string) (ids []string) {
		for line := range strings.Lines(table) {
			if id, _, _ := strings.Cut(line, " "); id != "KEY" {
				ids = append(ids, id)
			}
		}
		return ids
	}
	tests := []struct {
		args        []string
		first, last string
		count       int
		stderr      string
		sizes       string
	}{
		{nil, "0000000000000000", "0000000000000049", 50, "there may be more keys: go on with --page-token 50, or show all with --all\n", "[50 10 10]"},
		{[]string{"--limit", "7"}, "0000000000000000", "0000000000000006", 7, "there may be more keys: go on with --page-token 7empty, or show all with --all\n", "[7]"},
		{[]string{"--limit", "5000"}, "0000000000000000", "0000000000000119", 120, "", "[1000 1000 1000 1000]"},
		{[]string{"--all"}, "0000000000000000", "0000000000000119", 120, "", "[1000 1000 1000 1000]"},
		{[]string{"--page-token", "110"}, "0000000000000110", "0000000000000119", 10, "", "[50]"},
		{
			[]string{"--limit", "1", "--expiring-within", "30d", "--unused-for", "90d"},
			"0000000000000000", "0000000000000000", 1,
			"there may be more keys: go on with --page-token 1empty and --expiring-before 2026-12-23T06:02:30Z in place of --expiring-within" +
				" and --unused-since 2026-08-25T06:02:30Z in place of --unused-for, or show all with --all\n", "[1]",
		},
	}
	for _, test := range tests {
		s.sizes = nil
		r := c.run(t, append([]string{"key", "list"}, test.args...)...)
		got := ids(r.stdout)
		if r.status != 0 || len(got) != test.count || got[0] != test.first || got[len(got)-1] != test.last || r.stderr != test.stderr {
			t.Errorf("%v: status %d, %d rows, stderr %q", test.args, r.status, len(got), r.stderr)
		}
		if sizes := fmt.Sprint(s.sizes); sizes != test.sizes {
			t.Errorf("%v: page sizes %s, want %s", test.args, sizes, test.sizes)
		}
		if strings.Count(r.stdout, "KEY ID") != 1 {
			t.Errorf("%v: not one header", test.args)
		}
	}

	// As JSON and YAML it is one document, however many pages it has.
	for _, args := range [][]string{{"--all"}, {"--limit", "5000"}} {
		var all struct {
			Keys []struct {
				ID string `json:"key_id" yaml:"key_id"`
			} `json:"keys" yaml:"keys"`
			NextPageToken string `json:"next_page_token" yaml:"next_page_token"`
		}
		for format, decode := range map[string]func([]byte, any) error{"json": json.Unmarshal, "yaml": yaml.Unmarshal} {
			all.Keys, all.NextPageToken = nil, ""
			r := c.run(t, append([]string{"key", "list", "-o", format}, args...)...)
			if err := decode([]byte(r.stdout), &all); err != nil || r.status != 0 || len(all.Keys) != 120 || all.NextPageToken != "" {
				t.Fatalf("%v as %s: %v, %d keys, %+v", args, format, err, len(all.Keys), r)
			}
			for number, key := range all.Keys {
				if want := fmt.Sprintf("%016d", number); key.ID != want {
					t.Errorf("key %q, want %q", key.ID, want)
				}
			}
		}
	}
	if r := c.run(t, "key", "list", "-o", "json", "--limit", "50"); !strings.Contains(r.stdout, `"next_page_token": "50"`) || !strings.Contains(r.stderr, "--page-token 50") {
		t.Errorf("with more to come: %+v", r)
	}
	if names := strings.Fields(c.run(t, "key", "list", "--all", "-o", "name").stdout); len(names) != 120 || names[119] != "0000000000000119" {
		t.Errorf("names %q", names)
	}

	s.total = 0
	r := c.run(t, "key", "list")
	if r.status != 0 || strings.Count(r.stdout, "\n") != 1 || r.stderr != noLiveKeys {
		t.Errorf("an empty list: %+v", r)
	}
	if r := c.run(t, "key", "list", "--all", "--limit", "3"); r.status != 2 {
		t.Errorf("--all and --limit: %+v", r)
	}
}

func TestListEndsWhenTheServerGoesInCircles(t *testing.T) {
	c := command{addr: start(t, &fake{listKeys: func(context.Context, *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
		return &keysvcv1.ListKeysResponse{NextPageToken: "x"}, nil
	}})}
	if r := c.run(t, "key", "list", "--all"); r.status != 1 || r.stderr != "error: the server gave the same page token again\n" {
		t.Errorf("%+v", r)
	}
}

// TestListShowsAPageBeforeItAsksForTheNext sees the first page before the second was asked for.
func TestListShowsAPageBeforeItAsksForTheNext(t *testing.T) {
	s := &shelf{total: 2, perPage: 1}
	reader, writer := io.Pipe()
	asked := make(chan struct{})
	c := command{addr: start(t, &fake{listKeys: func(ctx context.Context, r *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
		if r.GetPageToken() != "" {
			select {
			case <-asked:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return s.list(ctx, r)
	}})}
	done := make(chan int)
	go func() {
		done <- c.runTo(t.Context(), writer, io.Discard, "key", "list", "--all")
		closeIt(t, writer)
	}()
	buffer := make([]byte, 4096)
	n, err := reader.Read(buffer)
	if err != nil || !strings.Contains(string(buffer[:n]), "0000000000000000") {
		t.Errorf("first page %q, %v", buffer[:n], err)
	}
	close(asked)
	go func() { _, _ = io.Copy(io.Discard, reader) }()
	if status := <-done; status != 0 {
		t.Errorf("status %d", status)
	}
}
