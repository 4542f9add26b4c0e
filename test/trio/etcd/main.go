// Command etcd is one member of an etcd cluster, with etcd's own server inside. Package trio runs three
// of them; the tests of package etcd run one. It is a process of its own so that it can be killed, and so that the
// race detector does not watch etcd, which takes several times as long.
//
// Its work folder is its own: it listens on the sockets client and secure in it, and its data is in data. It prints the line "ready" once it serves, and stops
// when its standard input ends.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

// segmentBytes is how large a file of the log is. etcd's own 64 MB would make each copy of a data folder
// large.
const segmentBytes = 4 << 20

func main() {
	name := flag.String("name", "m0", "the member's name")
	cluster := flag.String("cluster", "", "the members of the cluster as name=URL, with commas between (default: this one alone)")
	quota := flag.Int64("quota", 0, "max size of the database in bytes; 0 is etcd's default")
	compactionMode := flag.String("compaction-mode", "periodic", "what the retention means: periodic or revision")
	compactionRetention := flag.String("compaction-retention", "0", "what compaction keeps: a duration or a number of revisions; 0 is no compaction")
	election := flag.Duration("election", 0, "how long the members wait for a leader that is silent; ten heartbeats; 0 is etcd's default")
	fsync := flag.Bool("fsync", false, "sync what is written; without it, only a power cut loses data")
	certificate := flag.String("cert", "", "the PEM file with the certificate for clients; TLS is then spoken on the socket secure")
	key := flag.String("key", "", "the PEM file with its key")
	authority := flag.String("ca", "", "the PEM file with the authorities of clients")
	collection := flag.Int("gogc", 100, "GOGC of this process, in percent")
	level := flag.String("log-level", "panic", "the lowest level to log")
	flag.Parse()
	debug.SetGCPercent(*collection)
	config := embed.NewConfig()
	config.Name = *name
	config.Dir = "data"
	config.Logger = "zap"
	config.LogLevel = *level
	config.LogOutputs = []string{"stderr"}
	config.WatchProgressNotifyInterval = time.Second
	config.QuotaBackendBytes = *quota
	config.AutoCompactionMode, config.AutoCompactionRetention = *compactionMode, *compactionRetention
	config.UnsafeNoFsync = !*fsync
	if *election > 0 {
		config.ElectionMs = uint(election.Milliseconds())
		config.TickMs = config.ElectionMs / 10
	}
	if *certificate != "" {
		config.ClientTLSInfo.CertFile, config.ClientTLSInfo.KeyFile = *certificate, *key
		config.ClientTLSInfo.TrustedCAFile, config.ClientTLSInfo.ClientCertAuth = *authority, true
		// The gateway would connect to its own listener as a client.
		config.EnableGRPCGateway = false
	}
	if err := run(config, *cluster); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(config *embed.Config, cluster string) error {
	wal.SegmentSizeBytes = segmentBytes
	clients := []url.URL{{Scheme: "unix", Path: "client"}}
	if !config.ClientTLSInfo.Empty() {
		clients = append(clients, url.URL{Scheme: "unixs", Path: "secure"})
	}
	// etcd takes the host of such a URL for a path in the work folder.
	peers := url.URL{Scheme: "unix", Host: config.Name + ":1"}
	config.ListenClientUrls, config.AdvertiseClientUrls = clients, clients
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	config.InitialCluster = cluster
	if cluster == "" {
		config.InitialCluster = config.InitialClusterFromName(config.Name)
	}
	server, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer server.Close()
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		return err
	case <-server.Server.StopNotify():
		return errors.New("etcd stopped")
	case <-ended:
		return nil
	}
	fmt.Println("ready")
	select {
	case err := <-server.Err():
		return err
	case <-ended:
		return nil
	}
}
