package transport

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// owner is whom a unix socket must belong to.
type owner struct {
	// anyOf are the user ids that are allowed.
	anyOf []uint32
}

// parseOwner reads a user's name or number; "" stands for this process's own user and the
// super-user.
func parseOwner(text string) (owner, error) {
	if text == "" {
		own := os.Geteuid()                                // -1 where there are no user ids
		return owner{anyOf: []uint32{0, uint32(own)}}, nil //nolint:gosec // G115: user ids have 32 bits
	}
	number := text
	if _, err := strconv.ParseUint(text, 10, 32); err != nil {
		found, err := user.Lookup(text)
		if err != nil {
			return owner{}, fmt.Errorf("the socket's owner: there is no user %q; allowed are a user's name and its number", text)
		}
		number = found.Uid
	}
	id, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return owner{}, fmt.Errorf("the socket's owner: %q is no user id", number)
	}
	return owner{anyOf: []uint32{uint32(id)}}, nil
}

func (o owner) allows(uid uint32) bool {
	return slices.Contains(o.anyOf, uid)
}

// check returns an error if the socket's file, or the process that listens on it, belongs to
// somebody else. An abstract socket has no file.
func (o owner) check(conn net.Conn, path string) error {
	if path != "" && path[0] != '@' && path[0] != 0 {
		uid, err := fileOwner(path)
		if err != nil {
			return err
		}
		if !o.allows(uid) {
			return &ownerError{what: "the socket", uid: uid, want: o}
		}
	}
	uid, known, err := peerOwner(conn)
	switch {
	case err != nil:
		return err
	case known && !o.allows(uid):
		return &ownerError{what: "the process behind the socket", uid: uid, want: o}
	}
	return nil
}

var errNoOwner = errors.New("the owner of a unix socket cannot be checked on this system; use TLS")

// ownerError is a socket of another user.
type ownerError struct {
	what string
	uid  uint32
	want owner
}

// Error says whose the socket is, and whose it should be.
func (e *ownerError) Error() string {
	var allowed []string
	for _, uid := range e.want.anyOf {
		allowed = append(allowed, userText(uid))
	}
	return fmt.Sprintf("%s belongs to %s, and not to %s; nothing was sent. If it should, name the owner (KEYSVC_SOCKET_OWNER)",
		e.what, userText(e.uid), strings.Join(slices.Compact(allowed), " or "))
}

func userText(uid uint32) string { return "uid " + strconv.FormatUint(uint64(uid), 10) }
