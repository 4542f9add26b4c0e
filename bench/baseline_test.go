package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/scribe-mail/keysvc/bench/population"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// socketVariable is the path of the unix socket of a baseline.
const socketVariable = "KEYSVC_BENCH_SOCKET"

// tunedEnvironment is what the tuned baseline gets beside its options.
const tunedEnvironment = "GOGC=800"

// baselineAnswer is what a baseline answers: as long as the answer about a key of a population.
func baselineAnswer() *keysvcv1.ValidateKeyResponse {
	key, err := population.At(0)
	if err != nil {
		panic(err) // the source of a population never fails
	}
	id := key.Token.ID()
	return &keysvcv1.ValidateKeyResponse{
		Decision: keysvcv1.Decision_DECISION_ALLOWED, KeyId: id, Revision: 1_000_000, Epoch: "0123456789abcdef0123456789abcdef", ByDigest: true,
		Principal: &keysvcv1.Principal{KeyId: id, WorkspaceId: key.WorkspaceID, MemberId: key.MemberID, Role: population.Role},
	}
}

// startBaseline serves a validation service that decides nothing, over each transport, and prints
// the addresses.
func startBaseline(t *testing.T, tuned bool) {
	t.Helper()
	answer := baselineAnswer()
	for _, each := range []struct {
		name, network, address string
		options                []grpc.ServerOption
	}{
		{"address", "tcp", "127.0.0.1:0", nil},
		{"tls", "tcp", "127.0.0.1:0", serverTLS(t)},
		{"unix", "unix", os.Getenv(socketVariable), nil},
	} {
		listener, err := net.Listen(each.network, each.address)
		if err != nil {
			t.Fatal(err)
		}
		options := each.options
		if tuned {
			options = append(options, tunedOptions(t, answer)...)
		}
		server := grpc.NewServer(options...)
		keysvcv1.RegisterValidationServiceServer(server, constant{answer: answer})
		go server.Serve(listener) // it ends with Stop
		t.Cleanup(server.Stop)
		fmt.Println(each.name, listener.Addr().String())
	}
}

// constant answers every validation with one message.
type constant struct {
	keysvcv1.UnimplementedValidationServiceServer
	answer *keysvcv1.ValidateKeyResponse
}

// ValidateKey implements keysvcv1.ValidationServiceServer.
func (c constant) ValidateKey(context.Context, *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
	return c.answer, nil
}

// tunedOptions is every tuning that grpc-go offers a server whose answer is known: workers instead of
// a goroutine for each call, and a codec that neither decodes nor encodes. tunedEnvironment is the
// rest.
func tunedOptions(t *testing.T, answer *keysvcv1.ValidateKeyResponse) []grpc.ServerOption {
	t.Helper()
	encoded, err := encoding.GetCodecV2(proto.Name).Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	return []grpc.ServerOption{
		grpc.NumStreamWorkers(64), grpc.ForceServerCodecV2(fixed{encoded.Materialize()}),
	}
}

// fixed is a codec whose messages are always the same.
type fixed struct{ encoded []byte }

// Marshal implements encoding.CodecV2.
func (f fixed) Marshal(any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(f.encoded)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (f fixed) Unmarshal(mem.BufferSlice, any) error { return nil }

// Name implements encoding.CodecV2.
func (f fixed) Name() string { return proto.Name }

// socketFolder returns a folder whose path is short enough for unix sockets.
func socketFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "bench")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	return filepath.Clean(folder)
}
