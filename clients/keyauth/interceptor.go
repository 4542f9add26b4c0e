package keyauth

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// authorizationHeader is the header with the token, in lower case as gRPC writes it.
const authorizationHeader = "authorization"

// UnaryServerInterceptor returns the interceptor for unary methods. Run it before interceptors
// that need the principal, and after those that must see refusals, such as logs and metrics.
func (g *Guard) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, message any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		request := g.request(ctx, info.FullMethod, message)
		if refusal := g.readWorkspace(ctx, &request, message); refusal != nil {
			return nil, refusal
		}
		principal, _, refusal := g.decide(ctx, &request)
		if refusal != nil {
			return nil, refusal
		}
		return handler(admit(ctx, principal), message)
	}
}

// StreamServerInterceptor returns the interceptor for streaming methods. A stream is decided
// before its handler runs and before anything is read from it.
//
// If the requirement has a WorkspaceField, each message is checked when the handler receives it: one
// that names another workspace than the key's ends the stream as an unknown key does. The handler does
// not see the message, and cannot send before one has passed. A service that may validate in some
// workspaces only needs Config.Workspace for its streams nevertheless, because the decision comes first.
//
// If the Validator is a Watcher, a stream also ends when its key may no longer do what the
// stream needs. RecvMsg and SendMsg then fail with the refusal, calls in progress included. The
// stream's context is cancelled with the refusal as its cause. The presenter gets the refusal
// as the status, whatever the handler returns. With any other Validator a stream is decided
// once, when it begins.
func (g *Guard) StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx := stream.Context()
		request := g.request(ctx, info.FullMethod, nil)
		field := request.Requirement.field
		request.Requirement.field = "" // nothing was read yet
		principal, question, refusal := g.decide(ctx, &request)
		if refusal != nil {
			return refusal
		}
		if field != "" {
			stream, handler = g.inWorkspace(stream, handler, info.FullMethod, field, principal)
		}
		if g.watcher == nil || principal == nil || question.Token == "" { // a session has no token
			return handler(service, &admittedStream{ServerStream: stream, ctx: admit(ctx, principal)})
		}
		return g.watched(service, stream, info.FullMethod, principal, question, handler)
	}
}

// request returns what is known of a call. message is nil for a stream.
func (g *Guard) request(ctx context.Context, method string, message any) Request {
	request := Request{
		Name:          method,
		Requirement:   g.table[method],
		Authorization: metadata.ValueFromIncomingContext(ctx, authorizationHeader),
	}
	if from, ok := peer.FromContext(ctx); ok {
		request.Peer = addressOf(from.Addr)
		request.UnixSocket = from.Addr != nil && strings.HasPrefix(from.Addr.Network(), "unix")
	}
	if g.readsForwarded {
		request.Forwarded = metadata.ValueFromIncomingContext(ctx, g.forwardedHeader)
	}
	if read := message != nil && request.Requirement.field != ""; !read && g.workspace != nil && request.Requirement.IsValid() && !request.Requirement.IsPublic() {
		request.WorkspaceID = g.workspace(admit(ctx, nil), method, message) // without the token
	}
	if g.authenticate != nil {
		request.Authenticate = func(ctx context.Context) (Principal, bool, error) { return g.authenticate(ctx, method) }
	}
	return request
}

// admittedStream is a stream whose context has the principal.
type admittedStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a stream has a context
}

// Context implements grpc.ServerStream.
func (s *admittedStream) Context() context.Context { return s.ctx }
