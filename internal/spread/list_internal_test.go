package spread

import (
	"errors"
	"net/url"
	"slices"
	"testing"

	"google.golang.org/grpc/resolver"
)

// told is a connection that notes what resolvers tell it.
type told struct {
	resolver.ClientConn
	states []resolver.State
	errs   []error
}

// UpdateState implements resolver.ClientConn.
func (c *told) UpdateState(state resolver.State) error {
	c.states = append(c.states, state)
	return nil
}

// ReportError implements resolver.ClientConn.
func (c *told) ReportError(err error) { c.errs = append(c.errs, err) }

// newest returns the addresses and the names that were told last.
func (c *told) newest() (addresses, names []string) {
	for _, each := range c.states[len(c.states)-1].Addresses {
		addresses, names = append(addresses, each.Addr), append(names, each.ServerName)
	}
	return addresses, names
}

func target(t *testing.T, list string) resolver.Target {
	t.Helper()
	parsed, err := url.Parse(Scheme + ":///" + list)
	if err != nil {
		t.Fatal(err)
	}
	return resolver.Target{URL: *parsed}
}

func TestListOfAddresses(t *testing.T) {
	t.Parallel()
	for list, want := range map[string][2][]string{
		"192.0.2.1:7480,[2001:db8::1]:7481": {{"192.0.2.1:7480", "[2001:db8::1]:7481"}, {"192.0.2.1:7480", "[2001:db8::1]:7481"}},
		"unix:/run/a,unix:/run/b":           {{"unix:/run/a", "unix:/run/b"}, {"localhost", "localhost"}},
	} {
		conn := &told{}
		found, err := Resolver().Build(target(t, list), conn, resolver.BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		found.ResolveNow(resolver.ResolveNowOptions{})
		if addresses, names := conn.newest(); !slices.Equal(addresses, want[0]) || !slices.Equal(names, want[1]) {
			t.Errorf("%s: %q with the names %q", list, addresses, names)
		}
		found.Close()
	}
	if _, err := Resolver().Build(target(t, "192.0.2.1:7480,nowhere"), &told{}, resolver.BuildOptions{}); err == nil {
		t.Error("an element without a port is taken")
	}
}

// The servers behind names are told once all names were looked up. A name that cannot be looked up any more keeps its
// servers.
func TestServersAreToldOnceAllNamesWereLookedUp(t *testing.T) {
	t.Parallel()
	conn := &told{}
	l := &list{conn: conn}
	a, b := &part{list: l, name: "a:7480", named: true}, &part{list: l, name: "b:7480", named: true}
	l.parts = []*part{a, b}
	addresses := func(all ...string) (state resolver.State) {
		for _, each := range all {
			state.Addresses = append(state.Addresses, resolver.Address{Addr: each})
		}
		return state
	}
	want := func(wantAddresses, wantNames []string) {
		t.Helper()
		if addresses, names := conn.newest(); !slices.Equal(addresses, wantAddresses) || !slices.Equal(names, wantNames) {
			t.Errorf("%q with the names %q, want %q with %q", addresses, names, wantAddresses, wantNames)
		}
	}
	if err := a.UpdateState(addresses("192.0.2.1:7480")); err != nil || len(conn.states) != 0 {
		t.Fatalf("%v, %v: one name was not looked up yet", conn.states, err)
	}
	gone := errors.New("no such name")
	b.ReportError(gone)
	want([]string{"192.0.2.1:7480"}, []string{"a:7480"})
	// Endpoints are taken as addresses are.
	if err := b.UpdateState(resolver.State{Endpoints: []resolver.Endpoint{{Addresses: addresses("192.0.2.2:7480", "192.0.2.3:7480").Addresses}}}); err != nil {
		t.Fatal(err)
	}
	want([]string{"192.0.2.1:7480", "192.0.2.2:7480", "192.0.2.3:7480"}, []string{"a:7480", "b:7480", "b:7480"})
	b.ReportError(gone)
	want([]string{"192.0.2.1:7480", "192.0.2.2:7480", "192.0.2.3:7480"}, []string{"a:7480", "b:7480", "b:7480"})
	if len(conn.errs) > 0 {
		t.Errorf("errors are told although there are servers: %v", conn.errs)
	}
}

func TestListWithoutAnyServer(t *testing.T) {
	t.Parallel()
	conn := &told{}
	l := &list{conn: conn}
	a, b := &part{list: l, name: "a:7480", named: true}, &part{list: l, name: "b:7480", named: true}
	l.parts = []*part{a, b}
	first, second := errors.New("first"), errors.New("second")
	a.ReportError(first)
	b.ReportError(second)
	if len(conn.states) != 0 || len(conn.errs) != 1 || !errors.Is(conn.errs[0], first) || !errors.Is(conn.errs[0], second) {
		t.Errorf("%v, %v", conn.states, conn.errs)
	}
}
