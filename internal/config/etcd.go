package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxEtcdMembers bounds EtcdEndpoints. A cluster of more than seven members is slower and no safer.
const maxEtcdMembers = 9

// maxEtcdPrefix is the max. length of EtcdPrefix, in bytes.
const maxEtcdPrefix = 128

// validateEtcd returns nil, or a *FieldError if the settings of etcd do not fit the others.
func (s Settings) validateEtcd() error {
	if s.Store != EtcdStore {
		return s.withoutEtcd()
	}
	switch {
	case len(s.EtcdEndpoints) == 0:
		return &FieldError{Field: "etcd-endpoints", Problem: "is missing; with store etcd it names each member of the cluster"}
	case s.Anchor != "":
		return &FieldError{Field: "anchor", Problem: "is for a store in a file; with store etcd the audit sink is the anchor"}
	case s.BackupDir != "":
		return &FieldError{Field: "backup-dir", Problem: "is for a store in a file; back up etcd itself, with etcdctl snapshot save"}
	case s.EtcdCert != "" && s.EtcdKey == "":
		return &FieldError{Field: "etcd-key", Problem: "is needed beside etcd-cert"}
	case s.EtcdKey != "" && s.EtcdCert == "":
		return &FieldError{Field: "etcd-cert", Problem: "is needed beside etcd-key"}
	case s.EtcdCert != "" && s.EtcdCA == "":
		return &FieldError{Field: "etcd-ca", Problem: "is needed beside etcd-cert; it verifies the certificates of etcd"}
	case s.EtcdUser != "" && s.EtcdPasswordFile == "":
		return &FieldError{Field: "etcd-password-file", Problem: "is needed beside etcd-user"}
	case s.EtcdPasswordFile != "" && s.EtcdUser == "":
		return &FieldError{Field: "etcd-user", Problem: "is needed beside etcd-password-file"}
	}
	for _, member := range s.EtcdEndpoints {
		if s.EtcdCA == "" && !member.Local() {
			return &FieldError{Field: "etcd-ca", Problem: fmt.Sprintf("is missing; without TLS, %s would show other machines what is stored", member)}
		}
	}
	return nil
}

// withoutEtcd refuses settings of etcd beside another store: somebody believes that they are used.
func (s Settings) withoutEtcd() error {
	given := []struct {
		name string
		set  bool
	}{
		{"etcd-endpoints", len(s.EtcdEndpoints) > 0},
		{"etcd-ca", s.EtcdCA != ""},
		{"etcd-cert", s.EtcdCert != ""},
		{"etcd-key", s.EtcdKey != ""},
		{"etcd-user", s.EtcdUser != ""},
		{"etcd-password-file", s.EtcdPasswordFile != ""},
	}
	for _, setting := range given {
		if setting.set {
			return &FieldError{Field: setting.name, Problem: "is for store etcd alone; the store is " + s.Store}
		}
	}
	return nil
}

// addresses is a list of addresses. A text may have several, with commas between them.
func addresses(field func(*Settings) *[]Address) kind {
	check := func(list []Address) error {
		if len(list) > maxEtcdMembers {
			return fmt.Errorf("has %d addresses, allowed are up to %d", len(list), maxEtcdMembers)
		}
		for i, address := range list {
			switch {
			case slices.Contains(list[:i], address):
				return fmt.Errorf("has %s twice", address)
			case address.Network == "tcp" && (strings.HasPrefix(address.Target, ":") || strings.HasSuffix(address.Target, ":0")):
				return fmt.Errorf("has %q, which needs a host and a port", address)
			}
		}
		return nil
	}
	k := repeated("addresses", field, ParseAddress, func(Address) error { return nil })
	k.set = func(settings *Settings, texts []string) error {
		var list []Address
		for _, text := range texts {
			for _, one := range splitList(text) {
				address, err := ParseAddress(one)
				if err != nil {
					return err
				}
				list = append(list, address)
			}
		}
		if err := check(list); err != nil {
			return err
		}
		*field(settings) = list
		return nil
	}
	k.check = func(settings *Settings) error { return check(*field(settings)) }
	return k
}

// checkPrefix accepts what can begin the names of a store in etcd. The slash at the end keeps
// /keysvc/ from having the names of /keysvc2/.
func checkPrefix(text string) error {
	switch {
	case len(text) < 2 || !strings.HasPrefix(text, "/") || !strings.HasSuffix(text, "/"):
		return errors.New("does not begin and end with /, as in /keysvc/")
	case len(text) > maxEtcdPrefix:
		return fmt.Errorf("has %d bytes, allowed are up to %d", len(text), maxEtcdPrefix)
	}
	for _, char := range []byte(text) {
		if char <= ' ' || char > '~' {
			return errors.New("has a character that is not printable ASCII")
		}
	}
	return nil
}
