package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Error is a connection that failed. Its text is a sentence that says what that means, for a
// person, and has nothing secret in it.
type Error struct {
	sentence string
	cause    error
}

// Error returns the sentence.
func (e *Error) Error() string { return e.sentence }

// Unwrap returns what failed.
func (e *Error) Unwrap() error { return e.cause }

const (
	sentenceServerSpeaksTLS  = "the server speaks TLS, and this client does not; name the authorities of its certificate (KEYSVC_TLS_CA)"
	sentenceServerPlaintext  = "the server does not speak TLS, and this client does; it listens in plaintext, or is not keysvc"
	sentenceSpeaksHTTP1      = "the server answers in HTTP/1, and not in gRPC; it is not keysvc, or a proxy that needs TLS or another port"
	sentenceClosedPlaintext  = "the server closed the connection without a word; on a unix socket it may not know this user, on TCP it may speak TLS (KEYSVC_TLS_CA); or it has too many connections, or is not keysvc"
	sentenceClosedHandshake  = "the server closed the connection during the TLS handshake; it may speak plaintext, have too many connections, or not be keysvc"
	sentenceClosedAfter      = "the server closed the connection right after the TLS handshake; it may have refused this client's certificate, or have too many connections"
	sentenceNotLoopback      = "the address is not on this machine, and plaintext does not leave it; use TLS (KEYSVC_TLS_CA)"
	sentenceNoHTTP2          = "the server speaks TLS, but not HTTP/2; it is not keysvc, or a proxy that is not set up for gRPC"
	sentenceRefused          = "connection refused: nothing listens there"
	sentenceNoSocket         = "no such file or directory: keysvc is not running, or listens elsewhere"
	sentenceSocketPermission = "permission denied: this user may not use the socket; keysvc opens it to a group with --socket-group and --socket-mode, if the group may enter the socket's folder"
	sentenceTimeout          = "there was no answer in time; the address may be wrong, or a firewall drops the packets"
	sentenceOldTLS           = "the server does not speak TLS 1.3, and nothing older is used"
)

var (
	errServerSpeaksTLS = errors.New("transport: the answer to plaintext is an alert of TLS")
	errSpeaksHTTP1     = errors.New("transport: the answer is HTTP/1")
	errNoHTTP2         = errors.New("transport: the server did not choose h2")
)

// ErrNotLoopback is why plaintext is not sent to an address of another machine.
var ErrNotLoopback = errors.New("transport: plaintext would leave the machine")

// idError is a server's certificate without the expected SPIFFE id.
type idError struct {
	want        string
	certificate *x509.Certificate
}

// Error says which ids the certificate has.
func (e *idError) Error() string {
	if len(e.certificate.URIs) == 0 {
		return fmt.Sprintf("the server's certificate has no SPIFFE id; %s is expected", e.want)
	}
	ids := make([]string, len(e.certificate.URIs))
	for index, id := range e.certificate.URIs {
		ids[index] = shorten(id.String())
	}
	if len(ids) == 1 && e.certificate.IsCA {
		return "the server's certificate is that of an authority; a server may not use it"
	}
	return fmt.Sprintf("the server is %s, and not %s", strings.Join(ids, " and "), e.want)
}

// explained returns an error as a *Error. used is what the handshake used, nil without one.
func explained(err error, used *handshakeUse) error {
	if known, is := errors.AsType[*Error](err); is {
		return known
	}
	return &Error{sentence: sentence(err, used), cause: err}
}

// explainedAfter is explained for what comes after a handshake in which this client had no
// objection.
func explainedAfter(err error, used *handshakeUse) error {
	if _, is := alertOf(err); !is {
		return &Error{sentence: sentenceClosedAfter, cause: err}
	}
	return explained(err, used)
}

func sentence(err error, used *handshakeUse) string {
	var (
		file  *fileError
		own   *ownerError
		id    *idError
		plain tls.RecordHeaderError
	)
	if alert, is := alertOf(err); is {
		return sentenceOfAlert(alert, used)
	}
	if text := sentenceOfCertificate(err); text != "" {
		return text
	}
	switch {
	case errors.As(err, &file):
		return file.Error()
	case errors.As(err, &own):
		return own.Error()
	case errors.As(err, &id):
		return id.Error()
	case errors.As(err, &plain):
		return sentenceServerPlaintext
	case errors.Is(err, ErrNotLoopback):
		return sentenceNotLoopback
	case errors.Is(err, errNoHTTP2):
		return sentenceNoHTTP2
	case strings.Contains(err.Error(), "unsupported protocol version"):
		return sentenceOldTLS
	}
	return sentenceOfSystem(err, used != nil)
}

// sentenceOfSystem explains what the operating system says; handshake reports whether a
// handshake had begun.
func sentenceOfSystem(err error, handshake bool) string {
	var (
		name   *net.DNSError
		number syscall.Errno
		dial   *net.OpError
	)
	unix := errors.As(err, &dial) && dial.Net == "unix"
	switch {
	case errors.As(err, &name):
		return fmt.Sprintf("the name %s cannot be looked up: %s", shorten(name.Name), name.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return sentenceRefused
	case unix && errors.Is(err, syscall.ENOENT):
		return sentenceNoSocket
	case unix && errors.Is(err, syscall.EACCES):
		return sentenceSocketPermission
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded):
		return sentenceTimeout
	case handshake && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)):
		return sentenceClosedHandshake
	case errors.As(err, &number):
		return number.Error()
	}
	return err.Error()
}

// sentenceOfCertificate explains why this client refused the server's certificate; "" if that is
// not what happened.
func sentenceOfCertificate(err error) string {
	var (
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		name    x509.HostnameError
		system  x509.SystemRootsError
	)
	switch {
	case errors.As(err, &unknown):
		return "the server's certificate is of an unknown authority" + issuerOf(unknown.Cert) + "; name the file with its authority (KEYSVC_TLS_CA)"
	case errors.As(err, &name):
		return fmt.Sprintf("the server's certificate is for %s, and not for %s; if that is the server you want, give its name (KEYSVC_TLS_SERVER_NAME)", namesOf(name.Certificate), shorten(name.Host))
	case errors.As(err, &system):
		return "the authorities of this system cannot be read; name a file with authorities (KEYSVC_TLS_CA)"
	case !errors.As(err, &invalid):
		return ""
	}
	switch invalid.Reason { //nolint:exhaustive // the others have one sentence
	case x509.Expired:
		if certificate := invalid.Cert; certificate != nil {
			return fmt.Sprintf("the server's certificate is valid from %s to %s, and not now; it was not renewed, or a clock is wrong",
				certificate.NotBefore.UTC().Format(time.RFC3339), certificate.NotAfter.UTC().Format(time.RFC3339))
		}
		return "the server's certificate has expired"
	case x509.IncompatibleUsage:
		return "the server's certificate is not one for servers: it lacks the usage serverAuth"
	case x509.NotAuthorizedToSign, x509.CANotAuthorizedForThisName, x509.CANotAuthorizedForExtKeyUsage:
		return "the authority of the server's certificate may not issue it: " + strings.TrimPrefix(invalid.Error(), "x509: ")
	}
	return "the server's certificate is not valid: " + strings.TrimPrefix(invalid.Error(), "x509: ")
}

// alertOf returns the alert that the server has sent (RFC 8446 section 6.2), as crypto/tls names
// it, and reports whether there is one.
func alertOf(err error) (string, bool) {
	for {
		var remote *net.OpError
		if !errors.As(err, &remote) {
			return "", false
		}
		if remote.Op == "remote error" && remote.Err != nil {
			return strings.TrimPrefix(remote.Err.Error(), "tls: "), true
		}
		err = remote.Err
	}
}

func sentenceOfAlert(alert string, used *handshakeUse) string {
	var expired string
	if used != nil && used.own != nil && used.now().After(used.own.NotAfter) {
		expired = "this client's certificate has expired at " + used.own.NotAfter.UTC().Format(time.RFC3339) + ", and was not renewed; the server refuses it"
	}
	switch alert {
	case "certificate required", "bad certificate", "unsupported certificate", "expired certificate", "unknown certificate",
		"unknown certificate authority", "revoked certificate", "access denied", "handshake failure":
		if expired != "" {
			return expired
		}
	}
	withoutOwn := used == nil || used.own == nil
	switch alert {
	case "certificate required":
		return "the server asks for a client certificate, and there is none; name one (KEYSVC_TLS_CERT, KEYSVC_TLS_KEY), or let keysvc take tokens alone (keysvc serve --tls-bearers)"
	case "bad certificate", "unsupported certificate", "unknown certificate", "revoked certificate", "access denied":
		if withoutOwn {
			return "the server refused the connection (" + alert + "); it may want a client certificate (KEYSVC_TLS_CERT, KEYSVC_TLS_KEY)"
		}
		return "the server refuses this client's certificate (" + alert + "); its log says why"
	case "unknown certificate authority":
		return "the server does not trust the authority of this client's certificate" + issuerOf(used.certificate())
	case "expired certificate":
		return "the server finds this client's certificate expired; a clock may be wrong"
	case "protocol version not supported":
		return sentenceOldTLS
	case "no application protocol":
		return sentenceNoHTTP2
	case "unrecognized name":
		return "the server does not know the name that it was asked for; give the one in its certificate (KEYSVC_TLS_SERVER_NAME)"
	}
	return "the server ended the TLS handshake: " + alert
}

func (u *handshakeUse) certificate() *x509.Certificate {
	if u == nil {
		return nil
	}
	return u.own
}

// issuerOf returns who has issued a certificate, in brackets with a space before them; "" if that
// is not known.
func issuerOf(certificate *x509.Certificate) string {
	if certificate == nil {
		return ""
	}
	if issuer := certificate.Issuer.String(); issuer != "" {
		return " (" + shorten(issuer) + ")"
	}
	return ""
}

// namesOf lists whom a certificate is for.
func namesOf(certificate *x509.Certificate) string {
	var names []string
	if certificate != nil {
		for _, name := range certificate.DNSNames {
			names = append(names, shorten(name))
		}
		for _, address := range certificate.IPAddresses {
			names = append(names, address.String())
		}
		for _, id := range certificate.URIs {
			names = append(names, shorten(id.String()))
		}
	}
	const shown = 5
	switch {
	case len(names) == 0:
		return "no name"
	case len(names) > shown:
		return strings.Join(names[:shown], ", ") + " and more"
	}
	return strings.Join(names, ", ")
}

// shorten bounds what somebody else wrote.
func shorten(text string) string {
	const longest = 200
	if len(text) > longest {
		text = text[:longest] + "…"
	}
	return strings.Map(func(char rune) rune {
		if char < ' ' || char == 0x7f {
			return '?'
		}
		return char
	}, text)
}
