package server_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// plainDial opens a connection with gRPC's defaults, which takes answers of up to 4 MiB.
func (b *bench) plainDial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///bufconn",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.listen.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// fullLabels returns the largest labels that a key may have.
func fullLabels() map[string]string {
	labels := make(map[string]string)
	for index := range 32 {
		labels[fmt.Sprintf("%s%02d", strings.Repeat("k", 61), index)] = strings.Repeat("v", 255)
	}
	return labels
}

// createLarge creates large keys, some in each of several workspaces.
func (b *bench) createLarge(t *testing.T, workspaces, each int, scopes ...string) map[string]bool {
	t.Helper()
	made := make(map[string]bool)
	var mutex sync.Mutex
	var group sync.WaitGroup
	for workspace := range workspaces {
		id := fmt.Sprintf("w%d", workspace)
		b.putMember(t, id, "ann", "owner")
		group.Go(func() {
			for range each {
				response, err := b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{
					WorkspaceId: id, MemberId: "ann", Name: strings.Repeat("n", 128), Scopes: scopes, Labels: fullLabels(),
				})
				if err != nil {
					t.Error(err)
					return
				}
				mutex.Lock()
				made[response.GetKey().GetKeyId()] = true
				mutex.Unlock()
			}
		})
	}
	group.Wait()
	return made
}

// TestPagesFitAnyClient lists keys of the largest size with a client of gRPC's defaults: the
// client takes each page, no page is needlessly small, and no key is left out.
func TestPagesFitAnyClient(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	const workspaces, each = 42, 10
	made := b.createLarge(t, workspaces, each, "emails:read")
	client := keysvcv1.NewKeyServiceClient(b.plainDial(t))
	for name, request := range map[string]*keysvcv1.ListKeysRequest{
		"all":         {PageSize: 1000},
		"400":         {PageSize: 400},
		"a filter":    {PageSize: 1000, Scope: proto.String("emails:read")},
		"a workspace": {PageSize: 1000, WorkspaceId: "w7"},
		"nothing":     {PageSize: 1000, Scope: proto.String("emails:delete")},
	} {
		t.Run(name, func(t *testing.T) {
			left := maps.Clone(made)
			given, pages := 0, 0
			for ; ; pages++ {
				page, err := client.ListKeys(testContext(t), request)
				if err != nil {
					t.Fatal(err)
				}
				if size := proto.Size(page); size > storage.MaxPageBytes+64<<10 {
					t.Errorf("page %d has %d bytes", pages, size)
				}
				for _, key := range page.GetKeys() {
					delete(left, key.GetKeyId())
					given++
				}
				if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
					break
				}
				if len(page.GetKeys()) == 0 && name != "nothing" {
					t.Errorf("page %d is empty", pages)
				}
			}
			want := map[string]int{"a workspace": each, "nothing": 0}
			if expected, special := want[name]; special && given != expected || !special && (given != len(made) || len(left) != 0) {
				t.Errorf("%d keys were given, %d of %d left out", given, len(left), len(made))
			}
			if pages > 5 {
				t.Errorf("%d pages for less than 5 MiB", pages)
			}
		})
	}
}

// TestBatchesFitAnyClient does the same with a batch with details and grants. An item that
// does not fit has an error, and is answered in another batch.
func TestBatchesFitAnyClient(t *testing.T) {
	t.Parallel()
	var scopes []string
	b := start(t, options{policy: func(p *policy.Policy) {
		name := strings.Repeat("x", 60)
		for resource := range 10 {
			added := policy.Resource{Name: fmt.Sprintf("%s%02d", name, resource)}
			for action := range 10 {
				added.Actions = append(added.Actions, fmt.Sprintf("%s%02d", name, action))
				scopes = append(scopes, added.Name+":"+added.Actions[action])
			}
			p.Resources = append(p.Resources, added)
		}
	}})
	b.putMember(t, "acme", "ann", "owner")
	created, err := b.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "n", Scopes: scopes, Labels: fullLabels(),
	})
	if err != nil {
		t.Fatal(err)
	}
	client := keysvcv1.NewValidationServiceClient(b.plainDial(t))
	question := &keysvcv1.ValidateKeyRequest{Token: created.GetToken(), RequiredScope: scopes[0], WithDetails: true, IncludeGrant: true}
	request := &keysvcv1.BatchValidateKeysRequest{}
	for range 256 {
		request.Requests = append(request.Requests, question)
	}
	batches := 0
	for ; len(request.GetRequests()) > 0; batches++ {
		response, err := client.BatchValidateKeys(testContext(t), request)
		if err != nil {
			t.Fatal(err)
		}
		left := 0
		for index, item := range response.GetResponses() {
			switch {
			case item.GetDecision() == keysvcv1.Decision_DECISION_ALLOWED && left == 0:
			case item.GetError().GetReason() == keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS &&
				item.GetError().GetCode() == int32(codes.ResourceExhausted) && index > 0:
				left++
			default:
				t.Fatalf("item %d: %s", index, item.GetDecision())
			}
		}
		request.Requests = request.GetRequests()[:left]
	}
	if batches < 2 || batches > 5 {
		t.Errorf("%d batches", batches)
	}
}
