// Package signatures is a small downstream service. It keeps the e-mail signatures of
// workspaces in memory, and serves them over gRPC and HTTP. It never reads a token: all requests
// that reach it are allowed, and it limits itself to the principal's workspace.
package signatures

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	signaturesv1 "github.com/scribe-mail/keysvc/examples/signatures/gen/scribe/signatures/v1"
)

const (
	maxName    = 100
	maxContent = 64 << 10
)

// Service implements signaturesv1.SignaturesServiceServer.
type Service struct {
	signaturesv1.UnimplementedSignaturesServiceServer
	now func() time.Time

	mutex      sync.Mutex
	last       int
	workspaces map[string]map[string]*signaturesv1.Signature // by workspace, then by id
	watchers   map[chan *signaturesv1.Signature]string       // the workspace that each watches
}

// New returns a Service without signatures. now is the clock.
func New(now func() time.Time) *Service {
	return &Service{
		now:        now,
		workspaces: make(map[string]map[string]*signaturesv1.Signature),
		watchers:   make(map[chan *signaturesv1.Signature]string),
	}
}

// workspaceOf returns the only workspace that a request may touch. It returns an error if the
// server lacks the interceptor, because there is no principal then.
func workspaceOf(ctx context.Context) (string, error) {
	principal, ok := keyauth.PrincipalFrom(ctx)
	if !ok {
		return "", status.Error(codes.Internal, "the request was not authenticated")
	}
	return principal.WorkspaceID, nil
}

// ListSignatures implements signaturesv1.SignaturesServiceServer.
func (s *Service) ListSignatures(ctx context.Context, _ *signaturesv1.ListSignaturesRequest) (*signaturesv1.ListSignaturesResponse, error) {
	workspace, err := workspaceOf(ctx)
	if err != nil {
		return nil, err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	response := &signaturesv1.ListSignaturesResponse{}
	for _, id := range slices.Sorted(maps.Keys(s.workspaces[workspace])) {
		response.Signatures = append(response.Signatures, s.workspaces[workspace][id])
	}
	return response, nil
}

// GetSignature implements signaturesv1.SignaturesServiceServer.
func (s *Service) GetSignature(ctx context.Context, request *signaturesv1.GetSignatureRequest) (*signaturesv1.GetSignatureResponse, error) {
	workspace, err := workspaceOf(ctx)
	if err != nil {
		return nil, err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	signature := s.workspaces[workspace][request.GetId()]
	if signature == nil {
		return nil, notFound(request.GetId())
	}
	return &signaturesv1.GetSignatureResponse{Signature: signature}, nil
}

// CreateSignature implements signaturesv1.SignaturesServiceServer.
func (s *Service) CreateSignature(ctx context.Context, request *signaturesv1.CreateSignatureRequest) (*signaturesv1.CreateSignatureResponse, error) {
	workspace, err := workspaceOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := check(request.GetName(), request.GetContent()); err != nil {
		return nil, err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.last++
	signature := &signaturesv1.Signature{
		Id: fmt.Sprintf("sig-%d", s.last), Name: request.GetName(), Content: request.GetContent(),
	}
	if s.workspaces[workspace] == nil {
		s.workspaces[workspace] = make(map[string]*signaturesv1.Signature)
	}
	return &signaturesv1.CreateSignatureResponse{Signature: s.put(workspace, signature)}, nil
}

// UpdateSignature implements signaturesv1.SignaturesServiceServer.
func (s *Service) UpdateSignature(ctx context.Context, request *signaturesv1.UpdateSignatureRequest) (*signaturesv1.UpdateSignatureResponse, error) {
	if err := check(request.GetName(), request.GetContent()); err != nil {
		return nil, err
	}
	signature, err := s.change(ctx, request.GetId(), func(signature *signaturesv1.Signature) error {
		signature.Name, signature.Content = request.GetName(), request.GetContent()
		return nil
	})
	return &signaturesv1.UpdateSignatureResponse{Signature: signature}, err
}

// PublishSignature implements signaturesv1.SignaturesServiceServer.
func (s *Service) PublishSignature(ctx context.Context, request *signaturesv1.PublishSignatureRequest) (*signaturesv1.PublishSignatureResponse, error) {
	signature, err := s.change(ctx, request.GetId(), func(signature *signaturesv1.Signature) error {
		signature.PublishedContent = signature.GetContent()
		return nil
	})
	return &signaturesv1.PublishSignatureResponse{Signature: signature}, err
}

// InstallSignature implements signaturesv1.SignaturesServiceServer.
func (s *Service) InstallSignature(ctx context.Context, request *signaturesv1.InstallSignatureRequest) (*signaturesv1.InstallSignatureResponse, error) {
	email := request.GetEmail()
	if !strings.Contains(email, "@") || len(email) > 254 {
		return nil, status.Error(codes.InvalidArgument, "email: is not an address; the form is name@example.com")
	}
	signature, err := s.change(ctx, request.GetId(), func(signature *signaturesv1.Signature) error {
		if signature.GetPublishedContent() == "" {
			return status.Error(codes.FailedPrecondition, "the signature is not published; publish it first")
		}
		if !slices.Contains(signature.GetInstalledFor(), email) {
			signature.InstalledFor = append(signature.InstalledFor, email)
			slices.Sort(signature.InstalledFor)
		}
		return nil
	})
	return &signaturesv1.InstallSignatureResponse{Signature: signature}, err
}

// DeleteSignature implements signaturesv1.SignaturesServiceServer.
func (s *Service) DeleteSignature(ctx context.Context, request *signaturesv1.DeleteSignatureRequest) (*signaturesv1.DeleteSignatureResponse, error) {
	workspace, err := workspaceOf(ctx)
	if err != nil {
		return nil, err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.workspaces[workspace][request.GetId()] == nil {
		return nil, notFound(request.GetId())
	}
	delete(s.workspaces[workspace], request.GetId())
	s.tell(workspace, &signaturesv1.Signature{Id: request.GetId()})
	return &signaturesv1.DeleteSignatureResponse{}, nil
}

// WatchSignatures implements signaturesv1.SignaturesServiceServer. It does not check the key:
// the stream's context ends when the key may no longer read signatures.
func (s *Service) WatchSignatures(_ *signaturesv1.WatchSignaturesRequest, stream signaturesv1.SignaturesService_WatchSignaturesServer) error {
	workspace, err := workspaceOf(stream.Context())
	if err != nil {
		return err
	}
	changes := make(chan *signaturesv1.Signature, 64)
	s.mutex.Lock()
	s.watchers[changes] = workspace
	s.mutex.Unlock()
	defer func() {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		delete(s.watchers, changes)
	}()
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case signature := <-changes:
			if err := stream.Send(&signaturesv1.WatchSignaturesResponse{Signature: signature}); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// change replaces a signature of the principal's workspace.
func (s *Service) change(ctx context.Context, id string, change func(*signaturesv1.Signature) error) (*signaturesv1.Signature, error) {
	workspace, err := workspaceOf(ctx)
	if err != nil {
		return nil, err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	stored := s.workspaces[workspace][id]
	if stored == nil {
		return nil, notFound(id)
	}
	changed := proto.CloneOf(stored)
	if err := change(changed); err != nil {
		return nil, err
	}
	return s.put(workspace, changed), nil
}

// put stores a signature and tells the watchers. Stored signatures are never changed.
func (s *Service) put(workspace string, signature *signaturesv1.Signature) *signaturesv1.Signature {
	signature.UpdateTime = timestamppb.New(s.now())
	s.workspaces[workspace][signature.GetId()] = signature
	s.tell(workspace, signature)
	return signature
}

// tell passes a change to the watchers of its workspace. A slow watcher misses changes.
func (s *Service) tell(workspace string, signature *signaturesv1.Signature) {
	for watcher, watched := range s.watchers {
		if watched != workspace {
			continue
		}
		select {
		case watcher <- signature:
		default:
		}
	}
}

func check(name, content string) error {
	if length := utf8.RuneCountInString(name); length < 1 || length > maxName {
		return status.Errorf(codes.InvalidArgument, "name: has %d characters; allowed are 1 to %d", length, maxName)
	}
	if len(content) > maxContent {
		return status.Errorf(codes.InvalidArgument, "content: has %d bytes; allowed are up to %d", len(content), maxContent)
	}
	return nil
}

func notFound(id string) error {
	return status.Errorf(codes.NotFound, "there is no signature %q in this workspace", id)
}
