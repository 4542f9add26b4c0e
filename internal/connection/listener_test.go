package connection

import (
	"net"
	"testing"
)

func TestUsersWithoutAnIDHereAreNobody(t *testing.T) {
	for userID, known := range map[uint32]bool{0: true, 1000: true, 65533: true, 65534: false, 65535: true, 1<<32 - 1: false} {
		if err := isMapped(userID); (err == nil) != known {
			t.Errorf("user %d: %v", userID, err)
		}
	}
}

// addressed is a connection of which only the address counts.
type addressed struct {
	net.Conn
	remote net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.remote }

func TestSourcesAreAddressesAndNetworks(t *testing.T) {
	from := func(kind Kind, address string) (source, error) {
		host, _, _ := net.SplitHostPort(address)
		_, got, err := (&Listener{Kind: kind}).peerOf(addressed{remote: &net.TCPAddr{IP: net.ParseIP(host), Port: 7}})
		return got, err
	}
	for name, test := range map[string]struct {
		one, other string
		same       bool
	}{
		"two ports":                  {"192.0.2.1:1", "192.0.2.1:2", true},
		"two addresses":              {"192.0.2.1:1", "192.0.2.2:1", false},
		"IPv4 in IPv6":               {"192.0.2.1:1", "[::ffff:192.0.2.1]:1", true},
		"a network of IPv6":          {"[2001:db8::1]:1", "[2001:db8::ffff:2]:1", true},
		"two networks of IPv6":       {"[2001:db8::1]:1", "[2001:db8:0:1::1]:1", false},
		"two addresses of this host": {"127.0.0.1:1", "127.0.0.2:1", false},
	} {
		one, err := from(TLS, test.one)
		if err != nil {
			t.Fatal(err)
		}
		other, err := from(TLS, test.other)
		if err != nil {
			t.Fatal(err)
		}
		if (one == other) != test.same || one == (source{}) {
			t.Errorf("%s: %+v and %+v", name, one, other)
		}
	}
	for address, local := range map[string]bool{"127.0.0.9:1": true, "[::1]:1": true, "[::ffff:127.0.0.1]:1": true, "192.0.2.1:1": false, "[2001:db8::1]:1": false} {
		if _, err := from(Loopback, address); (err == nil) != local {
			t.Errorf("plaintext from %s: %v", address, err)
		}
	}
	if _, err := from(0, "127.0.0.1:1"); err == nil {
		t.Error("a listener of no kind")
	}
	if _, _, err := (&Listener{Kind: Unix}).peerOf(addressed{remote: &net.TCPAddr{}}); err == nil {
		t.Error("TCP on a unix listener")
	}
}
