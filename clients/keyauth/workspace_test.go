package keyauth_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// named is the header in which the calls of these tests name a workspace.
const named = "x-workspace"

// fromHeader is a Config.Workspace.
func fromHeader(ctx context.Context, _ string, _ any) string {
	for _, value := range metadata.ValueFromIncomingContext(ctx, named) {
		return value
	}
	return ""
}

// TestLimitedServiceNamesWorkspaces: a service that may validate in the workspace acme only,
// against a real keysvc, and against the Validator in memory.
func TestLimitedServiceNamesWorkspaces(t *testing.T) {
	var tokens [2][2]string // of the keysvc and in memory; of acme and other
	keysvc := servertest.Limited(t, func(full *servertest.Keysvc) {
		for index, workspace := range []string{"acme", "other"} {
			full.PutMember(t, workspace, "ann", "admin")
			_, tokens[0][index] = full.CreateKey(t, workspace, "ann", scope)
		}
	}, "acme")
	memory := keyauthtest.New(t)
	for index, workspace := range []string{"acme", "other"} {
		tokens[1][index] = memory.CreateKey(keyauthtest.Key{WorkspaceID: workspace, Scopes: []string{scope}}).Token
	}
	memory.SetWorkspaces("acme")
	connected := func(nearCache bool) keyauth.Validator {
		client, err := keyclient.New(keysvc.Address, keyclient.Config{AllowPlaintext: true, ValidationTimeout: 20 * time.Second, WithoutNearCache: !nearCache})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		return client
	}
	for name, test := range map[string]struct {
		validator keyauth.Validator
		tokens    [2]string
	}{
		"keysvc":     {connected(false), tokens[0]},
		"near-cache": {connected(true), tokens[0]},
		"in memory":  {memory, tokens[1]},
	} {
		t.Run(name, func(t *testing.T) {
			hooked := serve(t, test.validator, keyauth.Config{Workspace: fromHeader})
			plain := serve(t, test.validator, keyauth.Config{})
			for name, call := range map[string]struct {
				service   *downstream
				token     string
				workspace string
				code      codes.Code
				reason    string
			}{
				"its workspace":           {hooked, test.tokens[0], "acme", codes.OK, ""},
				"key of another":          {hooked, test.tokens[1], "acme", codes.Unauthenticated, "KEY_INVALID"},
				"no token of a key":       {hooked, "nonsense", "acme", codes.Unauthenticated, "KEY_INVALID"},
				"another workspace":       {hooked, test.tokens[1], "other", codes.Internal, ""},
				"no workspace":            {hooked, test.tokens[0], "", codes.Internal, ""},
				"impossible workspace":    {hooked, test.tokens[0], "a/b", codes.NotFound, ""},
				"without the hook":        {plain, test.tokens[0], "acme", codes.Internal, ""},
				"without the hook, other": {plain, test.tokens[1], "acme", codes.Internal, ""},
				"without hook or token":   {plain, "nonsense", "acme", codes.Internal, ""},
			} {
				t.Run(name, func(t *testing.T) {
					headers := []string{"authorization", "Bearer " + call.token, named, call.workspace}
					for range 2 { // the second time, a near-cache knows the key
						expect(t, call.service.call(t.Context(), methodGet, headers...), call.code, call.reason, "")
						err := call.service.open(t, methodListen, headers...).RecvMsg(nil)
						if call.code == codes.OK && errors.Is(err, io.EOF) {
							continue
						}
						expect(t, err, call.code, call.reason, "")
					}
				})
			}
		})
	}
}

// TestWorkspaceIsAskedOncePerCallThatNeedsAKey: with the method and the message, and without the
// token.
func TestWorkspaceIsAskedOncePerCallThatNeedsAKey(t *testing.T) {
	validator := keyauthtest.New(t)
	token := validator.CreateKey(keyauthtest.Key{Scopes: []string{scope}}).Token
	type call struct {
		method  string
		message bool
	}
	asked := make(chan call, 10)
	d := serve(t, validator, keyauth.Config{Workspace: func(ctx context.Context, method string, request any) string {
		if len(metadata.ValueFromIncomingContext(ctx, "authorization")) > 0 {
			t.Error("it sees the token")
		}
		asked <- call{method, request != nil}
		return keyauthtest.DefaultWorkspace
	}})
	for _, method := range []string{methodGet, methodOpen, methodForgot} {
		_ = d.call(t.Context(), method, "authorization", "Bearer "+token)
	}
	_ = d.open(t, methodListen, "authorization", "Bearer "+token).RecvMsg(nil)
	close(asked)
	for _, want := range []call{{methodGet, true}, {methodListen, false}} {
		if got := <-asked; got != want {
			t.Errorf("asked about %+v, want %+v", got, want)
		}
	}
	for got := range asked {
		t.Errorf("asked about %+v", got)
	}
	for _, question := range validator.Asked() {
		if question.WorkspaceID != keyauthtest.DefaultWorkspace {
			t.Errorf("a question about the workspace %q", question.WorkspaceID)
		}
	}
}
