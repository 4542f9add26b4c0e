package keyauth

import (
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

func TestBearerReadsOneTokenOrRefuses(t *testing.T) {
	tests := []struct {
		name   string
		values []string
		token  string
		found  credential
	}{
		{"None", nil, "", credentialMissing},
		{"Good", []string{"Bearer abc"}, "abc", credentialToken},
		{"LowerCase", []string{"bearer abc"}, "abc", credentialToken},
		{"UpperCase", []string{"BEARER abc"}, "abc", credentialToken},
		{"SeveralSpaces", []string{"Bearer   abc"}, "abc", credentialToken},
		{"AllOfToken68", []string{"Bearer aZ09_-.~+/="}, "aZ09_-.~+/=", credentialToken},
		{"PaddingInside", []string{"Bearer ab=c"}, "", credentialBad},
		{"PaddingAlone", []string{"Bearer =="}, "", credentialBad},
		{"Two", []string{"Bearer abc", "Bearer abc"}, "", credentialBad},
		{"TwoOfWhichOneIsEmpty", []string{"", "Bearer abc"}, "", credentialBad},
		{"Joined", []string{"Bearer abc, Bearer def"}, "", credentialBad},
		{"Comma", []string{"Bearer abc,def"}, "", credentialBad},
		{"Empty", []string{""}, "", credentialOther},
		{"SchemeAlone", []string{"Bearer"}, "", credentialOther},
		{"EmptyToken", []string{"Bearer "}, "", credentialBad},
		{"SpacesAlone", []string{"Bearer    "}, "", credentialBad},
		{"TrailingSpace", []string{"Bearer abc "}, "", credentialBad},
		{"LeadingSpace", []string{" Bearer abc"}, "", credentialOther},
		{"SpaceInside", []string{"Bearer abc def"}, "", credentialBad},
		{"Tab", []string{"Bearer\tabc"}, "", credentialOther},
		{"TabAfterSpace", []string{"Bearer \tabc"}, "", credentialBad},
		{"LineBreak", []string{"Bearer abc\r\nX: y"}, "", credentialBad},
		{"Nul", []string{"Bearer abc\x00"}, "", credentialBad},
		{"NotASCII", []string{"Bearer ab\u00e7"}, "", credentialBad},
		{"NotUTF8", []string{"Bearer \xff\xfe"}, "", credentialBad},
		{"Quoted", []string{`Bearer "abc"`}, "", credentialBad},
		{"Basic", []string{"Basic YTpi"}, "", credentialOther},
		{"Digest", []string{"Digest abc"}, "", credentialOther},
		{"TokenAlone", []string{"scribe_ksk1_abc"}, "", credentialOther},
		{"LongerScheme", []string{"Bearers abc"}, "", credentialOther},
		{"Longest", []string{"Bearer " + strings.Repeat("a", maxTokenBytes)}, strings.Repeat("a", maxTokenBytes), credentialToken},
		{"TooLong", []string{"Bearer " + strings.Repeat("a", maxTokenBytes+1)}, "", credentialBad},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if token, found := bearer(test.values); token != test.token || found != test.found {
				t.Errorf("bearer(%q) = %q, %d; want %q, %d", test.values, token, found, test.token, test.found)
			}
		})
	}
}

func FuzzBearer(f *testing.F) {
	for _, value := range []string{"Bearer abc", "bearer  abc", "Bearer", "Bearer a b", "Bearer a,b", "Basic abc", "Bearer \xff"} {
		f.Add(value)
	}
	// The credentials of RFC 6750 section 2.1, as its grammar.
	grammar := regexp.MustCompile(`\A(?i:Bearer) +([A-Za-z0-9\-._~+/]+=*)\z`)
	f.Fuzz(func(t *testing.T, value string) {
		token, found := bearer([]string{value})
		want := grammar.FindStringSubmatch(value)
		if want != nil && len(want[1]) > maxTokenBytes {
			want = nil
		}
		if found == credentialMissing || (found == credentialToken) != (want != nil) || want != nil && token != want[1] || want == nil && token != "" {
			t.Fatalf("bearer(%q) = %q, %d; by the grammar it is %q", value, token, found, want)
		}
		if found == credentialToken && (!strings.HasSuffix(value, " "+token) || strings.ContainsAny(token, " ,\t\r\n\x00")) {
			t.Fatalf("bearer(%q) = %q", value, token)
		}
		if _, twice := bearer([]string{value, value}); twice != credentialBad {
			t.Fatalf("two values %q are taken", value)
		}
	})
}

func TestClientAddressTrustsProxiesFromTheRight(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	tests := []struct {
		name      string
		peer      string
		forwarded []string
		trusted   []netip.Prefix
		want      string // empty: unknown
	}{
		{"NoProxies", "192.0.2.1", []string{"198.51.100.1"}, nil, "192.0.2.1"},
		{"PeerIsNone", "192.0.2.1", []string{"198.51.100.1"}, proxies, "192.0.2.1"},
		{"One", "10.0.0.1", []string{"198.51.100.1"}, proxies, "198.51.100.1"},
		{"SpoofedFront", "10.0.0.1", []string{"203.0.113.9, 198.51.100.1"}, proxies, "198.51.100.1"},
		{"Chain", "10.0.0.1", []string{"203.0.113.9, 198.51.100.1, 10.0.0.2"}, proxies, "198.51.100.1"},
		{"Lines", "10.0.0.1", []string{"203.0.113.9", "198.51.100.1 , 10.0.0.2"}, proxies, "198.51.100.1"},
		{"TrustedAllTheWay", "10.0.0.1", []string{"10.0.0.3, 10.0.0.2"}, proxies, "10.0.0.3"},
		{"NoHeader", "10.0.0.1", nil, proxies, ""},
		{"Port", "10.0.0.1", []string{"198.51.100.1:4711"}, proxies, "198.51.100.1"},
		{"IPv6", "fd00::1", []string{"2001:db8::1"}, proxies, "2001:db8::1"},
		{"Brackets", "fd00::1", []string{"[2001:db8::1]"}, proxies, "2001:db8::1"},
		{"BracketsPort", "fd00::1", []string{"[2001:db8::1]:4711"}, proxies, "2001:db8::1"},
		{"BracketsIPv4", "10.0.0.1", []string{"[198.51.100.1]"}, proxies, ""},
		{"MappedPeer", "::ffff:10.0.0.1", []string{"198.51.100.1"}, proxies, "198.51.100.1"},
		{"MappedEntry", "10.0.0.1", []string{"203.0.113.9, ::ffff:198.51.100.1"}, proxies, "198.51.100.1"},
		{"MappedProxy", "10.0.0.1", []string{"198.51.100.1, ::ffff:10.0.0.2"}, proxies, "198.51.100.1"},
		{"Zone", "fe80::1%eth0", nil, nil, "fe80::1"},
		{"Malformed", "10.0.0.1", []string{"198.51.100.1, unknown"}, proxies, ""},
		{"EmptyEntry", "10.0.0.1", []string{"198.51.100.1, "}, proxies, ""},
		{"EmptyHeader", "10.0.0.1", []string{""}, proxies, ""},
		{"Obfuscated", "10.0.0.1", []string{"_hidden"}, proxies, ""},
		{"MalformedFrontIsNotRead", "10.0.0.1", []string{"unknown, 198.51.100.1"}, proxies, "198.51.100.1"},
		{"NoPeer", "", []string{"198.51.100.1"}, proxies, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var peer, want netip.Addr
			if test.peer != "" {
				peer = netip.MustParseAddr(test.peer)
			}
			if test.want != "" {
				want = netip.MustParseAddr(test.want)
			}
			if got := clientAddressOf(peer, test.forwarded, test.trusted); got != want {
				t.Errorf("clientAddress = %v, want %v", got, want)
			}
		})
	}
}

// clientAddressOf returns the client address behind proxies that send X-Forwarded-For.
func clientAddressOf(peer netip.Addr, forwarded []string, trusted []netip.Prefix) netip.Addr {
	guard := &Guard{trusted: trusted, forwardedHeader: headerForwardedFor}
	return guard.clientAddress(&Request{Peer: peer, Forwarded: forwarded})
}

func FuzzClientAddress(f *testing.F) {
	for _, value := range []string{"198.51.100.1", "10.0.0.2, 198.51.100.1:80", "[2001:db8::1]:1", ",", "unknown", "[::1"} {
		f.Add(value)
	}
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	honest := netip.MustParseAddr("198.51.100.1")
	f.Fuzz(func(t *testing.T, value string) {
		got := clientAddressOf(netip.MustParseAddr("10.0.0.1"), []string{value}, trusted)
		if got.Is4In6() || got.Zone() != "" {
			t.Fatalf("clientAddress(%q) = %v", value, got)
		}
		// Whatever a presenter sends, the proxy appends the peer's address.
		if got := clientAddressOf(netip.MustParseAddr("10.0.0.1"), []string{value + ", 198.51.100.1"}, trusted); got != honest {
			t.Fatalf("clientAddress(%q, …) = %v", value, got)
		}
	})
}

func TestAddressOfReturnsTheIPAddressOrNothing(t *testing.T) {
	for want, address := range map[string]net.Addr{
		"192.0.2.1":  &net.TCPAddr{IP: net.ParseIP("192.0.2.1"), Port: 1},
		"2001:db8::": &net.TCPAddr{IP: net.ParseIP("2001:db8::"), Port: 1, Zone: "eth0"},
		"127.0.0.1":  &net.UDPAddr{IP: net.ParseIP("127.0.0.1"), Port: 1},
	} {
		if got := addressOf(address); got.String() != want {
			t.Errorf("addressOf(%v) = %v, want %s", address, got, want)
		}
	}
	for _, address := range []net.Addr{nil, &net.UnixAddr{Name: "/run/x", Net: "unix"}, &net.UnixAddr{Name: "", Net: "unix"}} {
		if got := addressOf(address); got.IsValid() {
			t.Errorf("addressOf(%v) = %v", address, got)
		}
	}
}

func TestRequirementsThatCannotBeMetAreInvalid(t *testing.T) {
	for _, scope := range []string{"signatures:read", "smart_fields:write", "a1:b2"} {
		if !Scope(scope).IsValid() || Scope(scope).String() != scope {
			t.Errorf("Scope(%q) is not valid", scope)
		}
	}
	for _, scope := range []string{"", ":", "a:", ":a", "a", "a:b:c", "A:b", "a:*", "*", "a b:c", "1a:b", "_a:b", "a-b:c", "a:b\n"} {
		if Scope(scope).IsValid() {
			t.Errorf("Scope(%q) is valid", scope)
		}
	}
	if (Requirement{}).IsValid() || (Requirement{}).IsPublic() || (Requirement{}).IsIdentityOnly() {
		t.Error("the zero Requirement can be met")
	}
	for want, requirement := range map[string]Requirement{"identity only": IdentityOnly(), "public": Public(), "nothing said": {}} {
		if requirement.String() != want {
			t.Errorf("String = %q, want %q", requirement.String(), want)
		}
	}
}
