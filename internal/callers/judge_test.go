package callers_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/token"
)

var now = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

// owner is the user id of the process in these tests.
const owner = 1000

// verifier says of certificates and tokens what a test wants. It counts how often it was asked.
type verifier struct {
	verified callers.Verified
	bearer   callers.VerifiedBearer
	err      error
	asked    int
}

func (v *verifier) VerifyCertificate([]*x509.Certificate) (callers.Verified, error) {
	v.asked++
	return v.verified, v.err
}

func (v *verifier) VerifyBearer(context.Context, string, string) (callers.VerifiedBearer, error) {
	v.asked++
	return v.bearer, v.err
}

// newJudge returns a judge over a callers file; "" for none.
func newJudge(t testing.TB, file string, proves *verifier) *callers.TableJudge {
	t.Helper()
	judge := callers.NewTableJudge(owner, func() time.Time { return now })
	if proves != nil {
		judge.SetTrust(proves, proves)
	}
	if file != "" {
		setTable(t, judge, file)
	}
	return judge
}

func setTable(t testing.TB, judge *callers.TableJudge, text string) {
	t.Helper()
	file, err := callers.Parse("callers.yaml", []byte(text), users)
	if err != nil {
		t.Fatal(err)
	}
	judge.SetTable(callers.NewTable(file))
}

// show returns an identity in one line, or the error.
func show(identity *callers.Identity, err error) string {
	if err != nil || identity == nil {
		return fmt.Sprintf("nobody: %v", err)
	}
	return fmt.Sprintf("%s by %s %q, %s", identity.Name, identity.Source, identity.Credential, identity.Rule)
}

func expect(t *testing.T, name string, identity *callers.Identity, err error, want string) {
	t.Helper()
	if (identity == nil) != (err != nil) {
		t.Errorf("%s: identity %v with error %v", name, identity, err)
	}
	if got := show(identity, err); !strings.HasPrefix(got, want) {
		t.Errorf("%s: got %s; want %s…", name, got, want)
	}
}

func TestWithoutAFileOnlyThisMachineMayCall(t *testing.T) {
	judge := newJudge(t, "", &verifier{verified: callers.Verified{SPIFFEID: "spiffe://a/b", TrustDomain: "a", NotAfter: now.Add(time.Hour)}})
	for name, test := range map[string]struct {
		peer callers.Peer
		want string
	}{
		"owner":                     {callers.Peer{Source: callers.SourceUnix, UserID: owner}, `owner by unix "uid 1000", built in: the owner`},
		"another user":              {callers.Peer{Source: callers.SourceUnix, UserID: 1001}, "nobody: uid 1001: no caller has it"},
		"root":                      {callers.Peer{Source: callers.SourceUnix}, "nobody: uid 0"},
		"an unmapped user":          {callers.Peer{Source: callers.SourceUnix, UserID: 65534}, "nobody: the user id 65534 stands for"},
		"no user":                   {callers.Peer{Source: callers.SourceUnix, UserID: 1<<32 - 1}, "nobody: the user id 4294967295 stands for"},
		"loopback":                  {callers.Peer{Source: callers.SourceLoopback, Address: "127.0.0.1:1"}, "local by loopback"},
		"loopback of IPv6":          {callers.Peer{Source: callers.SourceLoopback, Address: "[::1]:1"}, "local by loopback"},
		"loopback, mapped":          {callers.Peer{Source: callers.SourceLoopback, Address: "[::ffff:127.0.0.1]:1"}, "local by loopback"},
		"in the process":            {callers.Peer{Source: callers.SourceLoopback}, "local by loopback"},
		"another machine":           {callers.Peer{Source: callers.SourceLoopback, Address: "10.0.0.1:1"}, "nobody: a plaintext connection from another machine"},
		"an unknown address":        {callers.Peer{Source: callers.SourceLoopback, Address: "somewhere"}, "nobody: a plaintext connection from another"},
		"the zero Peer":             {callers.Peer{}, "nobody: a connection cannot have the source"},
		"a bearer's source":         {callers.Peer{Source: callers.SourceToken}, "nobody: a connection cannot have the source"},
		"TLS without a certificate": {callers.Peer{Source: callers.SourceSPIFFE}, "nobody: it has presented no certificate"},
		"a certificate":             {callers.Peer{Source: callers.SourceSPIFFE, Certificates: chain(1, "")}, "nobody: the certificate 1: spiffe://a/b: no caller has it"},
	} {
		identity, err := judge.Connection(&test.peer)
		expect(t, name, identity, err, test.want)
	}
	if identity, _ := judge.Connection(&callers.Peer{Source: callers.SourceUnix, UserID: owner}); !identity.For(access.Administer).IsAll() {
		t.Error("the owner may not administer")
	}
}

// chain returns a chain of one certificate with a serial number and an issuer.
func chain(serial int64, issuer string) []*x509.Certificate {
	return []*x509.Certificate{{SerialNumber: big.NewInt(serial), Issuer: pkix.Name{CommonName: issuer}, Raw: []byte{byte(serial)}}}
}

func TestWithAFilePlaintextAndUsersGetWhatItSays(t *testing.T) {
	const file = "version: 1\ncallers:\n- {name: cron, uid: [0, 1001], rights: [read]}\n- {name: me, uid: [1000], rights: [read]}\n"
	judge := newJudge(t, file, nil)
	for name, test := range map[string]struct {
		peer callers.Peer
		want string
	}{
		// A mistake in the file must not lock the operator out.
		"owner":    {callers.Peer{Source: callers.SourceUnix, UserID: owner}, "owner by unix"},
		"cron":     {callers.Peer{Source: callers.SourceUnix, UserID: 1001}, `cron by unix "uid 1001", callers.yaml:3`},
		"root":     {callers.Peer{Source: callers.SourceUnix}, `cron by unix "uid 0"`},
		"another":  {callers.Peer{Source: callers.SourceUnix, UserID: 1002}, "nobody: uid 1002"},
		"loopback": {callers.Peer{Source: callers.SourceLoopback, Address: "127.0.0.1:1"}, "nobody: plaintext from this machine: no caller"},
	} {
		identity, err := judge.Connection(&test.peer)
		expect(t, name, identity, err, test.want)
	}
	setTable(t, judge, "version: 1\ncallers: [{name: sidecar, loopback: true, rights: [validate]}]\n")
	identity, err := judge.Connection(&callers.Peer{Source: callers.SourceLoopback, Address: "127.0.0.1:1"})
	expect(t, "loopback with an entry", identity, err, "sidecar by loopback")
	if identity.May(access.Read) || !identity.May(access.Validate) {
		t.Error("the sidecar has other rights")
	}
	setTable(t, judge, "version: 1\ncallers: []\n")
	identity, err = judge.Connection(&callers.Peer{Source: callers.SourceUnix, UserID: 1001})
	expect(t, "removed", identity, err, "nobody")
}

const certificates = `version: 1
trust_domains: [{name: prod.example, bundle: b}, {name: other.example, bundle: b}]
client_ca: ca.pem
callers:
- {name: gateway, spiffe: [spiffe://prod.example/gateway], rights: [validate]}
- {name: mailer, dns: [mailer.example, mail.example], rights: [validate]}
- {name: backend, dns: [backend.example], rights: [issue]}
deny:
  certificates:
  - {serial: "0A"}
  - {serial: "0b", issuer: "CN=old"}
  spiffe: [spiffe://prod.example/gone]
  dns: [gone.example]
`

func TestCertificatesMatchExactly(t *testing.T) {
	ends := now.Add(time.Hour)
	spiffe := func(id, domain string) callers.Verified {
		return callers.Verified{SPIFFEID: id, TrustDomain: domain, Serial: "1", NotAfter: ends}
	}
	dns := func(names ...string) callers.Verified {
		return callers.Verified{DNSNames: names, Serial: "1", NotAfter: ends}
	}
	for name, test := range map[string]struct {
		chain    []*x509.Certificate
		verified callers.Verified
		want     string
	}{
		"a SPIFFE id":                  {chain(1, ""), spiffe("spiffe://prod.example/gateway", "prod.example"), `gateway by spiffe "certificate 1 of spiffe://prod.example/gateway", callers.yaml:5`},
		"another path":                 {chain(1, ""), spiffe("spiffe://prod.example/gateway/x", "prod.example"), "nobody: the certificate 1: spiffe://prod.example/gateway/x: no caller"},
		"a path in upper case":         {chain(1, ""), spiffe("spiffe://prod.example/Gateway", "prod.example"), "nobody"},
		"the path elsewhere":           {chain(1, ""), spiffe("spiffe://other.example/gateway", "other.example"), "nobody"},
		"another domain's bundle":      {chain(1, ""), spiffe("spiffe://prod.example/gateway", "other.example"), "nobody: the certificate 1: its SPIFFE id"},
		"no bundle":                    {chain(1, ""), spiffe("spiffe://prod.example/gateway", ""), "nobody"},
		"a domain alone":               {chain(1, ""), spiffe("spiffe://prod.example", "prod.example"), "nobody"},
		"SPIFFE and DNS":               {chain(1, ""), callers.Verified{SPIFFEID: "spiffe://prod.example/x", TrustDomain: "prod.example", DNSNames: []string{"mailer.example"}, NotAfter: ends}, "nobody"},
		"a denied SPIFFE id":           {chain(1, ""), spiffe("spiffe://prod.example/gone", "prod.example"), "nobody: the certificate 1: spiffe://prod.example/gone: it is denied by callers.yaml:12"},
		"a DNS name":                   {chain(1, ""), dns("mailer.example"), `mailer by dns "certificate 1 of mailer.example", callers.yaml:6`},
		"two names of one caller":      {chain(1, ""), dns("mailer.example", "mail.example"), "mailer by dns"},
		"names of two callers":         {chain(1, ""), dns("mailer.example", "backend.example"), "nobody: the certificate 1: it names two callers: mailer and backend"},
		"one known name of two":        {chain(1, ""), dns("unknown.example", "backend.example"), "backend by dns"},
		"a subdomain":                  {chain(1, ""), dns("x.mailer.example"), "nobody"},
		"a wildcard":                   {chain(1, ""), dns("*.example"), "nobody"},
		"a denied name beside":         {chain(1, ""), dns("mailer.example", "gone.example"), "nobody: the certificate 1: gone.example: it is denied by callers.yaml:13"},
		"no name":                      {chain(1, ""), dns(), "nobody"},
		"a denied serial":              {chain(10, "any"), dns("mailer.example"), "nobody: the certificate a: it is denied by callers.yaml:10"},
		"a denied serial of an issuer": {chain(11, "old"), dns("mailer.example"), "nobody: the certificate b: it is denied by callers.yaml:11"},
		"the serial of another":        {chain(11, "new"), dns("mailer.example"), "mailer by dns"},
		"a denied intermediate":        {append(chain(1, ""), chain(10, "x")...), dns("mailer.example"), "nobody: the certificate 1: it is denied"},
		"expired now":                  {chain(1, ""), callers.Verified{DNSNames: []string{"mailer.example"}, NotAfter: now}, "nobody: the certificate 1: it has expired"},
		"without an end":               {chain(1, ""), callers.Verified{DNSNames: []string{"mailer.example"}}, "nobody"},
	} {
		judge := newJudge(t, certificates, &verifier{verified: test.verified})
		identity, err := judge.Connection(&callers.Peer{Source: callers.SourceSPIFFE, Address: "10.0.0.1:1", Certificates: test.chain})
		expect(t, name, identity, err, test.want)
		if identity != nil && !identity.NotAfter.Equal(ends) {
			t.Errorf("%s: ends at %s", name, identity.NotAfter)
		}
	}
	// What cannot be verified proves nothing; without a verifier, nothing does.
	judge := newJudge(t, certificates, &verifier{verified: dns("mailer.example"), err: errors.New("x509: unknown authority")})
	identity, err := judge.Connection(&callers.Peer{Source: callers.SourceSPIFFE, Certificates: chain(1, "")})
	expect(t, "unverified", identity, err, "nobody: the certificate 1: x509: unknown authority")
	identity, err = newJudge(t, certificates, nil).Connection(&callers.Peer{Source: callers.SourceSPIFFE, Certificates: chain(1, "")})
	expect(t, "no verifier", identity, err, "nobody: the certificate 1: no authority")
}

// TestCertificatesAreVerifiedOnce: when the callers file changes, every connection is judged again.
func TestCertificatesAreVerifiedOnce(t *testing.T) {
	proves := &verifier{verified: callers.Verified{DNSNames: []string{"mailer.example"}, NotAfter: now.Add(time.Hour)}}
	judge := newJudge(t, certificates, proves)
	peer := &callers.Peer{Source: callers.SourceSPIFFE, Certificates: chain(1, "")}
	for range 3 {
		identity, err := judge.Connection(peer)
		expect(t, "again", identity, err, "mailer")
		setTable(t, judge, certificates)
	}
	if proves.asked != 1 {
		t.Errorf("verified %d times", proves.asked)
	}
	// New roots: it must be verified anew.
	judge.SetTrust(&verifier{err: errors.New("unknown authority")}, nil)
	identity, err := judge.Connection(peer)
	expect(t, "other roots", identity, err, "nobody: the certificate 1: unknown authority")
}

// bearerPeer is a peer that may bring a token.
var bearerPeer = &callers.Peer{Source: callers.SourceSPIFFE, Address: "10.0.0.1:4711", BearerAllowed: true}

// tokenLine returns the line of a token in a callers file.
func tokenLine(made token.Caller, more string) string {
	return fmt.Sprintf("{id: %s, hash: %q%s}", made.ID(), callers.FormatHash(made.Hash()), more)
}

func newToken(t testing.TB) token.Caller {
	t.Helper()
	made, err := token.NewCaller("scribe", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestCallerTokensProveWhoCalls(t *testing.T) {
	first, second, expired, denied, other := newToken(t), newToken(t), newToken(t), newToken(t), newToken(t)
	file := "version: 1\ncallers:\n- {name: laptop, tokens: [" + tokenLine(first, "") + ", " + tokenLine(second, `, not_after: "2027-03-01T12:00:01Z"`) + "], rights: [read]}\n" +
		"- {name: old, tokens: [" + tokenLine(expired, `, not_after: "2027-03-01T12:00:00Z"`) + ", " + tokenLine(denied, "") + "], rights: [read]}\n" +
		"deny: {tokens: [" + denied.ID() + "]}\n"
	judge := newJudge(t, file, nil)
	id, err := token.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := token.New("scribe", id, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// A token with the id of one and the secret of another, and a good checksum, cannot be made here;
	// an unknown token stands for it, because both miss by the hash.
	for name, test := range map[string]struct{ bearer, want string }{
		"one":           {first.Reveal(), `laptop by token "token ` + first.ID() + `", callers.yaml:3`},
		"the other":     {second.Reveal(), "laptop by token"},
		"expired":       {expired.Reveal(), "nobody: the token " + expired.ID() + ": it has expired"},
		"denied":        {denied.Reveal(), "nobody: the token " + denied.ID() + ": it is denied by callers.yaml:5"},
		"unknown":       {other.Reveal(), "nobody: no caller has a token with this id and this secret"},
		"cut off":       {first.Reveal()[:len(first.Reveal())-1], "nobody: the caller token is malformed"},
		"a key's token": {key.Reveal(), "nobody: the token of a key was sent"},
		"nothing":       {"", "nobody: the token is neither"},
		"nonsense":      {"nonsense", "nobody: the token is neither"},
		"a JWT":         {"a.b.c", "nobody: the token is neither"},
		"much too long": {strings.Repeat("x", 20_000), "nobody: the token is too long"},
		"with a space":  {first.Reveal() + " ", "nobody: the caller token is malformed"},
	} {
		identity, err := judge.Bearer(t.Context(), bearerPeer, test.bearer)
		expect(t, name, identity, err, test.want)
		if err != nil && test.bearer != "" && len(test.bearer) > 20 && strings.Contains(err.Error(), test.bearer[20:]) {
			t.Errorf("%s: the error shows the token", name)
		}
	}
	identity, err := judge.Bearer(t.Context(), &callers.Peer{Source: callers.SourceUnix, UserID: owner}, first.Reveal())
	expect(t, "where no token is taken", identity, err, "nobody: a token is not taken")
	identity, _ = judge.Bearer(t.Context(), bearerPeer, first.Reveal())
	if text := fmt.Sprintf("%v %+v %#v", identity, *identity, identity); strings.Contains(text, callers.FormatHash(first.Hash())[7:]) || strings.Contains(text, first.Reveal()[29:]) {
		t.Errorf("an identity shows the token: %s", text)
	}
}

// TestSecretsOfOtherTokensDoNotFit: a token with the id of one caller and the secret of another one.
func TestSecretsOfOtherTokensDoNotFit(t *testing.T) {
	first, second := newToken(t), newToken(t)
	swapped := fmt.Sprintf("{id: %s, hash: %q}", first.ID(), callers.FormatHash(second.Hash()))
	judge := newJudge(t, "version: 1\ncallers: [{name: a, tokens: ["+swapped+"], rights: [read]}]\n", nil)
	for _, each := range []token.Caller{first, second} {
		identity, err := judge.Bearer(t.Context(), bearerPeer, each.Reveal())
		expect(t, "swapped", identity, err, "nobody: no caller has a token with this id and this secret")
	}
}

const issuers = `version: 1
issuers: [{name: cluster, url: "https://i.example", audience: keysvc, algorithms: [RS256]}]
callers: [{name: worker, oidc: [{issuer: cluster, subject: "system:serviceaccount:mail:worker"}], rights: [directory]}]
`

func TestTokensOfIssuersProveWhoCalls(t *testing.T) {
	const subject = "system:serviceaccount:mail:worker"
	for name, test := range map[string]struct {
		proves *verifier
		want   string
	}{
		"a subject":              {&verifier{bearer: callers.VerifiedBearer{Issuer: "cluster", Subject: subject, NotAfter: now.Add(time.Minute)}}, `worker by oidc "cluster system:serviceaccount:mail:worker", callers.yaml:3`},
		"another subject":        {&verifier{bearer: callers.VerifiedBearer{Issuer: "cluster", Subject: "x", NotAfter: now.Add(time.Minute)}}, `nobody: the subject "x" of cluster: no caller`},
		"another issuer":         {&verifier{bearer: callers.VerifiedBearer{Issuer: "other", Subject: subject, NotAfter: now.Add(time.Minute)}}, "nobody"},
		"a token without an end": {&verifier{bearer: callers.VerifiedBearer{Issuer: "cluster", Subject: subject}}, "nobody"},
		"an expired token":       {&verifier{bearer: callers.VerifiedBearer{Issuer: "cluster", Subject: subject, NotAfter: now}}, "nobody"},
		"a refused token":        {&verifier{bearer: callers.VerifiedBearer{Issuer: "cluster", Subject: subject, NotAfter: now.Add(1)}, err: errors.New("wrong audience")}, "nobody: wrong audience"},
	} {
		identity, err := newJudge(t, issuers, test.proves).Bearer(t.Context(), bearerPeer, "a.b.c")
		expect(t, name, identity, err, test.want)
	}
	denied := issuers + "deny: {oidc: [{issuer: cluster, subject: \"" + subject + "\"}]}\n"
	proves := &verifier{bearer: callers.VerifiedBearer{Issuer: "cluster", Subject: subject, NotAfter: now.Add(time.Minute)}}
	identity, err := newJudge(t, denied, proves).Bearer(t.Context(), bearerPeer, "a.b.c")
	expect(t, "denied", identity, err, "nobody: the subject \""+subject+"\" of cluster: it is denied by callers.yaml:4")
	_, err = newJudge(t, issuers, &verifier{err: fmt.Errorf("%w: no keys yet", callers.ErrBusy)}).Bearer(t.Context(), bearerPeer, "a.b.c")
	if !errors.Is(err, callers.ErrBusy) {
		t.Errorf("busy: %v", err)
	}
}

// TestTokensAreRememberedUntilSomethingChanges: an issuer's signature costs more than a call.
func TestTokensAreRememberedUntilSomethingChanges(t *testing.T) {
	clock := now
	proves := &verifier{bearer: callers.VerifiedBearer{Issuer: "cluster", Subject: "system:serviceaccount:mail:worker", NotAfter: now.Add(time.Minute)}}
	judge := callers.NewTableJudge(owner, func() time.Time { return clock })
	judge.SetTrust(nil, proves)
	setTable(t, judge, issuers)
	ask := func(want int, who string) {
		t.Helper()
		identity, err := judge.Bearer(t.Context(), bearerPeer, "a.b.c")
		expect(t, "asked", identity, err, who)
		if proves.asked != want {
			t.Errorf("verified %d times, want %d", proves.asked, want)
		}
	}
	ask(1, "worker")
	ask(1, "worker")
	setTable(t, judge, issuers)
	ask(2, "worker")
	judge.SetTrust(nil, proves)
	ask(3, "worker")
	ask(3, "worker")
	clock = now.Add(time.Minute)
	ask(4, "nobody")
	ask(5, "nobody") // refusals are not remembered
	clock = now
	setTable(t, judge, "version: 1\ncallers: []\n")
	ask(6, "nobody") // it is forgotten, and verified again, and no caller has it
}

// TestStreamsOfTokensAreJudgedAgainWithoutTheToken: the token itself is not kept.
func TestStreamsOfTokensAreJudgedAgainWithoutTheToken(t *testing.T) {
	made, next := newToken(t), newToken(t)
	with := func(line, rights string) string {
		return "version: 1\ncallers: [{name: laptop, tokens: [" + line + "], rights: [" + rights + "]}]\n"
	}
	judge := newJudge(t, with(tokenLine(made, ""), "read"), nil)
	earlier, err := judge.Bearer(t.Context(), bearerPeer, made.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, file, want string }{
		{"as it was", with(tokenLine(made, ""), "read"), "laptop"},
		{"other rights", with(tokenLine(made, ""), "validate"), "laptop"},
		{"removed", with(tokenLine(next, ""), "read"), "nobody"},
		{"another secret under the same id", with(strings.Replace(tokenLine(next, ""), next.ID(), made.ID(), 1), "read"), "nobody"},
		{"expired", with(tokenLine(made, `, not_after: "2027-03-01T11:00:00Z"`), "read"), "nobody"},
		{"denied", with(tokenLine(made, ""), "read") + "deny: {tokens: [" + made.ID() + "]}\n", "nobody"},
	} {
		setTable(t, judge, test.file)
		identity, err := judge.Again(earlier)
		expect(t, test.name, identity, err, test.want)
		if test.name == "other rights" && (identity.May(access.Read) || !identity.May(access.Validate)) {
			t.Error("the rights are those of before")
		}
	}
	// An identity that no token has proved is never judged again by its name.
	identity, err := judge.Again(callers.Local())
	expect(t, "local", identity, err, "nobody")
}

func TestRememberedTokensCostNoMoreThanTheirBound(t *testing.T) {
	judge := newJudge(t, issuers, &verifier{bearer: callers.VerifiedBearer{Issuer: "cluster", Subject: "system:serviceaccount:mail:worker", NotAfter: now.Add(time.Minute)}})
	for i := range 10_000 {
		if _, err := judge.Bearer(t.Context(), bearerPeer, fmt.Sprintf("a.b.%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if held := judge.Remembered(); held > 8192 {
		t.Errorf("%d tokens are remembered", held)
	}
}
