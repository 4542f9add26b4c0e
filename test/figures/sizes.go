//go:build linux

package main

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/scribe-mail/keysvc/bench/population"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// size returns how large the database of a member is, compacted and defragmented, in bytes.
func (w *world) size(ctx context.Context) (int64, error) {
	if err := w.cluster.Compact(ctx, 0); err != nil {
		return 0, err
	}
	for _, member := range w.cluster.Members {
		if err := member.Defragment(ctx); err != nil {
			return 0, err
		}
	}
	status, err := w.cluster.Members[0].Status(ctx)
	if err != nil {
		return 0, err
	}
	return status.DbSizeInUse, nil
}

// sizes measures what keys and changes take in etcd.
func (w *world) sizes(ctx context.Context) error {
	if err := w.raiseLimit(ctx); err != nil {
		return err
	}
	filled, err := w.size(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("\n| in etcd, compacted and defragmented | bytes |\n|---|---|\n")
	fmt.Printf("| a key with its event, and its part of members, workspaces and heads | %d |\n", (filled-w.empty)/int64(w.plan.keys))
	count := w.plan.keys / 2
	for _, kind := range []struct {
		name string
		make func(context.Context, keysvcv1.KeyServiceClient, population.Key) error
	}{
		{"another name of a key", func(ctx context.Context, client keysvcv1.KeyServiceClient, key population.Key) error {
			_, err := client.UpdateKey(ctx, &keysvcv1.UpdateKeyRequest{
				Key:        &keysvcv1.Key{WorkspaceId: key.WorkspaceID, KeyId: key.Token.ID(), Name: fmt.Sprintf("Key %d was renamed", key.Number)},
				UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
			})
			return err
		}},
		{"a revoke", func(ctx context.Context, client keysvcv1.KeyServiceClient, key population.Key) error {
			_, err := client.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: key.WorkspaceID, KeyId: key.Token.ID()})
			return err
		}},
	} {
		if err := w.changeEach(ctx, count, kind.make); err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
		after, err := w.size(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("| %s adds for good | %d |\n", kind.name, (after-filled)/int64(count))
		filled = after
	}
	return nil
}

// changeEach changes a number of keys of the second half of the population, with one caller for some workspaces.
func (w *world) changeEach(ctx context.Context, count int, change func(context.Context, keysvcv1.KeyServiceClient, population.Key) error) error {
	const callers = 64
	_, err := measure(ctx, w.with[:1], callers, longest, func(ctx context.Context, caller, number int) (int, bool, error) {
		// Each caller has every 64th workspace.
		which := (number/population.KeysPerWorkspace*callers+caller)*population.KeysPerWorkspace + number%population.KeysPerWorkspace
		if which >= count {
			return 0, false, nil // the other callers go on
		}
		key, err := population.At(w.plan.keys/2 + which)
		if err == nil {
			err = change(ctx, keysvcv1.NewKeyServiceClient(w.with[0].connection(0)), key)
		}
		return 0, true, err
	})
	return err
}
