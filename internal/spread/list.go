package spread

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"

	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
)

// Scheme is the scheme of a target that lists several servers, as in keysvc-list:///a:7480,b:7480. An element is host:port, whose
// addresses the DNS resolver finds, or unix:/path. Pass Resolver to gRPC for it.
const Scheme = "keysvc-list"

// Resolver returns an option's argument that resolves targets of Scheme.
func Resolver() resolver.Builder { return lists{} }

// lists implements resolver.Builder.
type lists struct{}

// Scheme implements resolver.Builder.
func (lists) Scheme() string { return Scheme }

// OverrideAuthority implements resolver.AuthorityOverrider. Each address has a name of its own, so this one is not verified.
func (lists) OverrideAuthority(resolver.Target) string { return "localhost" }

// Build implements resolver.Builder.
func (lists) Build(target resolver.Target, conn resolver.ClientConn, options resolver.BuildOptions) (resolver.Resolver, error) {
	list := &list{conn: conn}
	options.DisableServiceConfig = true
	for element := range strings.SplitSeq(target.Endpoint(), ",") {
		part := &part{list: list, name: element}
		list.parts = append(list.parts, part)
		if strings.HasPrefix(element, "unix:") {
			part.addresses = []resolver.Address{{Addr: element, ServerName: "localhost"}}
			continue
		}
		host, _, err := net.SplitHostPort(element)
		if err != nil {
			return nil, err
		}
		if _, err := netip.ParseAddr(host); err == nil {
			part.addresses = []resolver.Address{{Addr: element, ServerName: element}}
			continue
		}
		part.named = true
	}
	for _, part := range list.parts {
		if !part.named {
			continue
		}
		found, err := resolver.Get("dns").Build(resolver.Target{URL: url.URL{Scheme: "dns", Path: "/" + part.name}}, part, options)
		if err != nil {
			list.Close()
			return nil, err
		}
		list.resolvers = append(list.resolvers, found)
	}
	list.update()
	return list, nil
}

// list is the servers of one target.
type list struct {
	conn      resolver.ClientConn
	parts     []*part
	resolvers []resolver.Resolver

	// mutex guards what the parts have found. It is held while gRPC is told, so that it is told in order.
	mutex sync.Mutex
}

// ResolveNow implements resolver.Resolver.
func (l *list) ResolveNow(options resolver.ResolveNowOptions) {
	for _, each := range l.resolvers {
		each.ResolveNow(options)
	}
}

// Close implements resolver.Resolver.
func (l *list) Close() {
	for _, each := range l.resolvers {
		each.Close()
	}
}

// update tells gRPC of all servers that are known. It waits for the first answer about each name.
func (l *list) update() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	var all []resolver.Address
	var errs []error
	for _, part := range l.parts {
		if part.named && part.addresses == nil && part.err == nil {
			return
		}
		all = append(all, part.addresses...)
		errs = append(errs, part.err)
	}
	if len(all) == 0 {
		l.conn.ReportError(errors.Join(errs...))
		return
	}
	// An error means that gRPC asks again, which the DNS resolver does by itself.
	_ = l.conn.UpdateState(resolver.State{Addresses: all})
}

// part is one element of a list. The DNS resolver takes it for a connection.
type part struct {
	list  *list
	name  string
	named bool
	// addresses are those that were found last, and err why none were. Guarded by the list's mutex.
	addresses []resolver.Address
	err       error
}

var _ resolver.ClientConn = (*part)(nil)

// UpdateState implements resolver.ClientConn.
func (p *part) UpdateState(state resolver.State) error {
	found := state.Addresses
	if len(found) == 0 {
		for _, endpoint := range state.Endpoints {
			found = append(found, endpoint.Addresses...)
		}
	}
	p.set(found, nil)
	return nil
}

// ReportError implements resolver.ClientConn.
func (p *part) ReportError(err error) { p.set(nil, err) }

// set notes what was found. Servers that were known stay known when nothing can be found out.
func (p *part) set(found []resolver.Address, err error) {
	p.list.mutex.Lock()
	if err == nil || p.addresses == nil {
		p.addresses, p.err = nil, err
		for _, each := range found {
			each.ServerName = p.name
			p.addresses = append(p.addresses, each)
		}
	}
	p.list.mutex.Unlock()
	p.list.update()
}

// NewAddress implements resolver.ClientConn.
func (p *part) NewAddress(addresses []resolver.Address) { p.set(addresses, nil) }

// ParseServiceConfig implements resolver.ClientConn.
func (p *part) ParseServiceConfig(text string) *serviceconfig.ParseResult {
	return p.list.conn.ParseServiceConfig(text)
}
