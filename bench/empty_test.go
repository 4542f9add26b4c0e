package bench

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// empty is a validation service that decides nothing. Each question gets the same answer, which
// is as long as keysvc's in TestMeasureQuick.
type empty struct {
	keysvcv1.UnimplementedValidationServiceServer
}

// emptyAnswer is that answer.
var emptyAnswer = &keysvcv1.ValidateKeyResponse{
	Decision: keysvcv1.Decision_DECISION_ALLOWED, KeyId: "0123456789abcdef", Revision: 1000, Epoch: "0123456789abcdef0123456789abcdef",
	Principal: &keysvcv1.Principal{KeyId: "0123456789abcdef", WorkspaceId: quickWorkspace, MemberId: quickMember, Role: quickRole},
}

// ValidateKey implements keysvcv1.ValidationServiceServer.
func (empty) ValidateKey(context.Context, *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
	return emptyAnswer, nil
}

// startEmpty starts a gRPC server without tuning, with an empty service, and returns its
// address.
func startEmpty(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	keysvcv1.RegisterValidationServiceServer(server, empty{})
	go server.Serve(listener) // it ends with Stop
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}
