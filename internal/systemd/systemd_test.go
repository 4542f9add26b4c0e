package systemd

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSocketIsTakenByTheAddressOfItsListener(t *testing.T) {
	tests := map[string]struct {
		address         net.Addr
		network, target string
		want            bool
	}{
		"the path of a unix socket":     {&net.UnixAddr{Net: "unix", Name: "/run/keysvc.sock"}, "unix", "/run/keysvc.sock", true},
		"another path":                  {&net.UnixAddr{Net: "unix", Name: "/run/keysvc.sock"}, "unix", "/run/keysvc", false},
		"a unix socket for a port":      {&net.UnixAddr{Net: "unix", Name: ":7480"}, "tcp", ":7480", false},
		"a port for a unix socket":      {&net.TCPAddr{Port: 7480}, "unix", ":7480", false},
		"every address, and no host":    {&net.TCPAddr{IP: net.IPv6unspecified, Port: 7480}, "tcp", ":7480", true},
		"every address, and 0.0.0.0":    {&net.TCPAddr{IP: net.IPv6unspecified, Port: 7480}, "tcp", "0.0.0.0:7480", true},
		"the same address":              {&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7480}, "tcp", "127.0.0.1:7480", true},
		"another port":                  {&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7481}, "tcp", "127.0.0.1:7480", false},
		"one address instead of every":  {&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7480}, "tcp", ":7480", false},
		"every address instead of one":  {&net.TCPAddr{IP: net.IPv6unspecified, Port: 7480}, "tcp", "127.0.0.1:7480", false},
		"a port of the system's choice": {&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7480}, "tcp", "127.0.0.1:0", false},
		"what cannot be an address":     {&net.TCPAddr{Port: 7480}, "tcp", "7480", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := listensAt(test.address, test.network, test.target); got != test.want {
				t.Errorf("%v for %s %s: %t", test.address, test.network, test.target, got)
			}
		})
	}
}

func TestSocketsThatNobodyTookAreNamed(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	sockets := &Sockets{left: []net.Listener{listener}}
	if got := sockets.Take("unix", listener.Addr().String()); got != listener {
		t.Errorf("got %v", got)
	}
	if err := sockets.Close(); err != nil {
		t.Errorf("nothing is left, and: %v", err)
	}
	sockets.left = append(sockets.left, listener)
	if err := sockets.Close(); err == nil || !strings.Contains(err.Error(), listener.Addr().String()) {
		t.Errorf("got %v", err)
	}
	if _, err := listener.Accept(); err == nil {
		t.Error("the listener is open")
	}
}

func TestWithoutAManagerNothingHappens(t *testing.T) {
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		t.Setenv(name, "")
		_ = os.Unsetenv(name)
	}
	sockets, err := ReceiveSockets()
	if err != nil || len(sockets.left) != 0 || sockets.Take("tcp", ":7480") != nil {
		t.Errorf("got %v, %v", sockets, err)
	}
	every, err := AliveEvery()
	if every != 0 || err != nil || Ready() != nil || Reloading() != nil || Alive() != nil || Stopping() != nil {
		t.Errorf("signs of life every %s, %v", every, err)
	}
}
