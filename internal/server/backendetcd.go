package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
)

// etcdBackend is a store in etcd with the connections that it uses.
type etcdBackend struct {
	*etcdstore.Store
	cluster *etcdstore.Cluster
}

// openEtcd opens the store in etcd. The data folder is made, because sockets are in it.
func openEtcd(ctx context.Context, settings config.Settings, log *slog.Logger) (_ storage.Store, err error) {
	if err := makeFolder(settings.Data); err != nil {
		return nil, fmt.Errorf("making the data folder: %w", err)
	}
	cluster, err := connectEtcd(ctx, settings, log)
	if err != nil {
		return nil, err
	}
	cluster.Warn(ctx, log)
	create := etcdstore.CreateNever
	switch {
	case settings.Init:
		create = etcdstore.CreateNew
	case settings.Dev:
		create = etcdstore.CreateIfAbsent
	}
	store, err := etcdstore.New(ctx, etcdstore.Config{
		Members: cluster.Members(), Connect: cluster.Dial, Prefix: settings.EtcdPrefix, Create: create, Log: log,
	})
	switch {
	case err == nil:
		return &etcdBackend{store, cluster}, nil
	case errors.Is(err, storage.ErrAbsent):
		err = fmt.Errorf("etcd: %w; --etcd-prefix names where a store begins, and --init makes a new, empty one there", err)
	case errors.Is(err, storage.ErrPresent):
		err = fmt.Errorf("etcd: %w; start without --init", err)
	default:
		err = cluster.Explain(ctx, err)
	}
	return nil, joinErrors(err, cluster.Close())
}

// Close implements io.Closer.
func (b *etcdBackend) Close() error { return errors.Join(b.Store.Close(), b.cluster.Close()) }

// connectEtcd connects to the members that the settings name. The errors name the setting and the file, or the
// member.
func connectEtcd(ctx context.Context, settings config.Settings, log *slog.Logger) (*etcdstore.Cluster, error) {
	wanted := etcdstore.ClusterConfig{User: settings.EtcdUser}
	for _, member := range settings.EtcdEndpoints {
		wanted.Endpoints = append(wanted.Endpoints, member.String())
	}
	if settings.EtcdCA != "" {
		secure, err := newEtcdTLS(settings, log)
		if err != nil {
			return nil, fmt.Errorf("certificates for etcd: %w", err)
		}
		wanted.TLS = secure.config
	}
	if settings.EtcdPasswordFile != "" {
		password, err := readPassword(settings.EtcdPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("etcd-password-file: %w", err)
		}
		wanted.Password = password
	}
	return etcdstore.Connect(ctx, wanted)
}

// CheckEtcd examines the store in etcd that the settings name, and writes its findings to out. Servers may use
// it meanwhile. CheckEtcd returns an error if the store cannot be examined or is not sound.
func CheckEtcd(ctx context.Context, settings config.Settings, out io.Writer) (err error) {
	cluster, err := connectEtcd(ctx, settings, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	report, err := etcdstore.Check(ctx, etcdstore.Config{Members: cluster.Members(), Connect: cluster.Dial, Prefix: settings.EtcdPrefix})
	if err != nil {
		return cluster.Explain(ctx, err)
	}
	_, err = fmt.Fprintf(out, "epoch     %s\nrevision  %d\n", report.Epoch, report.Position.Revision)
	for _, problem := range report.Problems {
		_, more := fmt.Fprintln(out, "problem:", problem)
		err = errors.Join(err, more)
	}
	if err == nil && len(report.Problems) > 0 {
		return fmt.Errorf("the store under %s is not sound", settings.EtcdPrefix)
	}
	return err
}
