package certificates

import (
	"crypto/x509"
	"errors"
	"slices"
)

// developmentUnit marks the certificates of `keysvc certs dev`, as organizational unit.
const developmentUnit = "keysvc certs dev: for loopback only"

var errDevelopment = errors.New("the certificate was made by keysvc certs dev, and a listener can be reached from other machines")

// Development reports whether a certificate was made by `keysvc certs dev`. Such certificates are
// refused where other machines can connect.
func Development(certificate *x509.Certificate) bool {
	return slices.Contains(certificate.Subject.OrganizationalUnit, developmentUnit)
}
