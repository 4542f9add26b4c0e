package roster

import (
	"encoding/base64"
	"encoding/hex"
	"io"
	"strings"
	"time"
)

// Key is a key of an earlier system, one line of a file.
type Key struct {
	// Line is the number of the line, from 1.
	Line int
	// WorkspaceID and MemberID are the product's own ids.
	WorkspaceID, MemberID string
	// SHA256 is that of the whole token. It is a credential: keep it out of logs.
	SHA256 [32]byte
	// Name is what people call the key.
	Name string
	// Scopes are those that the key is granted, AllowedCIDRs the networks that it may be used from, and Labels
	// its annotations.
	Scopes, AllowedCIDRs []string
	Labels               map[string]string
	// ExpireTime is when the token stops working, and CreateTime when the key was created; nil if the line
	// does not say it.
	ExpireTime, CreateTime *time.Time
}

// keys is the format of ReadKeys.
var keys = format{
	names:    []string{"workspace", "member", "hash", "name", "scopes", "expire_time", "labels", "allowed_cidrs", "create_time"},
	required: 5,
	kinds:    map[string]kind{"scopes": kindList, "allowed_cidrs": kindList, "labels": kindLabels},
}

// ReadKeys reads a file of keys. The columns are workspace, member, hash, name, scopes, expire_time, labels,
// allowed_cidrs and create_time; the last four may be left out or empty. hash is SHA-256 of the whole token, in
// hex or base64. Times are in RFC 3339. Scopes and networks are separated by spaces, and labels are texts such
// as team=web; in JSON they may be lists and an object. Errors: LineErrors, or that of in.
func ReadKeys(in io.Reader) ([]Key, error) {
	r := &reader{format: keys}
	lines := make(map[[32]byte]int)
	var found []Key
	r.add = func(line int, fields map[string]cell) bool {
		key, goesOn := r.key(line, fields, lines)
		if key != nil {
			found = append(found, *key)
		}
		return goesOn
	}
	if err := r.read(in); err != nil {
		return nil, err
	}
	return found, nil
}

// key returns the key of a line, nil if the line has mistakes, and reports whether reading goes on. lines has
// the line of each hash.
func (r *reader) key(line int, fields map[string]cell, lines map[[32]byte]int) (found *Key, goesOn bool) {
	key := Key{
		Line: line, WorkspaceID: fields["workspace"].text, MemberID: fields["member"].text, Name: fields["name"].text,
		Scopes: fields["scopes"].words(), AllowedCIDRs: fields["allowed_cidrs"].words(),
	}
	goesOn = true
	wrong := func(format string, arguments ...any) { goesOn = goesOn && r.mistake(line, format, arguments...) }
	before := len(r.mistakes)
	if !validID.MatchString(key.WorkspaceID) {
		wrong("workspace must be 1 to 128 characters of [A-Za-z0-9._:@-]")
	}
	if !validID.MatchString(key.MemberID) {
		wrong("member must be 1 to 128 characters of [A-Za-z0-9._:@-]")
	}
	var isHash bool
	if key.SHA256, isHash = parseHash(fields["hash"].text); !isHash {
		wrong("hash must be the SHA-256 of a whole token, as 64 digits of hex or 44 characters of base64; never the token itself")
	}
	if key.Name == "" {
		wrong("name must have 1 character at least")
	}
	if len(key.Scopes) == 0 {
		wrong("scopes must have one scope at least, as in emails:read")
	}
	var isLabels bool
	if key.Labels, isLabels = fields["labels"].pairs(); !isLabels {
		wrong("labels must be texts as in team=web, with spaces between them and each name once")
	}
	for _, each := range []struct {
		name string
		time **time.Time
	}{{"expire_time", &key.ExpireTime}, {"create_time", &key.CreateTime}} {
		text := fields[each.name].text
		if text == "" {
			continue
		}
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			wrong("%s must be a time as in 2027-03-31T12:00:00Z", each.name)
			continue
		}
		*each.time = &at
	}
	if len(r.mistakes) > before {
		return nil, goesOn
	}
	if other, twice := lines[key.SHA256]; twice {
		return nil, r.mistake(line, "has the hash of line %d", other)
	}
	lines[key.SHA256] = line
	return &key, true
}

// parseHash returns a hash that is written in hex, or in base64 of either alphabet, with or without padding.
func parseHash(text string) (hash [32]byte, is bool) {
	var decoded []byte
	var err error
	if len(text) == hex.EncodedLen(len(hash)) {
		decoded, err = hex.DecodeString(text)
	} else {
		plain := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimSuffix(text, "="))
		if len(plain) != base64.RawStdEncoding.EncodedLen(len(hash)) {
			return hash, false
		}
		decoded, err = base64.RawStdEncoding.Strict().DecodeString(plain)
	}
	if err != nil || len(decoded) != len(hash) {
		return hash, false
	}
	hash = [32]byte(decoded)
	return hash, hash != [32]byte{}
}

// words returns a list, or the words of a text; nil for none.
func (c cell) words() []string {
	words := c.list
	if words == nil {
		words = strings.Fields(c.text)
	}
	if len(words) == 0 {
		return nil
	}
	return words
}

// pairs returns labels, and reports whether they are any; nil for none.
func (c cell) pairs() (found map[string]string, is bool) {
	if c.labels != nil {
		if len(c.labels) == 0 {
			return nil, true
		}
		return c.labels, true
	}
	for word := range strings.FieldsSeq(c.text) {
		name, value, is := strings.Cut(word, "=")
		if _, twice := found[name]; !is || name == "" || twice {
			return nil, false
		}
		if found == nil {
			found = make(map[string]string)
		}
		found[name] = value
	}
	return found, true
}
