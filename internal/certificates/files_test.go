package certificates_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/certificates"
	"github.com/scribe-mail/keysvc/internal/certificates/certificatestest"
)

// folder is a folder with a server's certificate and key, a bundle and an authority for DNS.
type folder struct {
	*world
	path  string
	paths certificates.Paths
}

func newFolder(t *testing.T) *folder {
	t.Helper()
	f := &folder{world: newWorld(t), path: t.TempDir()}
	f.paths.Certificate, f.paths.Key = certificatestest.Write(t, f.path, "server", f.source.own)
	f.paths.Bundles = []certificates.Bundle{{TrustDomain: "prod.test", File: f.write(t, "prod.crt", f.prod.PEM())}}
	f.paths.DNS = f.write(t, "dns.crt", f.dns.PEM())
	return f
}

func (f *folder) write(t *testing.T, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(f.path, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (f *folder) open(t *testing.T) *certificates.Files {
	t.Helper()
	files, err := certificates.OpenFiles(f.paths, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func reload(t *testing.T, files *certificates.Files, want bool) {
	t.Helper()
	changed, err := files.Reload(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if changed != want {
		t.Errorf("the files changed: %v, want %v", changed, want)
	}
}

func (f *folder) trusts(t *testing.T, source certificates.Source, authority *certificatestest.Authority) bool {
	t.Helper()
	leaf := authority.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer"))
	_, err := certificates.Verifier{Source: source}.VerifyCertificate([]*x509.Certificate{leaf.Leaf})
	return err == nil
}

func TestFilesAreReadAgainIfTheirContentsChange(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	files := f.open(t)
	if !files.Own().Leaf.Equal(f.source.own.Leaf) || !f.trusts(t, files, f.prod) || f.trusts(t, files, f.stage) {
		t.Fatal("the files were not read as they are")
	}
	reload(t, files, false)

	// Same contents, another time.
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(f.paths.Certificate, later, later); err != nil {
		t.Fatal(err)
	}
	reload(t, files, false)

	next := f.dns.Issue(t, certificatestest.Loopback)
	certificatestest.Write(t, f.path, "server", next)
	reload(t, files, true)
	if !files.Own().Leaf.Equal(next.Leaf) {
		t.Error("the new certificate is not used")
	}

	// A new authority beside the old one, then without the old one.
	f.write(t, "prod.crt", slicesConcat(f.prod.PEM(), f.stage.PEM()))
	reload(t, files, true)
	if !f.trusts(t, files, f.prod) || !f.trusts(t, files, f.stage) {
		t.Error("one of two authorities is not trusted")
	}
	f.write(t, "prod.crt", f.stage.PEM())
	reload(t, files, true)
	if f.trusts(t, files, f.prod) {
		t.Error("an authority that was removed is trusted")
	}
}

func TestABadCertificateDoesNotKeepAnAuthorityTrusted(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	files := f.open(t)
	f.write(t, "server.crt", []byte("-----BEGIN CERT"))
	f.write(t, "prod.crt", f.stage.PEM())
	changed, err := files.Reload(context.Background())
	if !changed || err == nil || !strings.Contains(err.Error(), "server.crt") {
		t.Errorf("changed %v, error %v", changed, err)
	}
	if f.trusts(t, files, f.prod) || !f.trusts(t, files, f.stage) || !files.Own().Leaf.Equal(f.source.own.Leaf) {
		t.Error("the new bundle and the old certificate are not in use")
	}
}

func TestFilesThatAreNoLongerNamedAreNotTrusted(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	files := f.open(t)
	f.paths.Bundles = []certificates.Bundle{{TrustDomain: "stage.test", File: filepath.Join(f.path, "missing.crt")}}
	files.SetPaths(f.paths)
	changed, err := files.Reload(context.Background())
	if !changed || err == nil || !strings.Contains(err.Error(), "missing.crt") {
		t.Errorf("changed %v, error %v", changed, err)
	}
	if f.trusts(t, files, f.prod) {
		t.Error("a trust domain that is no longer named is trusted")
	}
	// The missing file is taken as soon as it is there.
	f.write(t, "missing.crt", f.stage.PEM())
	reload(t, files, true)
	if files.Trust().Domains["stage.test"] == nil {
		t.Error("the new trust domain is not trusted")
	}
}

func slicesConcat(texts ...[]byte) []byte { return bytes.Join(texts, nil) }

// Kubernetes and cert-manager swap one symbolic link, and the names in use are links through it.
func TestFilesBehindSwappedLinksAreReadAgain(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	volume := t.TempDir()
	fill := func(version string) {
		sub := filepath.Join(volume, version)
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		certificatestest.Write(t, sub, "tls", f.dns.Issue(t, certificatestest.Loopback))
		if err := os.Symlink(version, filepath.Join(volume, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(volume, "..data_tmp"), filepath.Join(volume, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	fill("..1")
	for _, name := range []string{"tls.crt", "tls.key"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	files, err := certificates.OpenFiles(certificates.Paths{Certificate: filepath.Join(volume, "tls.crt"), Key: filepath.Join(volume, "tls.key")}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	first := files.Own().Leaf
	fill("..2")
	reload(t, files, true)
	if files.Own().Leaf.Equal(first) {
		t.Error("the certificate behind the new link is not used")
	}
}

func TestBadFilesLeaveTheOldInUse(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, test := range map[string]struct {
		spoil func(*testing.T, *folder)
		want  string
	}{
		"a key that is not the certificate's": {func(t *testing.T, f *folder) {
			t.Helper()
			_, key := certificatestest.PEM(t, f.dns.Issue(t))
			f.write(t, "server.key", key)
		}, "does not match"},
		"half a certificate": {func(t *testing.T, f *folder) {
			t.Helper()
			chain, _ := certificatestest.PEM(t, f.source.own)
			f.write(t, "server.crt", chain[:len(chain)/2])
		}, "server.crt: the last block is not whole"},
		"half an intermediate": {func(t *testing.T, f *folder) {
			t.Helper()
			chain, key := certificatestest.PEM(t, f.dns.Intermediate(t, "intermediate").Issue(t, certificatestest.Loopback))
			f.write(t, "server.crt", chain[:len(chain)-40])
			f.write(t, "server.key", key)
		}, "server.crt: the last block is not whole"},
		"an empty key":    {func(t *testing.T, f *folder) { t.Helper(); f.write(t, "server.key", nil) }, "server.key"},
		"an empty bundle": {func(t *testing.T, f *folder) { t.Helper(); f.write(t, "prod.crt", nil) }, "prod.crt: has no certificate"},
		"half a bundle":   {func(t *testing.T, f *folder) { t.Helper(); f.write(t, "prod.crt", f.prod.PEM()[:300]) }, "prod.crt: the last block is not whole"},
		"a bundle with a hole": {func(t *testing.T, f *folder) {
			t.Helper()
			f.write(t, "prod.crt", slicesConcat(f.prod.PEM()[:300], []byte("\n"), f.stage.PEM()))
		}, "prod.crt: a block before certificate 1 is not whole"},
		"a missing bundle":    {func(t *testing.T, f *folder) { t.Helper(); _ = os.Remove(f.paths.Bundles[0].File) }, "prod.crt: no such file"},
		"a very large bundle": {func(t *testing.T, f *folder) { t.Helper(); f.write(t, "prod.crt", make([]byte, 1<<20+1)) }, "prod.crt: has more than 1048576 bytes"},
		"a leaf in a bundle": {func(t *testing.T, f *folder) {
			t.Helper()
			chain, _ := certificatestest.PEM(t, f.prod.Issue(t))
			f.write(t, "prod.crt", chain)
		}, "prod.crt: certificate 1 is not that of an authority"},
		"a key in a bundle": {func(t *testing.T, f *folder) {
			t.Helper()
			_, key := certificatestest.PEM(t, f.prod.Issue(t))
			f.write(t, "prod.crt", key)
		}, "prod.crt: has a block that is no certificate"},
		"a folder": {func(t *testing.T, f *folder) {
			t.Helper()
			_ = os.Remove(f.paths.DNS)
			_ = os.Mkdir(f.paths.DNS, 0o700)
		}, "dns.crt"},
		"an expired one": {func(t *testing.T, f *folder) {
			t.Helper()
			certificatestest.Write(t, f.path, "server", f.dns.Issue(t, certificatestest.Valid(now.Add(-2*time.Hour), now.Add(-time.Hour))))
		}, "has ended at"},
		"one of tomorrow": {func(t *testing.T, f *folder) {
			t.Helper()
			certificatestest.Write(t, f.path, "server", f.dns.Issue(t, certificatestest.Valid(now.Add(time.Hour), now.Add(2*time.Hour))))
		}, "is valid from"},
		"a client's": {func(t *testing.T, f *folder) {
			t.Helper()
			certificatestest.Write(t, f.path, "server", f.dns.Issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }))
		}, "lacks serverAuth"},
		"an authority's": {func(t *testing.T, f *folder) { t.Helper(); certificatestest.Write(t, f.path, "server", f.dns.Self()) }, "the server's own must come first"},
		"one of keysvc certs": {func(t *testing.T, f *folder) {
			t.Helper()
			certificatestest.Write(t, f.path, "server", f.dns.Issue(t, development))
		}, "was made by keysvc certs dev"},
		"a bundle of the same": {func(t *testing.T, f *folder) { t.Helper(); f.write(t, "prod.crt", developmentAuthority(t, f)) }, "prod.crt: certificate 1: the certificate was made by keysvc certs dev"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFolder(t)
			f.paths.RefuseDevelopment = true
			files := f.open(t)
			test.spoil(t, f)
			changed, err := files.Reload(context.Background())
			if err == nil || !strings.Contains(err.Error(), test.want) || changed {
				t.Errorf("changed %v, error %v, want an error with %q", changed, err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "PRIVATE KEY") {
				t.Errorf("the error shows contents: %v", err)
			}
			if !files.Own().Leaf.Equal(f.source.own.Leaf) || !f.trusts(t, files, f.prod) {
				t.Error("the old files are no longer in use")
			}
			if _, err := certificates.OpenFiles(f.paths, time.Now); err == nil {
				t.Error("a start accepts what a reload refuses")
			}
		})
	}
}

func development(c *x509.Certificate) {
	c.Subject.OrganizationalUnit = []string{certificates.DevelopmentUnit}
}

func developmentAuthority(t *testing.T, f *folder) []byte {
	t.Helper()
	chain, _ := certificatestest.PEM(t, f.prod.Issue(t, development, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	}))
	return chain
}
