package budget

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// samples are requests with repeated fields of every kind.
var samples = []proto.Message{
	&keysvcv1.BatchValidateKeysRequest{Requests: []*keysvcv1.ValidateKeyRequest{{Token: "a"}, {}, {RequiredScope: "b"}}},
	&keysvcv1.CreateKeyRequest{Scopes: []string{"a", "b"}, Labels: map[string]string{"a": "b", "c": ""}, AllowedCidrs: []string{""}},
	&keysvcv1.ListKeysRequest{States: []keysvcv1.KeyState{1, 2, 300}},
	&keysvcv1.UpdateKeyRequest{
		Key:        &keysvcv1.Key{Scopes: []string{"a"}, Labels: map[string]string{"a": "b"}, Secrets: []*keysvcv1.KeySecret{{CreateTime: timestamppb.Now()}}},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name", "scopes"}},
	},
	&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: &keysvcv1.SyncPing{
		Uses: []*keysvcv1.KeyUse{{KeyId: "a", Time: timestamppb.Now()}, {}},
	}}},
	&keysvcv1.ApplyPolicyRequest{Policy: &keysvcv1.Policy{
		Resources: []*keysvcv1.PolicyResource{{Name: "a", Actions: []string{"read", "write"}}, {}},
		Roles:     []*keysvcv1.PolicyRole{{Name: "a", Scopes: []string{"a:read"}}},
	}},
}

// elementsOf returns how many elements the repeated fields of a decoded message have.
func elementsOf(message protoreflect.Message) (elements int) {
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			elements += value.Map().Len()
			if field.MapValue().Message() != nil {
				value.Map().Range(func(_ protoreflect.MapKey, value protoreflect.Value) bool {
					elements += elementsOf(value.Message())
					return true
				})
			}
		case field.IsList():
			elements += value.List().Len()
			if field.Message() != nil {
				for index := range value.List().Len() {
					elements += elementsOf(value.List().Get(index).Message())
				}
			}
		case field.Message() != nil:
			elements += elementsOf(value.Message())
		}
		return true
	})
	return elements
}

func TestElementsAreCountedAsTheyAreDecoded(t *testing.T) {
	for _, message := range samples {
		wire, err := proto.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		counted, err := new(counter).count(message.ProtoReflect().Descriptor(), wire)
		if want := elementsOf(message.ProtoReflect()); err != nil || counted != want || want < 2 {
			t.Errorf("%T: counted %d, %v; want %d", message, counted, err, want)
		}
	}
}

func TestTooManyElementsAreNamed(t *testing.T) {
	counts := &counter{limits: Limits{"keysvc.v1.BatchValidateKeysRequest.requests": 256}}
	batch := func(items int) proto.Message {
		message := &keysvcv1.BatchValidateKeysRequest{}
		for range items {
			message.Requests = append(message.Requests, &keysvcv1.ValidateKeyRequest{})
		}
		return message
	}
	roles := &keysvcv1.Policy{}
	for range 100 {
		roles.Roles = append(roles.Roles, &keysvcv1.PolicyRole{Scopes: make([]string, 50)})
	}
	for _, test := range []struct {
		message proto.Message
		field   string
	}{
		{batch(256), ""},
		{batch(257), "requests"},
		{&keysvcv1.CreateKeyRequest{Scopes: make([]string, DefaultElements)}, ""},
		{&keysvcv1.CreateKeyRequest{Scopes: make([]string, DefaultElements+1)}, "scopes"},
		{&keysvcv1.UpdateKeyRequest{Key: &keysvcv1.Key{AllowedCidrs: make([]string, DefaultElements+1)}}, "key.allowed_cidrs"},
		{&keysvcv1.UpdateKeyRequest{UpdateMask: &fieldmaskpb.FieldMask{Paths: make([]string, DefaultElements+1)}}, "update_mask"},
		{&keysvcv1.ListKeysRequest{States: make([]keysvcv1.KeyState, DefaultElements+1)}, "states"},
		{&keysvcv1.ApplyPolicyRequest{Policy: roles}, "policy.roles[81].scopes"},
	} {
		wire, err := proto.Marshal(test.message)
		if err != nil {
			t.Fatal(err)
		}
		_, err = counts.count(test.message.ProtoReflect().Descriptor(), wire)
		many, refused := errors.AsType[*tooManyError](err)
		if refused != (test.field != "") || refused && many.field != test.field {
			t.Errorf("%T: got %+v, want a refusal of %q", test.message, err, test.field)
		}
	}
}

// TestElementsInPiecesAreCountedTogether: a message may come in pieces, which are merged.
func TestElementsInPiecesAreCountedTogether(t *testing.T) {
	piece, err := proto.Marshal(&keysvcv1.UpdateKeyRequest{Key: &keysvcv1.Key{Scopes: make([]string, 1000)}})
	if err != nil {
		t.Fatal(err)
	}
	var wire []byte
	for range 5 {
		wire = append(wire, piece...)
	}
	_, err = new(counter).count((&keysvcv1.UpdateKeyRequest{}).ProtoReflect().Descriptor(), wire)
	if many, is := errors.AsType[*tooManyError](err); !is || many.field != "key.scopes" {
		t.Errorf("got %v", err)
	}
}

// FuzzElements checks that decoding never makes more elements than were counted.
func FuzzElements(f *testing.F) {
	for kind, message := range samples {
		wire, err := proto.Marshal(message)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(kind), wire)
		f.Add(uint8(kind), append(append([]byte{}, wire...), wire...))
	}
	// Packed and not packed, a group, an overlong length.
	f.Add(uint8(2), protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), 300))
	f.Add(uint8(2), []byte{3<<3 | 2, 4, 0x80, 0x80, 0x80, 0x01})
	f.Add(uint8(0), []byte{1<<3 | 3, 1<<3 | 4})
	f.Add(uint8(0), []byte{1<<3 | 2, 0x80, 0x00})
	f.Fuzz(func(t *testing.T, kind uint8, wire []byte) {
		message := samples[int(kind)%len(samples)].ProtoReflect().New()
		counted, err := new(counter).count(message.Descriptor(), wire)
		if err != nil {
			return
		}
		if err := proto.Unmarshal(wire, message.Interface()); err != nil {
			return
		}
		if made := elementsOf(message); made > counted {
			t.Errorf("%s: counted %d, decoding made %d", message.Descriptor().FullName(), counted, made)
		}
	})
}

func BenchmarkElements(b *testing.B) {
	batch := &keysvcv1.BatchValidateKeysRequest{}
	for index := range 256 {
		batch.Requests = append(batch.Requests, &keysvcv1.ValidateKeyRequest{Token: fmt.Sprintf("scribe_ksk1_%060d", index), RequiredScope: "emails:read"})
	}
	wire, err := proto.Marshal(batch)
	if err != nil {
		b.Fatal(err)
	}
	counts := &counter{}
	b.Run("count", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = counts.count(batch.ProtoReflect().Descriptor(), wire)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = proto.Unmarshal(wire, &keysvcv1.BatchValidateKeysRequest{})
		}
	})
}
