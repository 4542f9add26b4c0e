//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// way is how callers reach the server, and what it knows of the attacker.
type way string

const (
	// plain is plaintext on loopback, with --dev: the attacker is the same caller as the good one.
	plain way = "plain"
	// known is TLS with client certificates: the attacker is another caller, with all rights.
	known way = "known"
	// stranger is TLS with client certificates, and the attacker has none.
	stranger way = "stranger"
)

// doors are what a campaign needs for its way.
type doors struct {
	way way
	// folder has the certificates.
	folder string
	// flags are those of keysvc serve.
	flags []string
	// good are the good caller's credentials.
	good credentials.TransportCredentials
}

// openDoors makes certificates and a callers file, if the way needs them.
func openDoors(ctx context.Context, program, folder string, w way) (doors, error) {
	d := doors{way: w, folder: folder, good: insecure.NewCredentials()}
	switch w {
	case plain:
		return d, nil
	case known, stranger:
	default:
		return d, fmt.Errorf("no way %q; there are %s, %s and %s", w, plain, known, stranger)
	}
	command := exec.CommandContext(ctx, program, "certs", "dev", folder)
	if output, err := command.CombinedOutput(); err != nil {
		return d, fmt.Errorf("keysvc certs dev: %w\n%s", err, output)
	}
	// The validator is the attacker. It has the rights of the admin, who is the good caller.
	name := filepath.Join(folder, "callers.yaml")
	text, err := os.ReadFile(name)
	if err != nil {
		return d, err
	}
	_, all, found := strings.Cut(string(text), "name: admin")
	_, rights, _ := strings.Cut(all, "rights: ")
	rights, _, _ = strings.Cut(rights, "\n")
	changed := strings.Replace(string(text), "rights: [validate]", "rights: "+rights, 1)
	if !found || changed == string(text) {
		return d, errors.New("keysvc certs dev writes another callers file than this campaign knows")
	}
	if err := os.WriteFile(name, []byte(changed), 0o600); err != nil {
		return d, err
	}
	good, err := clientTLS(folder, "admin")
	if err != nil {
		return d, err
	}
	d.good = credentials.NewTLS(good)
	d.flags = []string{"--config", filepath.Join(folder, "keysvc.yaml")}
	return d, nil
}

// attackerTLS returns how an attacker reaches a server; nil for plaintext.
func attackerTLS(folder string, w way) (*tls.Config, error) {
	switch w {
	case known:
		return clientTLS(folder, "validator")
	case stranger:
		return clientTLS(folder, "")
	case plain:
	}
	return nil, nil
}

// clientTLS returns the configuration of a client with the certificate of that name, or without
// one.
func clientTLS(folder, name string) (*tls.Config, error) {
	authority, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "127.0.0.1", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}
	config.RootCAs.AppendCertsFromPEM(authority)
	if name != "" {
		certificate, err := tls.LoadX509KeyPair(filepath.Join(folder, name+".crt"), filepath.Join(folder, name+".key"))
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return config, nil
}
