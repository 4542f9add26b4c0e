//go:build linux

package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/scribe-mail/keysvc/bench/population"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/test/crash/overlay"
	"github.com/scribe-mail/keysvc/test/trio"
)

// replicas is how many keysvcs run of each program.
const replicas = 3

// perConnection is for how many callers there is a connection.
const perConnection = 64

// longest is the longest time that anything takes.
const longest = 5 * time.Minute

// world is three etcds, with three keysvcs as they are and three without the barrier, all over one store.
type world struct {
	plan    plan
	cluster *trio.Trio
	// with and without are the servers.
	with, without []*server
	// folder has the program without the barrier.
	folder string
	// empty is how large the database was before the keys, in bytes.
	empty int64
}

// server is a keysvc that is asked.
type server struct {
	replica     *trio.Replica
	connections []*grpc.ClientConn
}

// connection returns that of a caller.
func (s *server) connection(caller int) *grpc.ClientConn { return s.connections[caller/perConnection] }

func newWorld(ctx context.Context, p plan) (_ *world, err error) {
	w := &world{plan: p}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.folder, err = os.MkdirTemp("", "figures-"); err != nil {
		return nil, err
	}
	other, err := w.buildWithoutBarrier(ctx)
	if err != nil {
		return nil, err
	}
	if w.cluster, err = trio.Start(ctx, trio.Config{Direct: true, Fsync: true, Replicas: 1}); err != nil {
		return nil, err
	}
	if err := w.fill(ctx); err != nil {
		return nil, err
	}
	for len(w.cluster.Replicas) < 2*replicas {
		replica, err := w.cluster.AddReplica(ctx)
		if err != nil {
			return nil, err
		}
		if len(w.cluster.Replicas) > replicas {
			replica.Program = other
			if err := replica.Restart(ctx); err != nil {
				return nil, err
			}
		}
	}
	for index, replica := range w.cluster.Replicas {
		made := &server{replica: replica}
		for range (slices.Max(p.callers) + perConnection - 1) / perConnection {
			connection, err := grpc.NewClient(replica.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return nil, err
			}
			made.connections = append(made.connections, connection)
		}
		if index < replicas {
			w.with = append(w.with, made)
		} else {
			w.without = append(w.without, made)
		}
	}
	return w, nil
}

func (w *world) close() {
	for _, each := range append(w.with, w.without...) {
		for _, connection := range each.connections {
			_ = connection.Close()
		}
	}
	if w.cluster != nil {
		if err := w.cluster.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "ending etcd and keysvc:", err)
		}
	}
	_ = os.RemoveAll(w.folder)
}

// fill stores the keys, each with a change of its own, as the verbs do.
func (w *world) fill(ctx context.Context) error {
	var err error
	if w.empty, err = w.size(ctx); err != nil {
		return err
	}
	source, err := w.cluster.Source("fill")
	if err != nil {
		return err
	}
	clients, err := source.Clients()
	if err != nil {
		return err
	}
	store, err := etcdstore.New(ctx, etcdstore.Config{
		Members: clients, Create: etcdstore.CreateNever, Timeout: time.Minute, Attempt: time.Minute, // of 512 writers, some wait long
	})
	if err != nil {
		return err
	}
	return errors.Join(population.FillStore(store, w.plan.keys, 1, nil), store.Close())
}

//go:embed without-barrier.patch
var withoutBarrier string

// buildWithoutBarrier builds keysvc without the barrier, and returns the path of the program.
func (w *world) buildWithoutBarrier(ctx context.Context) (string, error) {
	root, err := root(ctx)
	if err != nil {
		return "", err
	}
	patched, err := overlay.Apply(root, withoutBarrier)
	if err != nil {
		return "", err
	}
	document := struct{ Replace map[string]string }{make(map[string]string)}
	for name, text := range patched {
		copied := filepath.Join(w.folder, filepath.Base(name))
		if err := os.WriteFile(copied, []byte(text), 0o600); err != nil {
			return "", err
		}
		document.Replace[filepath.Join(root, name)] = copied
	}
	encoded, err := json.Marshal(document)
	if err != nil {
		return "", err
	}
	list, program := filepath.Join(w.folder, "overlay.json"), filepath.Join(w.folder, "keysvc")
	if err := os.WriteFile(list, encoded, 0o600); err != nil {
		return "", err
	}
	command := exec.CommandContext(ctx, "go", "-C", root, "build", "-buildvcs=false", "-overlay="+list, "-o", program, "./cmd/keysvc")
	if output, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building keysvc without the barrier: %w\n%s", err, output)
	}
	return program, nil
}

// root returns the root of the repository.
func root(ctx context.Context) (string, error) {
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(filepath.Dir(strings.TrimSpace(string(module)))), nil
}

// raiseLimit lets a workspace have as many keys as any policy may allow.
func (w *world) raiseLimit(ctx context.Context) error {
	policies := keysvcv1.NewPolicyServiceClient(w.with[0].connection(0))
	active, err := policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		return err
	}
	wanted := active.GetPolicy()
	wanted.Limits.LiveKeysPerWorkspace = 1_000_000
	_, err = policies.ApplyPolicy(ctx, &keysvcv1.ApplyPolicyRequest{Policy: wanted, ReplacesDigest: active.GetDigest()})
	return err
}
