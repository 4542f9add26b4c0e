package attack

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// megabyte is the largest message that a server takes, unless it is set otherwise.
const megabyte = 1 << 20

// hoard describes calls that are opened and kept open.
type hoard struct {
	connections int
	// streams are opened on each connection; a stream that the server ends is replaced.
	streams int
	method  string
	// message is sent on each stream, unless it is empty; further messages follow.
	message []byte
	// end ends the request.
	end    bool
	manner manner
	// tend is called each second, if it is not nil, with the lock for writing held.
	tend func(c *conn, stream uint32) error
}

// keep keeps calls open on every connection.
func (r *Run) keep(ctx context.Context, h hoard) {
	headers := r.headers(h.method)
	r.crowd(ctx, h.connections, func(ctx context.Context, random *rand.Rand) error {
		free := make(chan struct{}, h.streams)
		for range h.streams {
			free <- struct{}{}
		}
		manner := h.manner
		manner.ended = func(uint32) {
			select {
			case free <- struct{}{}:
			default:
			}
		}
		c, err := r.connect(ctx, random, manner)
		if err != nil {
			return err
		}
		defer c.Close()
		var opened []uint32
		tending := time.NewTicker(time.Second)
		defer tending.Stop()
		for {
			select {
			case <-free:
				stream, err := c.call(headers, h.message, h.end)
				if err != nil {
					return err
				}
				if opened = append(opened, stream); len(opened) > h.streams {
					opened = opened[len(opened)-h.streams:]
				}
			case <-tending.C:
				if h.tend == nil {
					continue
				}
				err := c.write(func() error {
					for _, stream := range opened {
						if err := h.tend(c, stream); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					return err
				}
			case <-c.gone:
				return errEnded
			case <-ctx.Done():
				return nil
			}
		}
	})
}

var errEnded = fmt.Errorf("the server ended the connection")

// wholeList is a list of everything that the workspace has, in as large a page as there is.
func (r *Run) wholeList() []byte {
	return message(&keysvcv1.ListKeysRequest{WorkspaceId: r.target.Workspace, PageSize: 1000})
}

func closedWindows(ctx context.Context, r *Run) {
	random := r.random()
	r.keep(ctx, hoard{connections: 1 + random.IntN(4), streams: 50 + random.IntN(50), method: keysvcv1.KeyService_ListKeys_FullMethodName, message: r.wholeList(), end: true})
}

func trickledWindows(ctx context.Context, r *Run) {
	random := r.random()
	r.keep(ctx, hoard{
		connections: 1 + random.IntN(4), streams: 50 + random.IntN(50), method: keysvcv1.KeyService_ListKeys_FullMethodName, message: r.wholeList(), end: true,
		tend: func(c *conn, stream uint32) error { return c.framer.WriteWindowUpdate(stream, 1) },
	})
}

func unreadAnswers(ctx context.Context, r *Run) {
	// A deaf connection hears of no ended stream, so it opens its streams once. It notices that the
	// server has ended it when it can send nothing more.
	headers, list := r.headers(keysvcv1.KeyService_ListKeys_FullMethodName), r.wholeList()
	r.crowd(ctx, 4, func(ctx context.Context, random *rand.Rand) error {
		c, err := r.connect(ctx, random, manner{window: maxWindow, deaf: true})
		if err != nil {
			return err
		}
		defer c.Close()
		for range 60 {
			if _, err := c.call(headers, list, true); err != nil {
				return err
			}
		}
		for rest(ctx, time.Second) {
			if err := c.write(func() error { return c.framer.WritePing(false, [8]byte{}) }); err != nil {
				return err
			}
		}
		return nil
	})
}

func lists(ctx context.Context, r *Run) {
	r.keep(ctx, hoard{connections: 4, streams: 16, method: keysvcv1.KeyService_ListKeys_FullMethodName, message: r.wholeList(), end: true, manner: manner{window: maxWindow, generous: true}})
}

func emptyBatches(ctx context.Context, r *Run) {
	items := framed(bytes.Repeat([]byte{10, 0}, megabyte/2))
	r.keep(ctx, hoard{connections: 2, streams: 32, method: keysvcv1.ValidationService_BatchValidateKeys_FullMethodName, message: items, end: true, manner: manner{window: maxWindow, generous: true}})
}

func largeBatches(ctx context.Context, r *Run) {
	batch := &keysvcv1.BatchValidateKeysRequest{}
	for range 256 {
		batch.Requests = append(batch.Requests, &keysvcv1.ValidateKeyRequest{Token: "scribe_ksk1_" + string(bytes.Repeat([]byte{'a'}, 3000)), RequiredScope: "signatures:read"})
	}
	r.keep(ctx, hoard{connections: 4, streams: 32, method: keysvcv1.ValidationService_BatchValidateKeys_FullMethodName, message: message(batch), end: true, manner: manner{window: maxWindow, generous: true}})
}

func silentSessions(ctx context.Context, r *Run) {
	random := r.random()
	r.keep(ctx, hoard{connections: 17 + random.IntN(8), streams: 1000, method: keysvcv1.SyncService_Sync_FullMethodName, manner: manner{window: maxWindow}})
}

func helloSessions(ctx context.Context, r *Run) {
	random := r.random()
	hello := message(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}})
	r.keep(ctx, hoard{connections: 17 + random.IntN(8), streams: 1000, method: keysvcv1.SyncService_Sync_FullMethodName, message: hello, manner: manner{window: maxWindow}})
}

// deafSessions say hello and never open their window, while others change things: what they
// are told piles up.
func deafSessions(ctx context.Context, r *Run) {
	hello := message(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}})
	ping := message(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: &keysvcv1.SyncPing{Nonce: 1}}})
	r.keep(ctx, hoard{
		connections: 4, streams: 500, method: keysvcv1.SyncService_Sync_FullMethodName, message: hello,
		tend: func(c *conn, stream uint32) error { return c.trickle(stream, ping) },
	})
}

func healthWatches(ctx context.Context, r *Run) {
	r.keep(ctx, hoard{connections: 17, streams: 1000, method: grpc_health_v1.Health_Watch_FullMethodName, message: message(&grpc_health_v1.HealthCheckRequest{}), end: true, manner: manner{window: maxWindow}})
}

func reflections(ctx context.Context, r *Run) {
	ask := message(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "keysvc.v1.KeyService"}})
	r.keep(ctx, hoard{
		connections: 8, streams: 1000, method: grpc_reflection_v1.ServerReflection_ServerReflectionInfo_FullMethodName, message: ask,
		tend: func(c *conn, stream uint32) error { return c.trickle(stream, ask) },
	})
}

func awaits(ctx context.Context, r *Run) {
	far := message(&keysvcv1.AwaitRevisionRequest{Revision: 1 << 40})
	r.keep(ctx, hoard{connections: 8, streams: 1000, method: keysvcv1.SyncService_AwaitRevision_FullMethodName, message: far, end: true, manner: manner{window: maxWindow}})
}

func waitingValidations(ctx context.Context, r *Run) {
	far := message(&keysvcv1.ValidateKeyRequest{Token: "scribe_ksk1_none", RequiredScope: "signatures:read", MinRevision: 1 << 40})
	r.keep(ctx, hoard{connections: 8, streams: 1000, method: keysvcv1.ValidationService_ValidateKey_FullMethodName, message: far, end: true, manner: manner{window: maxWindow, generous: true}})
}

func changes(ctx context.Context, r *Run) {
	change := message(&keysvcv1.PutMemberRequest{WorkspaceId: "attacked", MemberId: "nobody", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE})
	r.keep(ctx, hoard{connections: 8, streams: 250, method: keysvcv1.MemberService_PutMember_FullMethodName, message: change, end: true, manner: manner{window: maxWindow, generous: true}})
}

func invalidTokens(ctx context.Context, r *Run) {
	random := r.random()
	text := make([]byte, 30)
	for i := range text {
		text[i] = byte('a' + random.IntN(26))
	}
	invalid := message(&keysvcv1.ValidateKeyRequest{Token: string(text), RequiredScope: "signatures:read", ClientAddress: fmt.Sprintf("10.%d.%d.%d", random.IntN(256), random.IntN(256), random.IntN(256))})
	r.keep(ctx, hoard{connections: 4, streams: 64, method: keysvcv1.ValidationService_ValidateKey_FullMethodName, message: invalid, end: true, manner: manner{window: maxWindow, generous: true}})
}

// invalidAddresses is invalidTokens with another presenter's address in each call.
func invalidAddresses(ctx context.Context, r *Run) {
	headers := r.headers(keysvcv1.ValidationService_ValidateKey_FullMethodName)
	r.crowd(ctx, 4, func(ctx context.Context, random *rand.Rand) error {
		c, err := r.connect(ctx, random, manner{window: maxWindow, generous: true})
		if err != nil {
			return err
		}
		defer c.Close()
		for ctx.Err() == nil && c.await(32*128) {
			err := c.write(func() error {
				for range 32 {
					stream, err := c.open(headers, false)
					if err != nil {
						return err
					}
					question := &keysvcv1.ValidateKeyRequest{
						Token: fmt.Sprintf("scribe_ksk1_%016x_%049x", random.Uint64(), random.Uint64()), RequiredScope: "signatures:read",
						ClientAddress: fmt.Sprintf("2001:db8::%x:%x", random.IntN(1<<16), random.IntN(1<<16)),
					}
					if err := c.data(stream, message(question), true); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil || !rest(ctx, time.Millisecond) {
				return err
			}
		}
		return errEnded
	})
}

// halfOpen opens calls that never end: the headers arrived, the message never does.
func halfOpen(ctx context.Context, r *Run) {
	r.keep(ctx, hoard{connections: 50, streams: 1000, method: keysvcv1.ValidationService_ValidateKey_FullMethodName, manner: manner{window: maxWindow}})
}

// halfMessages announce a message as large as it may be, and send all of it but the last byte.
func halfMessages(ctx context.Context, r *Run) {
	most := append(announced(megabyte), make([]byte, megabyte-1)...)
	r.keep(ctx, hoard{connections: 8, streams: 500, method: keysvcv1.ValidationService_BatchValidateKeys_FullMethodName, message: most, manner: manner{window: maxWindow}})
}

// trickledMessages send one byte of a message each second.
func trickledMessages(ctx context.Context, r *Run) {
	r.keep(ctx, hoard{
		connections: 10, streams: 500, method: keysvcv1.ValidationService_ValidateKey_FullMethodName, message: announced(megabyte)[:2], manner: manner{window: maxWindow},
		tend: func(c *conn, stream uint32) error { return c.trickle(stream, []byte{0}) },
	})
}

// unknownMethods calls what does not exist.
func unknownMethods(ctx context.Context, r *Run) {
	r.keep(ctx, hoard{connections: 4, streams: 250, method: "/keysvc.v1.KeyService/Nothing", message: message(proto.Message(&keysvcv1.GetPolicyRequest{})), end: true, manner: manner{window: maxWindow, generous: true}})
}
