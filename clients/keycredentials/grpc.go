package keycredentials

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Option changes what is allowed.
type Option func(*options)

type options struct{ plaintextLoopback bool }

// AllowPlaintextLoopback allows calls without TLS to loopback addresses and unix sockets,
// where nobody but this machine can listen. It is for development.
func AllowPlaintextLoopback() Option {
	return func(o *options) { o.plaintextLoopback = true }
}

func optionsOf(given []Option) options {
	var o options
	for _, option := range given {
		option(&o)
	}
	return o
}

// PerRPC returns credentials that send the token with each call. Use them with
// grpc.WithPerRPCCredentials, or with grpc.PerRPCCredentials for single calls. A call over
// a connection without TLS fails before anything is sent.
func PerRPC(source Source, given ...Option) credentials.PerRPCCredentials {
	return &perRPC{source: source, options: optionsOf(given)}
}

type perRPC struct {
	source  Source
	options options
}

// errPlaintext is the answer where somebody could listen.
var errPlaintext = errors.New("keycredentials: the connection has no TLS, so the token was not sent; use TLS, or AllowPlaintextLoopback on this machine")

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p *perRPC) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	info, ok := credentials.RequestInfoFromContext(ctx)
	if !ok {
		return nil, errPlaintext
	}
	if err := credentials.CheckSecurityLevel(info.AuthInfo, credentials.PrivacyAndIntegrity); err != nil &&
		(!p.options.plaintextLoopback || !isLoopbackCall(ctx)) {
		return nil, errPlaintext
	}
	value, err := header(ctx, p.source)
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": value}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (p *perRPC) RequireTransportSecurity() bool { return !p.options.plaintextLoopback }

// isLoopbackCall says whether a call goes to this machine. grpc puts the peer of the
// connection into the context before it asks for metadata.
func isLoopbackCall(ctx context.Context) bool {
	remote, ok := peer.FromContext(ctx)
	return ok && remote.Addr != nil && isLoopback(remote.Addr)
}

func isLoopback(address net.Addr) bool {
	if strings.HasPrefix(address.Network(), "unix") {
		return true
	}
	parsed, err := netip.ParseAddrPort(address.String())
	return err == nil && parsed.Addr().Unmap().IsLoopback()
}
