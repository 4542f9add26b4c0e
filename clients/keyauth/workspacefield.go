package keyauth

import (
	"context"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// readField returns the text of a field of a message. path is the names of fields with dots, as in the
// proto file. ok is false if there is no such field, or it is not one string.
func readField(message any, path string) (text string, ok bool) {
	typed, isProto := message.(proto.Message)
	if !isProto {
		return "", false
	}
	for at := typed.ProtoReflect(); ; {
		name, rest, more := strings.Cut(path, ".")
		field := at.Descriptor().Fields().ByName(protoreflect.Name(name))
		switch {
		case field == nil || field.IsList() || field.IsMap():
			return "", false
		case !more:
			if field.Kind() != protoreflect.StringKind {
				return "", false
			}
			return at.Get(field).String(), true
		case field.Message() == nil:
			return "", false
		}
		at, path = at.Get(field).Message(), rest // a message that is not set has empty fields
	}
}

// readWorkspace sets the workspace of a unary call from the field that its requirement names.
func (g *Guard) readWorkspace(ctx context.Context, request *Request, message any) *RefusalError {
	if request.Requirement.field == "" {
		return nil
	}
	text, ok := readField(message, request.Requirement.field)
	if !ok {
		return g.noField(ctx, request.Name, request.Requirement.field)
	}
	request.WorkspaceID = text
	return nil
}

func (g *Guard) noField(ctx context.Context, method, field string) *RefusalError {
	g.log.ErrorContext(ctx, "request not decided: the field of its workspace cannot be read; run protoc-gen-go-keyscope again", "method", method, "field", field)
	return &RefusalError{Code: codes.Internal}
}

// inWorkspace returns a stream that checks the workspace of each message, and a handler that ends with
// the refusal of a message, whatever handler returns.
func (g *Guard) inWorkspace(stream grpc.ServerStream, handler grpc.StreamHandler, method, field string, principal *Principal) (grpc.ServerStream, grpc.StreamHandler) {
	checked := &workspaceStream{ServerStream: stream, guard: g, method: method, field: field, workspace: principal.WorkspaceID}
	return checked, func(service any, stream grpc.ServerStream) error {
		err := handler(service, stream)
		if refusal := checked.refused.Load(); refusal != nil {
			return refusal
		}
		return err
	}
}

// workspaceStream is a stream of one workspace.
type workspaceStream struct {
	grpc.ServerStream
	guard                    *Guard
	method, field, workspace string
	// passed is set when a message has passed, and refused when one was refused.
	passed  atomic.Bool
	refused atomic.Pointer[RefusalError]
}

// RecvMsg implements grpc.ServerStream.
func (s *workspaceStream) RecvMsg(message any) error {
	if refusal := s.refused.Load(); refusal != nil {
		return refusal
	}
	if err := s.ServerStream.RecvMsg(message); err != nil {
		return err
	}
	if refusal := s.check(message); refusal != nil {
		s.refused.Store(refusal)
		if typed, ok := message.(proto.Message); ok {
			proto.Reset(typed) // for a handler that does not look at the error
		}
		return refusal
	}
	s.passed.Store(true)
	return nil
}

func (s *workspaceStream) check(message any) *RefusalError {
	ctx := s.Context()
	text, ok := readField(message, s.field)
	switch {
	case !ok:
		return s.guard.noField(ctx, s.method, s.field)
	case text == s.workspace:
		return nil
	case !validID(text):
		s.guard.log.InfoContext(ctx, "request refused", "method", s.method, "reason", "its workspace cannot be the id of one", "field", s.field)
		return &RefusalError{Code: codes.NotFound}
	}
	s.guard.log.InfoContext(ctx, "request refused", "method", s.method, "reason", "the key is of another workspace", "field", s.field)
	return &RefusalError{Code: codes.Unauthenticated, Reason: keysvcv1.Reason_REASON_KEY_INVALID}
}

// mayAnswer returns an error until a message has passed.
func (s *workspaceStream) mayAnswer() error {
	if refusal := s.refused.Load(); refusal != nil {
		return refusal
	}
	if !s.passed.Load() {
		return status.Error(codes.Internal, "keyauth: the handler answers before it has received the request, so the workspace is not known")
	}
	return nil
}

// SendMsg implements grpc.ServerStream.
func (s *workspaceStream) SendMsg(message any) error {
	if err := s.mayAnswer(); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(message)
}

// SendHeader implements grpc.ServerStream.
func (s *workspaceStream) SendHeader(header metadata.MD) error {
	if err := s.mayAnswer(); err != nil {
		return err
	}
	return s.ServerStream.SendHeader(header)
}
