package config

import "errors"

// TLS reports whether TCP listeners serve TLS: all but those of health alone.
func (s Settings) TLS() bool {
	return s.TLSServerCert != "" || s.TLSServerKey != "" || s.SPIFFESocket != ""
}

// validateTLS returns nil, or a *FieldError if settings for TLS do not fit each other.
func (s Settings) validateTLS() error {
	switch {
	case s.TLSServerCert != "" && s.TLSServerKey == "":
		return &FieldError{Field: "tls-server-key", Problem: "is needed beside tls-server-cert"}
	case s.TLSServerKey != "" && s.TLSServerCert == "":
		return &FieldError{Field: "tls-server-cert", Problem: "is needed beside tls-server-key"}
	case s.TLS() && s.Callers == "":
		return &FieldError{Field: "callers", Problem: "is needed with TLS; without a callers file nobody could call"}
	case s.TLSBearers && !s.TLS():
		return &FieldError{Field: "tls-bearers", Problem: "needs TLS, which tls-server-cert and tls-server-key or spiffe-socket give"}
	}
	return nil
}

// checkSocket accepts "", for none.
func checkSocket(text string) error {
	if text == "" {
		return nil
	}
	if address, err := ParseAddress(text); err != nil || address.Network != "unix" {
		return errors.New("is not a unix socket, as in unix:///run/spire/agent.sock")
	}
	return nil
}
