package keyauth

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// forwardedGuard returns a Guard that believes one header of the proxies in 10.0.0.0/8 and fd00::/8.
func forwardedGuard(t testing.TB, header string) *Guard {
	t.Helper()
	guard, err := NewGuard(nothingValidator{}, Config{
		ForwardedHeader: header, Log: slog.New(slog.DiscardHandler),
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return guard
}

type nothingValidator struct{}

func (nothingValidator) Validate(context.Context, Question) (Answer, error) { return Answer{}, nil }

func TestForwardedIsReadAsRFC7239Says(t *testing.T) {
	guard := forwardedGuard(t, "Forwarded")
	for _, test := range []struct {
		name  string
		lines []string
		want  string // empty: unknown
	}{
		{"one", []string{"for=198.51.100.1"}, "198.51.100.1"},
		{"any case, other parameters", []string{`proto=https;FoR=198.51.100.1;by="_x";host="a,b;c"`}, "198.51.100.1"},
		{"quoted", []string{`for="198.51.100.1"`}, "198.51.100.1"},
		{"port", []string{`for="198.51.100.1:4711"`}, "198.51.100.1"},
		{"hidden port", []string{`for="198.51.100.1:_a.b-c"`}, "198.51.100.1"},
		{"IPv6", []string{`for="[2001:db8::1]"`}, "2001:db8::1"},
		{"IPv6 with a port", []string{`for="[2001:db8::1]:4711"`}, "2001:db8::1"},
		{"escaped", []string{`for="198.51.\100.1"`}, "198.51.100.1"},
		{"mapped", []string{`for="[::ffff:198.51.100.1]"`}, "198.51.100.1"},
		{"past proxies", []string{`for=203.0.113.9, for=198.51.100.1,for=10.0.0.2 , for="[fd00::2]:80"`}, "198.51.100.1"},
		{"lines", []string{"for=203.0.113.9", "for=198.51.100.1", "for=10.0.0.2"}, "198.51.100.1"},
		{"proxies all the way", []string{"for=10.0.0.3, for=10.0.0.2"}, "10.0.0.3"},
		{"lines to the left are not read", []string{`for="`, "for=198.51.100.1"}, "198.51.100.1"},

		{"none", nil, ""},
		{"empty", []string{""}, ""},
		{"unknown", []string{"for=203.0.113.9, for=unknown"}, ""},
		{"hidden", []string{"for=203.0.113.9, for=_hidden"}, ""},
		{"a proxy that says nothing", []string{"for=203.0.113.9, by=10.0.0.2"}, ""},
		{"unknown behind a proxy", []string{"for=203.0.113.9, for=unknown, for=10.0.0.2"}, ""},
		{"twice in one element", []string{"for=198.51.100.1;for=203.0.113.9"}, ""},
		{"another parameter twice", []string{"proto=a;for=198.51.100.1;proto=b"}, ""},
		{"IPv6 without brackets", []string{`for="2001:db8::1"`}, ""},
		{"IPv6 without quotes", []string{"for=[2001:db8::1]"}, ""},
		{"port without quotes", []string{"for=198.51.100.1:80"}, ""},
		{"IPv4 in brackets", []string{`for="[198.51.100.1]"`}, ""},
		{"zone", []string{`for="[fe80::1%eth0]"`}, ""},
		{"port too long", []string{`for="198.51.100.1:123456"`}, ""},
		{"port of letters", []string{`for="198.51.100.1:http"`}, ""},
		{"no port behind a colon", []string{`for="198.51.100.1:"`}, ""},
		{"space around =", []string{"for = 198.51.100.1"}, ""},
		{"no value", []string{"for="}, ""},
		{"semicolon at the end", []string{"for=198.51.100.1;"}, ""},
		{"comma at the end", []string{"for=198.51.100.1,"}, ""},
		{"text behind a quoted string", []string{`for="198.51.100.1"x`}, ""},
		{"X-Forwarded-For in it", []string{"198.51.100.1"}, ""},
		{"control character", []string{"for=\"198.51.100.1\x00\""}, ""},
		{"a quotation mark of the presenter", []string{`for=203.0.113.9;x=", for=198.51.100.1`}, ""},
		{"one that the proxy's own closes", []string{`for=203.0.113.9;x=", for="[2001:db8::1]"`}, ""},
		{"malformed to the left in the same line", []string{`;;, for=198.51.100.1`}, ""},
	} {
		var want netip.Addr
		if test.want != "" {
			want = netip.MustParseAddr(test.want)
		}
		got := guard.clientAddress(&Request{Peer: netip.MustParseAddr("10.0.0.1"), Forwarded: test.lines})
		if got != want {
			t.Errorf("%s: %q is %v, want %v", test.name, test.lines, got, want)
		}
		// Nobody else is believed.
		stranger := netip.MustParseAddr("192.0.2.1")
		if got := guard.clientAddress(&Request{Peer: stranger, Forwarded: test.lines}); got != stranger {
			t.Errorf("%s: a stranger is taken for %v", test.name, got)
		}
	}
}

func TestRealIPIsOneAddress(t *testing.T) {
	guard := forwardedGuard(t, "x-real-ip")
	for _, test := range []struct {
		values []string
		want   string
	}{
		{[]string{"198.51.100.1"}, "198.51.100.1"},
		{[]string{" 2001:db8::1\t"}, "2001:db8::1"},
		{[]string{"198.51.100.1", "203.0.113.9"}, ""},
		{[]string{"198.51.100.1, 203.0.113.9"}, ""},
		{[]string{"unknown"}, ""},
		{[]string{""}, ""},
		{nil, ""},
	} {
		var want netip.Addr
		if test.want != "" {
			want = netip.MustParseAddr(test.want)
		}
		if got := guard.clientAddress(&Request{Peer: netip.MustParseAddr("10.0.0.1"), Forwarded: test.values}); got != want {
			t.Errorf("%q is %v, want %v", test.values, got, want)
		}
	}
}

// TestOneHeaderIsBelieved: whatever the choice is, the other headers do not count, in gRPC's metadata either.
func TestOneHeaderIsBelieved(t *testing.T) {
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(
		"x-forwarded-for", "198.51.100.1", "forwarded", "for=198.51.100.2", "x-real-ip", "198.51.100.3",
	))
	ctx = peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}})
	for header, want := range map[string]string{
		"": "198.51.100.1", "X-Forwarded-For": "198.51.100.1", "forwarded": "198.51.100.2", "X-Real-IP": "198.51.100.3",
	} {
		guard := forwardedGuard(t, header)
		request := guard.request(ctx, "/a.B/C", nil)
		if got := guard.clientAddress(&request); got.String() != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}

func TestForwardedHeaderIsChecked(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for _, test := range []struct {
		config Config
		want   string // empty: no error
	}{
		{Config{ForwardedHeader: "CF-Connecting-IP", TrustedProxies: proxies}, `ForwardedHeader: is "CF-Connecting-IP"; allowed are`},
		{Config{ForwardedHeader: "Forwarded, X-Real-IP", TrustedProxies: proxies}, "allowed are"},
		{Config{ForwardedHeader: "Forwarded"}, "nobody is trusted"},
		{Config{ForwardedHeader: "Forwarded", TrustUnixSockets: true}, ""},
	} {
		_, err := NewGuard(nothingValidator{}, test.config)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v", test.config, err)
		}
	}
}

func FuzzForwarded(f *testing.F) {
	for _, value := range []string{
		"for=198.51.100.1", `for="[2001:db8::1]:80";proto=https`, `for=203.0.113.9;x="`, "for=unknown, for=_x", `for="\"";by=x,`, "for=10.0.0.2, for=10.0.0.3",
	} {
		f.Add(value)
	}
	guard := forwardedGuard(f, "Forwarded")
	honest, honest6 := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")
	f.Fuzz(func(t *testing.T, value string) {
		address := func(lines ...string) netip.Addr {
			return guard.clientAddress(&Request{Peer: netip.MustParseAddr("10.0.0.1"), Forwarded: lines})
		}
		if got := address(value); got.Is4In6() || got.Zone() != "" {
			t.Fatalf("%q: %v", value, got)
		}
		// Whatever a presenter sends, the proxy appends the presenter's own address, to the line or in another. The
		// presenter can hide that address, but not choose another.
		for appended, want := range map[string]netip.Addr{
			"for=198.51.100.1": honest,
			`for="198.51.100.1:4711";proto=https;by="_a"`:    honest,
			`by="[fd00::1]";for="[2001:db8::1]";host="a\"b"`: honest6,
		} {
			if got := address(value + ", " + appended); got.IsValid() && got != want {
				t.Fatalf("%q and %q: %v", value, appended, got)
			}
			if got := address(value, appended); got != want {
				t.Fatalf("%q before the line %q: %v", value, appended, got)
			}
		}
	})
}
