package keyclient_test

import (
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

func TestNewRefusesWrongConfigurations(t *testing.T) {
	secured := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13})
	for _, test := range []struct {
		name, target string
		config       keyclient.Config
		want         string
	}{
		{"no target", "", keyclient.Config{AllowPlaintext: true}, "target: is empty"},
		{"malformed target", "keysvc\x7f", keyclient.Config{TransportCredentials: secured}, "target: "},
		{"nothing said of transport", "127.0.0.1:7480", keyclient.Config{}, "set AllowPlaintext"},
		{"both said", "127.0.0.1:7480", keyclient.Config{AllowPlaintext: true, TransportCredentials: secured}, "exactly one"},
		{"plaintext to another machine", "keysvc.internal:7480", keyclient.Config{AllowPlaintext: true}, "set TLS"},
		{
			"plaintext by another way", "keysvc.internal:7480",
			keyclient.Config{DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}},
			"TLS: is missing",
		},
		{"TLS and plaintext", "127.0.0.1:7480", keyclient.Config{AllowPlaintext: true, TLS: &keyclient.TLS{}}, "exactly one"},
		{"TLS on a unix socket", "unix:///run/s", keyclient.Config{TLS: &keyclient.TLS{}}, "a unix socket has no TLS"},
		{"no such file", "127.0.0.1:7480", keyclient.Config{TLS: &keyclient.TLS{CAFile: "/nowhere"}}, "TLS: the file /nowhere cannot be read"},
		{"certificate without key", "127.0.0.1:7480", keyclient.Config{TLS: &keyclient.TLS{CertFile: "/nowhere"}}, "TLS: a client certificate needs both"},
		{"token in plaintext", "127.0.0.1:7480", keyclient.Config{AllowPlaintext: true, CallerTokenFile: "/nowhere"}, "CallerTokenFile: would be sent to 127.0.0.1:7480 in plaintext"},
		{"no such token file", "127.0.0.1:7480", keyclient.Config{TLS: &keyclient.TLS{}, CallerTokenFile: "/nowhere"}, "CallerTokenFile: the file /nowhere cannot be read"},
		{"no such owner", "unix:///run/s", keyclient.Config{SocketOwner: "no such user"}, "SocketOwner: "},
		{"unix socket on another host", "unix://host/run/s", keyclient.Config{}, "TLS: is missing"},
		{"negative validation timeout", "127.0.0.1", keyclient.Config{AllowPlaintext: true, ValidationTimeout: -1}, "ValidationTimeout: is -1ns"},
		{"negative timeout", "127.0.0.1", keyclient.Config{AllowPlaintext: true, Timeout: -time.Second}, "Timeout: is -1s"},
		{"user agent", "127.0.0.1", keyclient.Config{AllowPlaintext: true, UserAgent: "a\nb"}, "UserAgent: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, err := keyclient.New(test.target, test.config)
			if err == nil {
				client.Close()
				t.Fatal("accepted")
			}
			if !strings.HasPrefix(err.Error(), "keyclient: ") || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %q, want one with %q", err, test.want)
			}
		})
	}
}

func TestParseTargetAddsThePortAndFindsLocalTargets(t *testing.T) {
	for _, test := range []struct {
		target, full string
		local        bool
	}{
		{"127.0.0.1:7480", "127.0.0.1:7480", true},
		{"127.0.0.1", "dns:///127.0.0.1:7480", true},
		{"127.8.9.10:1", "127.8.9.10:1", true},
		{"[::1]:1", "[::1]:1", true},
		{"[::1]", "dns:///[::1]:7480", true},
		{"::1", "dns:///[::1]:7480", true},
		{"[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:1", true},
		{"localhost", "dns:///localhost:7480", true},
		{"LocalHost:1", "LocalHost:1", true},
		{"dns:///localhost", "dns:///localhost:7480", true},
		{"passthrough:///127.0.0.1:1", "passthrough:///127.0.0.1:1", true},
		{"unix:///run/keysvc.sock", "unix:///run/keysvc.sock", true},
		{"unix:keysvc.sock", "unix:keysvc.sock", true},

		{"keysvc.internal", "dns:///keysvc.internal:7480", false},
		{"keysvc.internal:443", "keysvc.internal:443", false},
		{"dns:///keysvc.internal", "dns:///keysvc.internal:7480", false},
		{"dns:///192.0.2.1", "dns:///192.0.2.1:7480", false},
		{"0.0.0.0:7480", "0.0.0.0:7480", false},
		{":7480", ":7480", false},
		{"dns:///", "dns:///", false},
		{"localhost.example.com", "dns:///localhost.example.com:7480", false},
		{"127.0.0.1.example.com:7480", "127.0.0.1.example.com:7480", false},
		{"127.0.0.1:1,192.0.2.1:1", "127.0.0.1:1,192.0.2.1:1", false},
		{"dns://192.0.2.53/localhost:1", "dns://192.0.2.53/localhost:1", false},
		{"ipv4:127.0.0.1:1", "ipv4:127.0.0.1:1", false},
		{"xds:///localhost:1", "xds:///localhost:1", false},
		{"unix://localhost/run/keysvc.sock", "unix://localhost/run/keysvc.sock", false},
		{"unix:", "unix:", false},
		{"unix", "dns:///unix:7480", false},
		{"[::1%eth0]:1", "[::1%eth0]:1", false},
	} {
		if full, local := keyclient.ParseTarget(test.target); full != test.full || local != test.local {
			t.Errorf("%q is read as %q, local: %t; want %q, %t", test.target, full, local, test.full, test.local)
		}
	}
}

// A target that counts as local must not be one that grpc would look up elsewhere.
func FuzzParseTarget(f *testing.F) {
	f.Fuzz(func(t *testing.T, target string) {
		full, local := keyclient.ParseTarget(target)
		if again, still := keyclient.ParseTarget(full); again != full || still != local {
			t.Fatalf("%q is read as %q, and that as %q", target, full, again)
		}
		if !local || strings.HasPrefix(full, "unix:") {
			return
		}
		conn, err := grpc.NewClient(full, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return // nothing is dialled
		}
		defer conn.Close()
		endpoint := strings.TrimPrefix(strings.TrimPrefix(conn.CanonicalTarget(), "dns:///"), "passthrough:///")
		host, _, err := net.SplitHostPort(endpoint)
		if err != nil {
			t.Fatalf("%q is local, but grpc sees %q", target, conn.CanonicalTarget())
		}
		if address, err := netip.ParseAddr(host); !strings.EqualFold(host, "localhost") && (err != nil || !address.Unmap().IsLoopback()) {
			t.Fatalf("%q is local, but grpc sees %q", target, conn.CanonicalTarget())
		}
	})
}

func TestFromEnvironmentReadsTheVariable(t *testing.T) {
	keysvc := servertest.Start(t, servertest.Options{})
	keysvc.PutMember(t, "acme", "ann", "owner")
	keyID, text := keysvc.CreateKey(t, "acme", "ann", "signatures:read")

	t.Setenv(keyclient.AddressVariable, keysvc.Address)
	client, err := keyclient.FromEnvironment(keyclient.Config{AllowPlaintext: true, ValidationTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	answer, err := client.Validate(t.Context(), keyauth.Question{Token: text, Requirement: keyauth.Scope("signatures:read")})
	if err != nil || answer.KeyID != keyID || answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
		t.Fatalf("answered %+v, %v", answer, err)
	}

	t.Setenv(keyclient.AddressVariable, "")
	local, err := keyclient.FromEnvironment(keyclient.Config{AllowPlaintext: true})
	if err != nil {
		t.Fatal(err)
	}
	local.Close()
}

func TestTypedClientsWorkWithARealServer(t *testing.T) {
	keysvc := servertest.Start(t, servertest.Options{})
	client := newClient(t, keysvc.Address, keyclient.Config{})
	ctx := t.Context()
	if _, err := client.Members.PutMember(ctx, &keysvcv1.PutMemberRequest{
		WorkspaceId: "acme", MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	}); err != nil {
		t.Fatal(err)
	}
	made, err := client.Keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "test", Scopes: []string{"signatures:read"},
	})
	if err != nil {
		t.Fatal(err)
	}
	policy, err := client.Policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil || policy.GetDigest() == "" {
		t.Fatalf("policy %v", err)
	}
	response, err := client.Validations.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{Token: made.GetToken(), IdentityOnly: true})
	if err != nil || response.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
		t.Fatalf("answered %v, %v", response.GetDecision(), err)
	}
}
