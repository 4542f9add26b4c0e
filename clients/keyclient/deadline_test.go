package keyclient_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// attempts counts each attempt of a call.
type attempts struct{ begun *atomic.Int64 }

func (attempts) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (a attempts) HandleRPC(_ context.Context, event stats.RPCStats) {
	if _, begins := event.(*stats.Begin); begins {
		a.begun.Add(1)
	}
}

func (attempts) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (attempts) HandleConn(context.Context, stats.ConnStats) {}

// With the default timeout, the server's answer comes before the client gives up.
func TestRevisionThatDoesNotComeIsAnErrorOfItsItem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := bufconn.Listen(1 << 20)
		keysvc := servertest.Start(t, servertest.Options{Listener: listener})
		keysvc.PutMember(t, "acme", "ann", "owner")
		_, token := keysvc.CreateKey(t, "acme", "ann", "emails:read")
		calls := new(atomic.Int64)
		client := newClient(t, bufferedTarget, keyclient.Config{WithoutNearCache: true, DialOptions: []grpc.DialOption{
			dialer(listener, new(atomic.Int64)), grpc.WithStatsHandler(attempts{begun: calls}),
		}})
		plain := &keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: "emails:read"}
		first, err := client.Validations.ValidateKey(t.Context(), plain)
		if err != nil {
			t.Fatal(err)
		}
		ahead := &keysvcv1.ValidateKeyRequest{
			Token: token, RequiredScope: "emails:read", MinRevision: first.GetRevision() + 1, Epoch: first.GetEpoch(),
		}
		response, err := client.Validations.BatchValidateKeys(t.Context(), &keysvcv1.BatchValidateKeysRequest{
			Requests: []*keysvcv1.ValidateKeyRequest{plain, ahead, plain},
		})
		if err != nil {
			t.Fatal(err)
		}
		for index, got := range response.GetResponses() {
			if (got.GetDecision() == keysvcv1.Decision_DECISION_ALLOWED) != (index != 1) ||
				(got.GetError().GetReason() == keysvcv1.ErrorReason_ERROR_REASON_REVISION_NOT_REACHED) != (index == 1) {
				t.Errorf("item %d: %v", index, got)
			}
		}
		// A single validation: the Client repeats UNAVAILABLE, but not a wait that has ended.
		begun := time.Now()
		calls.Store(0)
		if _, err := client.Validations.ValidateKey(t.Context(), ahead); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v, want UNAVAILABLE", err)
		}
		if took := time.Since(begun); took > 2*time.Second || calls.Load() != 1 {
			t.Errorf("it took %s and %d attempts", took, calls.Load())
		}
		_, err = client.Sync.AwaitRevision(t.Context(), &keysvcv1.AwaitRevisionRequest{Revision: ahead.GetMinRevision(), Epoch: ahead.GetEpoch()})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("AwaitRevision: %v, want UNAVAILABLE", err)
		}
	})
}
