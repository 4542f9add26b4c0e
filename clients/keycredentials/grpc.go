package keycredentials

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Option changes what is allowed.
type Option func(*options)

type options struct{ plaintextLoopback bool }

// AllowPlaintextLoopback allows calls without TLS to loopback addresses and unix sockets, where
// only this machine can listen. For gRPC, the target must name one, or localhost. For HTTP, the
// host must be a loopback address, and the RoundTripper below must not use a proxy for it. It
// is for development.
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
// grpc.WithPerRPCCredentials, or with grpc.PerRPCCredentials for single calls.
//
// A call fails before anything is sent: with codes.Internal if its connection is not known to
// be private and authentic, or if it has authorization metadata already; with codes.Unavailable
// if the source fails. grpc itself returns codes.Unauthenticated for a single call without TLS
// and without AllowPlaintextLoopback.
func PerRPC(source Source, given ...Option) credentials.PerRPCCredentials {
	return &perRPC{source: source, options: optionsOf(given)}
}

type perRPC struct {
	source  Source
	options options
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p *perRPC) GetRequestMetadata(ctx context.Context, audience ...string) (map[string]string, error) {
	info, _ := credentials.RequestInfoFromContext(ctx)
	if !isSecure(info.AuthInfo) && (!p.options.plaintextLoopback || !isLoopbackCall(ctx, audience)) {
		return nil, status.Error(codes.Internal,
			"keycredentials: the connection is not known to be secure, so the token was not sent; use TLS, or AllowPlaintextLoopback with a target on this machine")
	}
	if outgoing, _ := metadata.FromOutgoingContext(ctx); len(outgoing.Get("authorization")) > 0 {
		return nil, status.Error(codes.Internal, "keycredentials: the call has authorization metadata already; nothing was sent")
	}
	value, err := authorization(ctx, p.source)
	switch {
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	case err != nil:
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return map[string]string{"authorization": value}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (p *perRPC) RequireTransportSecurity() bool { return !p.options.plaintextLoopback }

// isSecure reports whether a connection is known to be private and authentic. It does not use
// credentials.CheckSecurityLevel, which accepts a connection that does not tell its level.
func isSecure(connection credentials.AuthInfo) bool {
	common, ok := connection.(interface {
		GetCommonAuthInfo() credentials.CommonAuthInfo
	})
	return ok && common.GetCommonAuthInfo().SecurityLevel >= credentials.PrivacyAndIntegrity
}

// isLoopbackCall reports whether a call goes to this machine: its connection goes to a loopback
// address, and the dialled target names one. The connection alone could lead to a proxy on this
// machine.
func isLoopbackCall(ctx context.Context, audience []string) bool {
	// Before grpc asks for metadata, it puts the connection's peer into the context, in place
	// of the peer of an incoming call.
	remote, ok := peer.FromContext(ctx)
	if !ok || remote.Addr == nil || !isLoopback(remote.Addr) || len(audience) != 1 {
		return false
	}
	dialled, err := url.Parse(audience[0])
	return err == nil && (strings.EqualFold(dialled.Hostname(), "localhost") || isLoopbackHost(dialled.Hostname()))
}

func isLoopback(address net.Addr) bool {
	if strings.HasPrefix(address.Network(), "unix") {
		return true
	}
	parsed, err := netip.ParseAddrPort(address.String())
	return err == nil && parsed.Addr().Unmap().IsLoopback()
}
