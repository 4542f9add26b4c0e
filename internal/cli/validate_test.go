package cli_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/cli"
	"github.com/scribe-mail/keysvc/internal/token"
)

func allowed() *keysvcv1.ValidateKeyResponse {
	return &keysvcv1.ValidateKeyResponse{
		Decision: keysvcv1.Decision_DECISION_ALLOWED, KeyId: testID, Revision: 8, Epoch: "e1",
		Principal: &keysvcv1.Principal{KeyId: testID, WorkspaceId: "acme", MemberId: "ann", Role: "manager"},
	}
}

func TestValidateExitStatusIsTheDecision(t *testing.T) {
	const (
		unauthenticated = keysvcv1.Decision_DECISION_UNAUTHENTICATED
		denied          = keysvcv1.Decision_DECISION_PERMISSION_DENIED
	)
	var response *keysvcv1.ValidateKeyResponse
	c := command{addr: start(t, &fake{validateKey: func(context.Context, *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
		return response, nil
	}})}
	tests := []struct {
		decision keysvcv1.Decision
		reason   keysvcv1.Reason
		status   int
		stdout   string
	}{
		{unauthenticated, keysvcv1.Reason_REASON_KEY_INVALID, 3, "UNAUTHENTICATED: KEY_INVALID, the token is unknown, rotated away, or of another workspace"},
		{unauthenticated, keysvcv1.Reason_REASON_KEY_REVOKED, 3, "UNAUTHENTICATED: KEY_REVOKED, key K was revoked, or its member or workspace was removed"},
		{unauthenticated, keysvcv1.Reason_REASON_KEY_EXPIRED, 3, "UNAUTHENTICATED: KEY_EXPIRED, key K has expired"},
		{unauthenticated, keysvcv1.Reason_REASON_MEMBER_INACTIVE, 3, "UNAUTHENTICATED: MEMBER_INACTIVE, the member of key K is suspended"},
		{unauthenticated, 99, 3, "UNAUTHENTICATED: 99, key K may not pass, for a reason that this command does not know"},
		{denied, keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED, 4, "PERMISSION_DENIED: ADDRESS_NOT_ALLOWED, key K may not be used from this address, or none was given (--client-address)"},
		{denied, keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, 4, "PERMISSION_DENIED: SCOPE_NOT_GRANTED, key K was not granted emails:read"},
		{denied, keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE, 4, "PERMISSION_DENIED: SCOPE_BEYOND_ROLE, key K was granted emails:read, but its member's role does not have it now"},
		{99, 0, 1, "99: UNSPECIFIED, key K may not pass, for a reason that this command does not know"},
		{0, 0, 1, "UNSPECIFIED: UNSPECIFIED, key K may not pass, for a reason that this command does not know"},
	}
	for _, test := range tests {
		c.stdin = strings.NewReader(testToken + "\n")
		response = &keysvcv1.ValidateKeyResponse{Decision: test.decision, Reason: test.reason, KeyId: "K"}
		r := c.run(t, "validate", "--scope", "emails:read")
		if r.status != test.status || r.stdout != test.stdout+"\n" || (test.status == 1) != (r.stderr != "") {
			t.Errorf("%v %v: %+v", test.decision, test.reason, r)
		}
		c.stdin = strings.NewReader(testToken + "\n")
		if r := c.run(t, "validate", "--scope", "emails:read", "-o", "json"); r.status != test.status || !strings.HasPrefix(r.stdout, "{\n") {
			t.Errorf("%v %v as JSON: %+v", test.decision, test.reason, r)
		}
	}

	response = allowed()
	c.env = map[string]string{"KEYSVC_TOKEN": testToken}
	c.run(t, "validate", "--scope", "emails:read").want(t, 0, "ALLOWED key "+testID+" acts as member ann (manager) in workspace acme\n", "")
	golden(t, "validate.json", c.run(t, "validate", "--scope", "emails:read", "-o", "json").stdout)
	response.Principal.KeyName, response.Principal.Scopes = "deploy", []string{"emails:read", "signatures:read"}
	response.Principal.Labels, response.Principal.ExpireTime = map[string]string{"team": "web"}, at(12*day)
	golden(t, "validate_details.txt", c.run(t, "validate", "--identity-only", "--details").stdout)
}

func TestValidateSendsItsFlags(t *testing.T) {
	var got *keysvcv1.ValidateKeyRequest
	c := command{addr: start(t, &fake{validateKey: func(_ context.Context, r *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
		got = r
		return allowed(), nil
	}})}
	c.stdin = strings.NewReader(testToken)
	c.run(t, "validate", "--scope", "emails:read", "--workspace", "acme", "--client-address", "203.0.113.7", "--details", "--min-revision", "5", "--epoch", "e1")
	want := &keysvcv1.ValidateKeyRequest{
		TokenDigest: digestOf(testToken), KeyId: testID, RequiredScope: "emails:read", WorkspaceId: "acme", ClientAddress: "203.0.113.7",
		WithDetails: true, MinRevision: 5, Epoch: "e1",
	}
	if !proto.Equal(got, want) {
		t.Errorf("request %v", got)
	}
	c.env = map[string]string{"KEYSVC_TOKEN": testToken}
	c.run(t, "validate", "--identity-only")
	if !got.GetIdentityOnly() || got.GetRequiredScope() != "" {
		t.Errorf("request %v", got)
	}
	for _, args := range [][]string{
		{},
		{"--scope", ""},
		{"--scope", "emails:read", "--identity-only"},
		{"--identity-only", "--min-revision", "5"},
		{"--identity-only", "-", "-"},
		{"--identity-only", "", "-"},
	} {
		got = nil
		if r := c.run(t, append([]string{"validate"}, args...)...); r.status != cli.ExitFailure || r.stdout != "" || got != nil {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// digestOf returns the digest of a token.
func digestOf(text string) []byte {
	parsed, err := token.Parse(text)
	if err != nil {
		panic(err)
	}
	digest := parsed.Digest()
	return digest[:]
}

// hashOf returns what is sent of a foreign text.
func hashOf(text string) string {
	hash := sha256.Sum256([]byte(text))
	return string(hash[:])
}

func TestValidateSendsTheHashOfTheTextAsItIs(t *testing.T) {
	got := "nothing was sent"
	addr := start(t, &fake{validateKey: func(_ context.Context, r *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
		got = string(r.GetTokenDigest()) + r.GetKeyId() + r.GetToken()
		return &keysvcv1.ValidateKeyResponse{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_INVALID}, nil
	}})
	long := strings.Repeat("x", 16<<10)
	tests := []struct {
		stdin, env string
		dash       bool
		sent       string
	}{
		{stdin: "abc", sent: "abc"},
		{stdin: "abc\n", sent: "abc"},
		{stdin: "abc\r\n", sent: "abc"},
		{stdin: "ключ\x00", sent: "ключ\x00"},
		{stdin: long, sent: long},
		{env: "abc\n", sent: "abc"},
		{stdin: "abc", env: "def", sent: "def"},
		{stdin: "abc", env: "def", dash: true, sent: "abc"},
	}
	for _, test := range tests {
		c := command{addr: addr, stdin: strings.NewReader(test.stdin), env: map[string]string{"KEYSVC_TOKEN": test.env}}
		args := []string{"validate", "--identity-only"}
		if test.dash {
			args = append(args, "-")
		}
		got = "nothing was sent"
		if r := c.run(t, args...); r.status != 3 || got != hashOf(test.sent) {
			t.Errorf("stdin %.20q, env %q: %+v, sent %.20q", test.stdin, test.env, r, got)
		}
	}

	// A text that cannot be a token is not sent, and the answer says why.
	got = "nothing was sent"
	for text, problem := range map[string]string{
		"abc\n\n":                          "ends with white space",
		"abc\r":                            "ends with white space",
		" Bearer abc ":                     "begins with white space",
		"Bearer " + testToken:              "begins with Bearer; the token is what comes after that",
		`"` + testToken + `"`:              "is quoted; the quotes are no part of the token",
		"":                                 "is empty",
		"\n":                               "is empty",
		testToken[:len(testToken)-1] + "0": "has a wrong checksum: a letter was changed, or some were swapped",
		testToken[:len(testToken)-2]:       "is 2 characters too short: its end is missing",
	} {
		for format, stdout := range map[string]string{"table": "UNAUTHENTICATED: KEY_INVALID, the text " + problem + "\n", "json": `"reason": "REASON_KEY_INVALID"`, "yaml": "reason: REASON_KEY_INVALID\n"} {
			c := command{addr: addr, stdin: strings.NewReader(text)}
			r := c.run(t, "validate", "--identity-only", "-o", format)
			if r.status != cli.ExitUnauthenticated || !strings.Contains(r.stdout, stdout) || !strings.Contains(r.stdout+r.stderr, "the text "+problem+"\n") || got != "nothing was sent" {
				t.Errorf("%.20q: %+v, sent %.20q", text, r, got)
			}
		}
	}
	for _, text := range []string{"\xff\xfe", strings.Repeat("x", 600<<10)} {
		c := command{addr: addr, stdin: strings.NewReader(text)}
		if r := c.run(t, "validate", "--identity-only"); r.status != 1 || len(r.stderr) > 200 || got != "nothing was sent" {
			t.Errorf("%.10q: %+v, sent %.20q", text, r, got)
		}
	}

	// If both are given, the command says which one counts.
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	stdin, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer closeIt(t, stdin)
	c := command{addr: addr, stdin: stdin, env: map[string]string{"KEYSVC_TOKEN": "def"}}
	if r := c.run(t, "validate", "--identity-only"); got != hashOf("def") || !strings.HasPrefix(r.stderr, "note: the token is taken from KEYSVC_TOKEN") {
		t.Errorf("%+v, sent %q", r, got)
	}
}

func TestValidateInterruptedWhileReading(t *testing.T) {
	reader, writer := io.Pipe()
	defer closeIt(t, writer)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var stderr bytes.Buffer
	c := command{addr: "127.0.0.1:1", stdin: reader}
	if status := c.runTo(ctx, io.Discard, &stderr, "validate", "--identity-only"); status != 1 || stderr.String() != "error: interrupted\n" {
		t.Errorf("status %d, %q", status, stderr.String())
	}
}

func TestValidateAsksForSeveralScopes(t *testing.T) {
	asked := make(chan *keysvcv1.ValidateKeyRequest, 1)
	reason := keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED
	c := command{addr: start(t, &fake{validateKey: func(_ context.Context, request *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
		asked <- request
		return &keysvcv1.ValidateKeyResponse{
			Decision: keysvcv1.Decision_DECISION_PERMISSION_DENIED, Reason: reason, KeyId: "K",
			MissingScopes: []string{"assets:read", "emails:write"}, ByDigest: true,
		}, nil
	}})}
	for _, test := range []struct {
		flags    string
		all, any string
		reason   keysvcv1.Reason
		stdout   string
	}{
		{
			"--all-of emails:read,assets:read --all-of emails:write", "emails:read assets:read emails:write", "", keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED,
			"PERMISSION_DENIED: SCOPE_NOT_GRANTED, key K lacks assets:read, emails:write\n",
		},
		{
			"--any-of assets:read,emails:write", "", "assets:read emails:write", keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE,
			"PERMISSION_DENIED: SCOPE_BEYOND_ROLE, key K lacks assets:read, emails:write (one of them would do): its member's role does not have now what the key was granted\n",
		},
	} {
		reason = test.reason
		c.stdin = strings.NewReader(testToken + "\n")
		r := c.run(t, append([]string{"validate"}, strings.Fields(test.flags)...)...)
		if r.status != 4 || r.stdout != test.stdout {
			t.Errorf("%s: %+v", test.flags, r)
		}
		request := <-asked
		if strings.Join(request.GetAllOf(), " ") != test.all || strings.Join(request.GetAnyOf(), " ") != test.any {
			t.Errorf("%s: asked %v", test.flags, request)
		}
	}
	for _, flags := range []string{"", "--scope a:b --all-of c:d", "--identity-only --any-of c:d", "--all-of a:b --any-of c:d"} {
		c.stdin = strings.NewReader(testToken + "\n")
		if r := c.run(t, append([]string{"validate"}, strings.Fields(flags)...)...); r.status == 0 || !strings.Contains(r.stderr, "exactly one of --scope, --all-of, --any-of and --identity-only") {
			t.Errorf("%q: %+v", flags, r)
		}
	}
}
