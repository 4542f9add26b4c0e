package bench

import (
	"context"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// floor is a server that stores nothing and decides nothing. It tells all sessions of each
// change, with a message that is encoded once, and answers without waiting. AwaitRevision does
// not wait either. Compare the figures of TestMeasureSessions with it, on the same machine.
type floor struct {
	keysvcv1.UnimplementedKeyServiceServer
	keysvcv1.UnimplementedMemberServiceServer
	keysvcv1.UnimplementedSyncServiceServer

	mutex    sync.Mutex
	revision int64
	sessions map[*floorSession]struct{}
}

type floorSession struct {
	grpc.ServerStream
	wake chan *grpc.PreparedMsg
}

// startFloor starts a floor and returns its address.
func startFloor(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, service := grpc.NewServer(), &floor{sessions: make(map[*floorSession]struct{})}
	keysvcv1.RegisterKeyServiceServer(server, service)
	keysvcv1.RegisterMemberServiceServer(server, service)
	keysvcv1.RegisterSyncServiceServer(server, service)
	go server.Serve(listener) // it ends with Stop
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

// tell tells all sessions of the next revision.
func (f *floor) tell() (revision int64, err error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.revision++
	var prepared *grpc.PreparedMsg
	for session := range f.sessions {
		if prepared == nil {
			prepared = new(grpc.PreparedMsg)
			if err := prepared.Encode(session, &keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Events{Events: &keysvcv1.SyncEvents{
				Revision: f.revision, Events: []*keysvcv1.SyncEvent{{
					Revision: f.revision, WorkspaceId: "w", Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY,
					Subject: "0123456789abcdef", AuditHash: make([]byte, 32),
				}},
			}}}); err != nil {
				return 0, err
			}
		}
		session.wake <- prepared
	}
	return f.revision, nil
}

// PutMember implements keysvcv1.MemberServiceServer.
func (f *floor) PutMember(context.Context, *keysvcv1.PutMemberRequest) (*keysvcv1.PutMemberResponse, error) {
	return &keysvcv1.PutMemberResponse{}, nil
}

// CreateKey implements keysvcv1.KeyServiceServer.
func (f *floor) CreateKey(context.Context, *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error) {
	revision, err := f.tell()
	return &keysvcv1.CreateKeyResponse{Revision: revision}, err
}

// RevokeKey implements keysvcv1.KeyServiceServer.
func (f *floor) RevokeKey(context.Context, *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
	revision, err := f.tell()
	return &keysvcv1.RevokeKeyResponse{Revision: revision}, err
}

// AwaitRevision implements keysvcv1.SyncServiceServer.
func (f *floor) AwaitRevision(context.Context, *keysvcv1.AwaitRevisionRequest) (*keysvcv1.AwaitRevisionResponse, error) {
	return &keysvcv1.AwaitRevisionResponse{}, nil
}

// Sync implements keysvcv1.SyncServiceServer.
func (f *floor) Sync(stream grpc.BidiStreamingServer[keysvcv1.SyncRequest, keysvcv1.SyncResponse]) error {
	if err := stream.Send(&keysvcv1.SyncResponse{Kind: &keysvcv1.SyncResponse_Welcome{Welcome: &keysvcv1.SyncWelcome{
		Epoch: "e", Reset_: true, Staleness: durationpb.New(staleness),
	}}}); err != nil {
		return err
	}
	session := &floorSession{ServerStream: stream, wake: make(chan *grpc.PreparedMsg, 16)}
	f.mutex.Lock()
	f.sessions[session] = struct{}{}
	f.mutex.Unlock()
	defer func() {
		f.mutex.Lock()
		defer f.mutex.Unlock()
		delete(f.sessions, session)
	}()
	go func() {
		for {
			if _, err := stream.Recv(); err != nil {
				return
			}
		}
	}()
	for {
		select {
		case prepared := <-session.wake:
			if err := stream.SendMsg(prepared); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}
