//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/test/trio"
)

const (
	replicas = 3
	// deadline is that of each call.
	deadline = 4 * time.Second
	scope    = "signatures:read"
)

// world is the cluster with those who use it.
type world struct {
	cluster *trio.Trio
	plan    plan
	say     func(string, ...any)
	// admins manage keys, each through one replica.
	admins []*keyclient.Client
	// closers are all clients.
	closers []*keyclient.Client

	mutex  sync.Mutex
	broken []string
}

// key is a key with its token.
type key struct{ workspace, id, token string }

func newWorld(ctx context.Context, cluster *trio.Trio, p plan, say func(string, ...any)) (*world, error) {
	w := &world{cluster: cluster, plan: p, say: say}
	for _, replica := range cluster.Replicas {
		admin, err := w.client("admin", replica.Address(), keyclient.Config{WithoutNearCache: true, Timeout: deadline})
		if err != nil {
			return nil, err
		}
		w.admins = append(w.admins, admin)
	}
	return w, w.member(ctx, "acme")
}

// client returns a client, which close closes.
func (w *world) client(caller, target string, config keyclient.Config) (*keyclient.Client, error) {
	if !w.plan.plain {
		certificate, secret := w.cluster.Certs().Pair(caller)
		config.TLS = &keyclient.TLS{CAFile: w.cluster.Certs().CA, CertFile: certificate, KeyFile: secret}
	}
	config.ValidationTimeout = deadline
	client, err := keyclient.New(target, config)
	if err == nil {
		w.closers = append(w.closers, client)
	}
	return client, err
}

func (w *world) close() {
	for _, client := range w.closers {
		_ = client.Close()
	}
}

// all returns the addresses of all replicas as one target.
func (w *world) all() string { return strings.Join(w.cluster.Addresses(), ",") }

// member makes the member ann of a workspace.
func (w *world) member(ctx context.Context, workspace string) error {
	_, err := w.admins[0].Members.PutMember(ctx, &keysvcv1.PutMemberRequest{
		WorkspaceId: workspace, MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	})
	return err
}

// create makes a key through a replica.
func (w *world) create(ctx context.Context, replica int, workspace, name string) (key, error) {
	made, err := w.admins[replica].Keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
		WorkspaceId: workspace, MemberId: "ann", Name: name, Scopes: []string{scope},
	})
	if err != nil {
		return key{}, fmt.Errorf("creating a key through replica %d: %w", replica, err)
	}
	return key{workspace, made.GetKey().GetKeyId(), made.GetToken()}, nil
}

// revokeKey revokes a key through a replica, and returns the revision of the change.
func (w *world) revokeKey(ctx context.Context, replica int, k key) (revision int64, epoch string, err error) {
	done, err := w.admins[replica].Keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: k.workspace, KeyId: k.id})
	if err != nil {
		return 0, "", fmt.Errorf("revoking a key through replica %d: %w", replica, err)
	}
	return done.GetRevision(), done.GetEpoch(), nil
}

// rename renames a key through a replica.
func (w *world) rename(ctx context.Context, replica int, k key, name string) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	_, err := w.admins[replica].Keys.UpdateKey(ctx, &keysvcv1.UpdateKeyRequest{
		Key:        &keysvcv1.Key{WorkspaceId: k.workspace, KeyId: k.id, Name: name},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
	})
	return err
}

// allowed asks about a key.
func allowed(ctx context.Context, client *keyclient.Client, k key) (bool, error) {
	answer, err := client.Validate(ctx, keyauth.Question{Token: k.token, Requirement: keyauth.Scope(scope)})
	return err == nil && answer.Decision == keysvcv1.Decision_DECISION_ALLOWED, err
}

// promise notes a promise that was broken, unless it was kept.
func (w *world) promise(kept bool, format string, arguments ...any) bool {
	if kept {
		return true
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.broken = append(w.broken, fmt.Sprintf(format, arguments...))
	return false
}

// inTime is promise for a bound of a time.
func (w *world) inTime(kept bool, format string, arguments ...any) bool {
	return w.promise(kept || w.plan.lenient, format, arguments...)
}

// kept reports whether no broken promise has some words in it.
func (w *world) kept(words string) bool {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return !slices.ContainsFunc(w.broken, func(each string) bool { return strings.Contains(each, words) })
}
