package storage

import (
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
)

// KeyView is what tables in memory need of a key's record. Parse fills it from the stored bytes
// without allocating: at a million keys, decoding is most of a load. The texts of a view lie in the
// bytes that were parsed, and are valid as long as these bytes.
//
// Times are Unix nanoseconds.
type KeyView struct {
	// KeyID, WorkspaceID, MemberID and the incarnations are those of the record.
	KeyID, WorkspaceID, MemberID            []byte
	WorkspaceIncarnation, MemberIncarnation []byte
	// Sequence and ChangeSequence are those of the record.
	Sequence, ChangeSequence int64
	// Scopes, AllowedCIDRs and RequestIDs are those of the record, in its order.
	Scopes, AllowedCIDRs, RequestIDs [][]byte
	// CreateTime is when the key was created.
	CreateTime int64
	// RevokeTime is when the key was revoked, if Revoked is set.
	RevokeTime int64
	Revoked    bool
	// ImportHash is the hash of the record's import, if Imported is set.
	ImportHash []byte
	Imported   bool
	// Held reports whether the key is held.
	Held bool
	// MinSchema is that of the record. Parse accepts none beyond Newest.
	MinSchema uint32
	// Secrets are those of the record, in its order, however many there are.
	Secrets []SecretView

	// LastUsed is when the key was last used; 0 if it never was, or if a Usage item says it. It is
	// not a part of the record: Parse and Set make it 0, and a source may set it afterwards.
	LastUsed int64
	// SecretUses are the last uses of the secrets, as Usage.Secrets has them, under the same rules.
	SecretUses [2]SecretUseView
}

// SecretUseView is a SecretUse. Its time is 0 if the secret was never used.
type SecretUseView struct {
	Tag  uint32
	Time int64
}

// SecretView is what tables in memory need of a SecretRecord.
type SecretView struct {
	// Scheme and Hash are those of the record.
	Scheme uint32
	Hash   []byte
	// CreateTime is that of the record. ExpireTime and OverlapEndTime are, if HasExpireTime and
	// HasOverlapEndTime are set.
	CreateTime                       int64
	ExpireTime, OverlapEndTime       int64
	HasExpireTime, HasOverlapEndTime bool
}

// Parse fills the view from the stored bytes of a record, which the caller has checked as Unframe
// does. It accepts what proto.Unmarshal accepts, and fills in the same: everything that is unusual
// is left to proto.Unmarshal. The error is that of proto.Unmarshal, or ErrNewer if the record needs a schema
// beyond Newest.
func (v *KeyView) Parse(payload []byte) error {
	if !v.parse(payload) {
		record := &storagev1.KeyRecord{}
		if err := proto.Unmarshal(payload, record); err != nil {
			return err
		}
		v.Set(record)
	}
	if problem := requires(uint64(v.MinSchema)); problem != "" {
		return fmt.Errorf("%w: the key %s", ErrNewer, problem)
	}
	return nil
}

// Set fills the view from a record.
func (v *KeyView) Set(record *storagev1.KeyRecord) {
	v.reset()
	v.KeyID, v.WorkspaceID, v.MemberID = []byte(record.GetKeyId()), []byte(record.GetWorkspaceId()), []byte(record.GetMemberId())
	v.WorkspaceIncarnation, v.MemberIncarnation = []byte(record.GetWorkspaceIncarnation()), []byte(record.GetMemberIncarnation())
	v.Sequence, v.ChangeSequence = record.GetSequence(), record.GetChangeSequence()
	v.Scopes = appendTexts(v.Scopes, record.GetScopes())
	v.AllowedCIDRs = appendTexts(v.AllowedCIDRs, record.GetAllowedCidrs())
	v.RequestIDs = appendTexts(v.RequestIDs, record.GetRequestIds())
	v.CreateTime = nanoseconds(record.GetCreateTime())
	if v.Revoked = record.GetRevokeTime() != nil; v.Revoked {
		v.RevokeTime = nanoseconds(record.GetRevokeTime())
	}
	if v.Imported = record.GetImported() != nil; v.Imported {
		v.ImportHash = record.GetImported().GetHash()
	}
	v.Held = record.GetHoldTime() != nil
	v.MinSchema = record.GetMinSchema()
	for _, secret := range record.GetSecrets() {
		view := SecretView{
			Scheme: secret.GetScheme(), Hash: secret.GetHash(), CreateTime: nanoseconds(secret.GetCreateTime()),
			HasExpireTime: secret.GetExpireTime() != nil, HasOverlapEndTime: secret.GetOverlapEndTime() != nil,
		}
		if view.HasExpireTime {
			view.ExpireTime = nanoseconds(secret.GetExpireTime())
		}
		if view.HasOverlapEndTime {
			view.OverlapEndTime = nanoseconds(secret.GetOverlapEndTime())
		}
		v.Secrets = append(v.Secrets, view)
	}
}

// reset makes the view that of an empty record, and keeps its memory.
func (v *KeyView) reset() {
	*v = KeyView{Scopes: v.Scopes[:0], AllowedCIDRs: v.AllowedCIDRs[:0], RequestIDs: v.RequestIDs[:0], Secrets: v.Secrets[:0]}
}

func appendTexts(views [][]byte, texts []string) [][]byte {
	for _, text := range texts {
		views = append(views, []byte(text))
	}
	return views
}

func nanoseconds(stamp *timestamppb.Timestamp) int64 { return stamp.AsTime().UnixNano() }

// parse is Parse for records as Encode writes them: only known fields, each of its type, and none
// of the single ones twice. It reports whether the record is one.
func (v *KeyView) parse(payload []byte) bool {
	v.reset()
	fields := fields{rest: payload}
	for fields.next() {
		var ok bool
		switch fields.number {
		case 1:
			v.KeyID, ok = fields.singleText()
		case 2:
			v.WorkspaceID, ok = fields.singleText()
		case 3:
			v.MemberID, ok = fields.singleText()
		case 4:
			v.WorkspaceIncarnation, ok = fields.singleText()
		case 5:
			v.MemberIncarnation, ok = fields.singleText()
		case 6:
			v.Sequence, ok = fields.singleInt64()
		case 7: // name
			_, ok = fields.singleText()
		case 8:
			v.Scopes, ok = fields.appendText(v.Scopes)
		case 9, 16, 17: // an entry of labels; created_by; revoked_by
			ok = (fields.number == 9 || fields.isSingle()) && fields.isBytes() && areTwoTexts(fields.bytes)
		case 10:
			v.AllowedCIDRs, ok = fields.appendText(v.AllowedCIDRs)
		case 11:
			v.CreateTime, ok = fields.singleTime()
		case 12:
			v.Revoked = true
			v.RevokeTime, ok = fields.singleTime()
		case 13:
			var secret SecretView
			ok = fields.isBytes() && secret.parse(fields.bytes)
			v.Secrets = append(v.Secrets, secret)
		case 14:
			v.RequestIDs, ok = fields.appendText(v.RequestIDs)
		case 15:
			v.ChangeSequence, ok = fields.singleInt64()
		case 18: // reported
			_, ok = fields.singleInt64()
		case 19: // hold_time
			v.Held = true
			_, ok = fields.singleTime()
		case 20:
			v.Imported = true
			ok = fields.isSingle() && fields.isBytes() && v.parseImport(fields.bytes)
		case 21:
			var schema int64
			schema, ok = fields.singleInt64()
			v.MinSchema = uint32(schema) //nolint:gosec // G115: as proto.Unmarshal does
		}
		if !ok {
			return false
		}
	}
	return !fields.malformed
}

// parseImport sets ImportHash from the encoded import of a record.
func (v *KeyView) parseImport(encoded []byte) bool {
	fields := fields{rest: encoded}
	for fields.next() {
		var ok bool
		switch fields.number {
		case 1: // import_time
			_, ok = fields.singleTime()
		case 2:
			v.ImportHash, ok = fields.bytes, fields.isSingle() && fields.isBytes()
		}
		if !ok {
			return false
		}
	}
	return !fields.malformed
}

func (s *SecretView) parse(encoded []byte) bool {
	fields := fields{rest: encoded}
	for fields.next() {
		var ok bool
		switch fields.number {
		case 1:
			var scheme int64
			scheme, ok = fields.singleInt64()
			s.Scheme = uint32(scheme) //nolint:gosec // G115: as proto.Unmarshal does
		case 2:
			s.Hash, ok = fields.bytes, fields.isSingle() && fields.isBytes()
		case 3:
			s.CreateTime, ok = fields.singleTime()
		case 4:
			s.HasExpireTime = true
			s.ExpireTime, ok = fields.singleTime()
		case 5:
			s.HasOverlapEndTime = true
			s.OverlapEndTime, ok = fields.singleTime()
		case 6: // issued_locally
			_, ok = fields.singleInt64()
		}
		if !ok {
			return false
		}
	}
	return !fields.malformed
}

// areTwoTexts reports whether a message has no other fields than one text 1 and one text 2.
func areTwoTexts(encoded []byte) bool {
	fields := fields{rest: encoded}
	for fields.next() {
		if _, ok := fields.singleText(); !ok || fields.number > 2 {
			return false
		}
	}
	return !fields.malformed
}

// fields reads the fields of one message, one after the other.
type fields struct {
	rest []byte
	// number and kind are those of the present field. integer is its value if it is a varint, bytes
	// if it has a length.
	number  protowire.Number
	kind    protowire.Type
	integer uint64
	bytes   []byte
	// seen has a bit for each number of which a single field has come.
	seen      uint32
	malformed bool
}

// oneByte is the least number whose varint has more than one byte.
const oneByte = 1 << 7

// next goes to the next field, and reports whether there is one. All kinds but varints and those
// with a length are malformed.
func (f *fields) next() bool {
	if len(f.rest) == 0 || f.malformed {
		return false
	}
	// Most tags and lengths are one byte, and protowire's functions are not inlined.
	if tag := f.rest[0]; tag >= 1<<3 && tag < oneByte {
		f.number, f.kind, f.rest = protowire.Number(tag>>3), protowire.Type(tag&7), f.rest[1:]
	} else {
		number, kind, length := protowire.ConsumeTag(f.rest)
		if length < 0 {
			f.malformed = true
			return false
		}
		f.number, f.kind, f.rest = number, kind, f.rest[length:]
	}
	length := -1
	switch f.kind {
	case protowire.VarintType:
		f.integer, length = protowire.ConsumeVarint(f.rest)
	case protowire.BytesType:
		if len(f.rest) > 0 && f.rest[0] < oneByte && int(f.rest[0]) < len(f.rest) {
			length = 1 + int(f.rest[0])
			f.bytes = f.rest[1:length]
		} else {
			f.bytes, length = protowire.ConsumeBytes(f.rest)
		}
	}
	if length < 0 {
		f.malformed = true
		return false
	}
	f.rest = f.rest[length:]
	return true
}

// isSingle reports whether the present field is the first of its number.
func (f *fields) isSingle() bool {
	bit := uint32(1) << (f.number & 31)
	first := f.seen&bit == 0
	f.seen |= bit
	return first
}

func (f *fields) isBytes() bool { return f.kind == protowire.BytesType }

func (f *fields) singleText() ([]byte, bool) {
	return f.bytes, f.isSingle() && f.isBytes() && utf8.Valid(f.bytes)
}

func (f *fields) appendText(texts [][]byte) ([][]byte, bool) {
	return append(texts, f.bytes), f.isBytes() && utf8.Valid(f.bytes)
}

func (f *fields) singleInt64() (int64, bool) {
	return int64(f.integer), f.isSingle() && f.kind == protowire.VarintType //nolint:gosec // G115: as proto.Unmarshal does
}

func (f *fields) singleTime() (int64, bool) {
	if !f.isSingle() || !f.isBytes() {
		return 0, false
	}
	var stamp [2]int64
	inside := fields{rest: f.bytes}
	for inside.next() {
		value, ok := inside.singleInt64()
		if !ok || inside.number > 2 {
			return 0, false
		}
		stamp[inside.number-1] = value
	}
	if inside.malformed {
		return 0, false
	}
	// The same as Timestamp.AsTime and Time.UnixNano, where they are defined.
	return stamp[0]*1e9 + int64(int32(stamp[1])), true //nolint:gosec // G115: as proto.Unmarshal does
}
