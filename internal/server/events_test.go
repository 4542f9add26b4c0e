package server_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// TestLineOfACallNamesWhatWasChangedAndByWhom makes each kind of change and looks at its
// line, as text and as JSON.
func TestLineOfACallNamesWhatWasChangedAndByWhom(t *testing.T) {
	t.Parallel()
	for _, format := range []config.LogFormat{config.LogText, config.LogJSON} {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			b := start(t, options{settings: func(s *config.Settings) { s.LogFormat = format }})
			b.putMember(t, "acme", "ann", "owner")
			key := b.create(t, "acme", "ann", "emails:read")
			keyID := key.GetKey().GetKeyId()
			for _, change := range []struct {
				call func(context.Context) error
				text string // without the time that it took
				json []string
			}{
				{
					func(ctx context.Context) error {
						_, err := b.members.PutMember(ctx, &keysvcv1.PutMemberRequest{WorkspaceId: "acme", MemberId: "bob", Role: "owner", State: active, ActorMemberId: new("ann")})
						return err
					},
					"INFO  PutMember acme/bob by local for ann OK",
					[]string{`"method":"PutMember"`, `"workspace_id":"acme"`, `"member_id":"bob"`, `"caller":"local"`, `"actor":"ann"`, `"code":"OK"`},
				},
				{
					func(ctx context.Context) error {
						_, err := b.keys.UpdateKey(ctx, &keysvcv1.UpdateKeyRequest{
							Key: &keysvcv1.Key{WorkspaceId: "acme", KeyId: keyID, Name: "another"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
						})
						return err
					},
					"INFO  UpdateKey acme/" + keyID + " by local OK",
					[]string{`"method":"UpdateKey"`, `"workspace_id":"acme"`, `"key_id":"` + keyID + `"`, `"caller":"local"`, `"code":"OK"`},
				},
				{
					func(ctx context.Context) error {
						_, err := b.keys.RotateKey(ctx, &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: keyID, Overlap: durationpb.New(1)})
						return err
					},
					"INFO  RotateKey acme/" + keyID + " by local OK",
					[]string{`"method":"RotateKey"`, `"key_id":"` + keyID + `"`},
				},
				{
					func(ctx context.Context) error {
						_, err := b.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: keyID, ActorMemberId: new("nobody-known")})
						return err
					},
					"INFO  RevokeKey acme/" + keyID + " by local OK",
					[]string{`"method":"RevokeKey"`, `"workspace_id":"acme"`, `"key_id":"` + keyID + `"`, `"code":"OK"`},
				},
				{
					func(ctx context.Context) error {
						_, err := b.keys.RevokeToken(ctx, &keysvcv1.RevokeTokenRequest{Token: b.create(t, "acme", "ann", "emails:read").GetToken()})
						return err
					},
					"INFO  RevokeToken acme/",
					[]string{`"method":"RevokeToken"`, `"workspace_id":"acme"`, `"key_id":"`},
				},
				{
					func(ctx context.Context) error {
						_, err := b.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: "0123456789abcdef"})
						expectError(t, err, codes.NotFound, "KEY_NOT_FOUND")
						return nil
					},
					"INFO  RevokeKey acme by local NOT_FOUND",
					[]string{`"method":"RevokeKey"`, `"workspace_id":"acme"`, `"code":"NOT_FOUND"`, `"reason":"KEY_NOT_FOUND"`},
				},
				{
					func(ctx context.Context) error {
						_, err := b.members.RemoveMember(ctx, &keysvcv1.RemoveMemberRequest{WorkspaceId: "acme", MemberId: "bob"})
						return err
					},
					"INFO  RemoveMember acme/bob by local OK",
					[]string{`"method":"RemoveMember"`, `"workspace_id":"acme"`, `"member_id":"bob"`},
				},
				{
					func(ctx context.Context) error {
						_, err := b.members.RemoveWorkspace(ctx, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme"})
						return err
					},
					"INFO  RemoveWorkspace acme by local OK",
					[]string{`"method":"RemoveWorkspace"`, `"workspace_id":"acme"`},
				},
			} {
				requestID := fmt.Sprintf("request-%p", &change)
				if err := change.call(metadata.AppendToOutgoingContext(testContext(t), "x-request-id", requestID)); err != nil {
					t.Errorf("%s: %v", change.text, err)
				}
				lines := b.log.lines(requestID)
				if len(lines) != 1 {
					t.Errorf("%s: want one line, got %q", change.text, lines)
					continue
				}
				want := change.json
				if format == config.LogText {
					want = []string{" " + change.text, "peer=bufconn"}
					if !regexp.MustCompile(` (OK|NOT_FOUND) \d+\.\dms `).MatchString(lines[0]) {
						t.Errorf("without the time that it took: %s", lines[0])
					}
				} else {
					want = append(slices.Clone(want), `"msg":"call finished"`, `"duration_ms":`, `"peer":"bufconn"`, `"service":"keysvc.v1.`)
				}
				for _, part := range want {
					if !strings.Contains(lines[0], part) {
						t.Errorf("want %q in %s", part, lines[0])
					}
				}
				if strings.Contains(lines[0], "nobody-known") {
					t.Errorf("a member that does not exist is named: %s", lines[0])
				}
			}
		})
	}
}

// heard collects events.
type heard struct {
	mutex sync.Mutex
	all   []string
}

func (h *heard) add(format string, values ...any) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.all = append(h.all, fmt.Sprintf(format, values...))
}

// since returns the events that were heard since the last call.
func (h *heard) take() []string {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	taken := h.all
	h.all = nil
	return taken
}

func TestHooksHearOfChangesInOrder(t *testing.T) {
	t.Parallel()
	var h heard
	b := start(t, options{hooks: events.Hooks{ChangeCommitted: func(change events.Change) {
		h.add("%d %s %s", change.Revision, change.Kind, change.Subject)
	}}})
	h.take() // the policy's
	member := b.putMember(t, "acme", "ann", "owner")
	key := b.create(t, "acme", "ann", "emails:read")
	want := []string{
		fmt.Sprintf("%d member acme/ann", member.GetRevision()),
		fmt.Sprintf("%d key acme/%s", key.GetRevision(), key.GetKey().GetKeyId()),
	}
	if got := h.take(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHooksHearOfCallsAndValidations(t *testing.T) {
	t.Parallel()
	var h heard
	b := start(t, options{
		settings: func(s *config.Settings) { s.LogLevel = slog.LevelInfo },
		hooks: events.Hooks{
			CallFinished:       func(call events.Call) { h.add("%s %s by %s %s", call.Method, call.Subject, call.Caller, call.Code) },
			ValidationFinished: func(validation events.Validation) { h.add("%s %s", validation.Method, validation.Code) },
			UsesFlushed: func(flush events.Flush) {
				h.add("flushed %d, last %t, %v", flush.Keys, flush.Last, flush.Error)
			},
		},
	})
	b.putMember(t, "acme", "ann", "owner")
	key := b.create(t, "acme", "ann", "emails:read")
	b.expectAllowed(t, key.GetToken(), "emails:read")
	_, err := b.validation.ValidateKey(testContext(t), &keysvcv1.ValidateKeyRequest{Token: key.GetToken(), RequiredScope: "emails:read", Epoch: "another", MinRevision: 1})
	if err == nil {
		t.Error("no error")
	}
	b.stop(t, patience)
	want := []string{
		"PutMember acme/ann by local OK",
		"CreateKey acme/" + key.GetKey().GetKeyId() + " by local OK",
		"ValidateKey OK", "ValidateKey FAILED_PRECONDITION",
		"flushed 1, last true, <nil>",
	}
	if got := h.take(); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestHooksHearOfSessions(t *testing.T) {
	t.Parallel()
	var h heard
	ended := make(chan struct{}, 1)
	b := start(t, options{hooks: events.Hooks{
		SessionBegan: func(began events.SessionBegan) { h.add("began, resumed %t", began.Resumed) },
		SessionEnded: func(events.SessionEnded) { h.add("ended"); ended <- struct{}{} },
	}})
	ctx, cancel := context.WithCancel(testContext(t))
	stream, err := b.sync.Sync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	hello := &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}
	if err := stream.Send(hello); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	waitFor(t, ended, "the end of the session")
	if got, want := h.take(), []string{"began, resumed false", "ended"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// breaking is a store whose change log breaks off when something is sent to broken.
type breaking struct {
	storage.Store
	broken chan error
}

// Watch implements storage.Store.
func (s *breaking) Watch(ctx context.Context, after storage.Barrier) iter.Seq2[*storage.Committed, error] {
	return func(yield func(*storage.Committed, error) bool) {
		within, cancel := context.WithCancel(ctx)
		defer cancel()
		var broken error
		ended := make(chan struct{})
		defer func() { <-ended }()
		go func() {
			defer close(ended)
			select {
			case broken = <-s.broken:
				cancel()
			case <-within.Done():
			}
		}()
		for change, err := range s.Store.Watch(within, after) {
			if err != nil && ctx.Err() == nil {
				cancel()
				<-ended
				yield(nil, broken)
				return
			}
			if !yield(change, err) {
				cancel()
				return
			}
		}
	}
}

func TestHooksHearOfAStoreThatWasDown(t *testing.T) {
	t.Parallel()
	var h heard
	back := make(chan struct{}, 1)
	store := &breaking{broken: make(chan error)}
	b := start(t, options{
		wrap: func(s storage.Store) storage.Store { store.Store = s; return store },
		hooks: events.Hooks{
			StoreDown: func(reason error) { h.add("down: %v", reason) },
			StoreBack: func(revision int64) { h.add("back at %d", revision); back <- struct{}{} },
		},
	})
	revision := b.putMember(t, "acme", "ann", "owner").GetRevision()
	store.broken <- errors.New("no connection")
	waitFor(t, back, "the store")
	if got, want := h.take(), []string{"down: no connection", fmt.Sprintf("back at %d", revision)}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	b.create(t, "acme", "ann", "emails:read")
}
