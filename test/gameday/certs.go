//go:build linux

package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
)

// certificate returns the variables of a caller, by the files of the folder certs.
func (d *day) certificate(name string) []string {
	return []string{
		"KEYSVC_TLS_CA=" + d.path("certs/ca.crt"),
		"KEYSVC_TLS_CERT=" + d.path("certs/"+name+".crt"),
		"KEYSVC_TLS_KEY=" + d.path("certs/"+name+".key"),
	}
}

// put replaces a file of the folder certs as a whole.
func (d *day) put(name string, content []byte) error {
	if err := os.WriteFile(d.path("certs/next"), content, 0o600); err != nil {
		return err
	}
	return os.Rename(d.path("certs/next"), d.path("certs/"+name))
}

// replace replaces a certificate and its key by those of the new authority.
func (d *day) replace(name string) error {
	var errs []error
	for _, file := range []string{name + ".key", name + ".crt"} {
		content, err := os.ReadFile(d.path("new/" + file))
		if err == nil {
			err = d.put(file, content)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// served returns the serial number of the certificate that the server presents, if an authority of a file
// has issued it.
func (d *day) served(authorities string) (string, error) {
	content, err := os.ReadFile(d.path(authorities))
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(content)
	pair, err := tls.LoadX509KeyPair(d.path("certs/admin.crt"), d.path("certs/admin.key"))
	if err != nil {
		return "", err
	}
	connection, err := tls.Dial("tcp", d.server.address, &tls.Config{
		RootCAs: roots, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		return "", err
	}
	defer connection.Close()
	return fmt.Sprint(connection.ConnectionState().PeerCertificates[0].SerialNumber), nil
}

// admits reports whether the server knows the admin whose certificate is in a folder.
func (d *day) admits(folder string) bool {
	before := d.quiet
	d.quiet = true
	defer func() { d.quiet = before }()
	old := d.environment
	defer func() { d.environment = old }()
	d.environment = append(d.certificate("admin"), "KEYSVC_TLS_CERT="+d.path(folder+"/admin.crt"), "KEYSVC_TLS_KEY="+d.path(folder+"/admin.key"))
	a := d.keysvc("whoami")
	return a.status == 0 && strings.Contains(a.output, "admin")
}
