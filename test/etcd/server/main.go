// Command server is the etcd that the tests of this folder use. It is a process of its own so that
// the race detector does not watch etcd, which takes several times as long.
//
// It listens on the sockets FOLDER/client and FOLDER/peer, keeps its data in FOLDER/data, prints a
// line when it is ready, and stops when its standard input ends.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

func main() {
	quota := flag.Int64("quota", 0, "max size of the database in bytes; 0 is etcd's default")
	flag.Parse()
	if err := run(flag.Arg(0), *quota); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(folder string, quota int64) error {
	config := embed.NewConfig()
	config.Dir = filepath.Join(folder, "data")
	config.Logger = "zap"
	config.LogLevel = "panic"
	config.WatchProgressNotifyInterval = time.Second
	config.QuotaBackendBytes = quota
	// No test cuts the power.
	config.UnsafeNoFsync = true
	client := url.URL{Scheme: "unix", Path: filepath.Join(folder, "client")}
	peer := url.URL{Scheme: "unix", Path: filepath.Join(folder, "peer")}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	server, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer server.Close()
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		return err
	case <-time.After(30 * time.Second):
		return errors.New("etcd did not start")
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
