package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
)

// etcdBackend is a store in etcd with the connections that it uses.
type etcdBackend struct {
	*etcdstore.Store
	members []*clientv3.Client
}

// openEtcd opens the store in etcd. The data folder is made, because sockets are in it.
func openEtcd(ctx context.Context, settings config.Settings, log *slog.Logger) (_ storage.Store, err error) {
	if err := makeFolder(settings.Data); err != nil {
		return nil, fmt.Errorf("making the data folder: %w", err)
	}
	backend := &etcdBackend{}
	defer func() {
		if err != nil {
			backend.disconnect()
		}
	}()
	for _, endpoint := range settings.EtcdEndpoints {
		member, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint.String()}, Logger: zap.NewNop()})
		if err != nil {
			return nil, fmt.Errorf("etcd at %s: %w", endpoint, err)
		}
		backend.members = append(backend.members, member)
	}
	backend.Store, err = etcdstore.New(ctx, etcdstore.Config{Members: backend.members, Prefix: settings.EtcdPrefix, Log: log})
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return backend, nil
}

// Close implements io.Closer.
func (b *etcdBackend) Close() error { return errors.Join(b.Store.Close(), b.disconnect()) }

func (b *etcdBackend) disconnect() error {
	var failed []error
	for _, member := range b.members {
		failed = append(failed, member.Close())
	}
	return errors.Join(failed...)
}
