package etcdstore

import (
	"bytes"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// encodeResponse returns a message as etcd encodes it.
func encodeResponse(tb testing.TB, response *etcdserverpb.RangeResponse) []byte {
	tb.Helper()
	encoded, err := proto.Marshal(&etcdserverpb.RangeStreamResponse{RangeResponse: response})
	if err != nil {
		tb.Fatal(err)
	}
	return encoded
}

func TestParseReadsWhatEtcdSends(t *testing.T) {
	message := encodeResponse(t, &etcdserverpb.RangeResponse{
		Kvs: []*mvccpb.KeyValue{
			{Key: []byte("/p/data/policy"), Value: []byte("one"), CreateRevision: 1, ModRevision: 2, Version: 3, Lease: 4},
			{Key: []byte("/p/data/time"), CreateRevision: 1 << 62, ModRevision: 1<<63 - 1},
		},
		Header: &etcdserverpb.ResponseHeader{ClusterId: 1, Revision: 7}, Count: 2,
	})
	received := chunk{bytes: message}
	if err := received.parse(len("/p/")); err != nil {
		t.Fatal(err)
	}
	if !received.last || received.count != 2 || len(received.pairs) != 2 {
		t.Fatalf("last %t, count %d, %d pairs", received.last, received.count, len(received.pairs))
	}
	first, second := received.pairs[0], received.pairs[1]
	if string(first.name) != "data/policy" || string(first.value) != "one" || first.created != 1 || first.modified != 2 {
		t.Errorf("the first pair is %+v", first)
	}
	if string(second.name) != "data/time" || len(second.value) != 0 || second.created != 1<<62 || second.modified != 1<<63-1 {
		t.Errorf("the second pair is %+v", second)
	}
	if err := received.parse(len("/p/data/time") + 1); err == nil {
		t.Error("a name that is shorter than the prefix is read")
	}
}

// FuzzParseChunk compares parse with proto.Unmarshal.
func FuzzParseChunk(f *testing.F) {
	f.Add(encodeResponse(f, &etcdserverpb.RangeResponse{Kvs: []*mvccpb.KeyValue{{Key: []byte("name"), Value: []byte("value"), ModRevision: 5}}}))
	f.Add(encodeResponse(f, &etcdserverpb.RangeResponse{Header: &etcdserverpb.ResponseHeader{Revision: 1}, Count: 3, More: true}))
	f.Add(append(encodeResponse(f, &etcdserverpb.RangeResponse{}), encodeResponse(f, &etcdserverpb.RangeResponse{Kvs: []*mvccpb.KeyValue{{}}})...))
	f.Add([]byte{0x08, 0x01})       // field 1 is a varint
	f.Add([]byte{0x0a, 0x02, 0x12}) // truncated
	f.Fuzz(func(t *testing.T, message []byte) {
		received := chunk{bytes: bytes.Clone(message)}
		parsed := received.parse(0)
		want := &etcdserverpb.RangeStreamResponse{}
		if err := proto.Unmarshal(message, want); err != nil {
			return // parse does not look into headers
		}
		if parsed != nil {
			t.Fatalf("parse: %v, and proto.Unmarshal reads it", parsed)
		}
		response := want.GetRangeResponse()
		if received.last != (response.GetHeader() != nil) || received.count != response.GetCount() || len(received.pairs) != len(response.GetKvs()) {
			t.Fatalf("last %t, count %d, %d pairs; want %v", received.last, received.count, len(received.pairs), response)
		}
		for index, pair := range received.pairs {
			found := response.GetKvs()[index]
			if !bytes.Equal(pair.name, found.GetKey()) || !bytes.Equal(pair.value, found.GetValue()) ||
				pair.created != found.GetCreateRevision() || pair.modified != found.GetModRevision() {
				t.Fatalf("pair %+v, want %v", pair, found)
			}
		}
	})
}

// FuzzSplitKeyName compares splitKeyName with parseKeyName.
func FuzzSplitKeyName(f *testing.F) {
	f.Add([]byte(keyName("w", 5, "0123456789abcdef")))
	f.Add([]byte(folderKeys + "w"))
	f.Add([]byte(folderKeys + "w\x00ffffffffffffffff0123456789abcdef"))
	f.Add([]byte(folderMembers + "w\x00m"))
	f.Fuzz(func(t *testing.T, name []byte) {
		workspaceID, sequence, keyID, ok := splitKeyName(name)
		wantWorkspace, wantSequence, wantKey, want := parseKeyName(string(name))
		if ok != want || ok && (string(workspaceID) != wantWorkspace || sequence != wantSequence || string(keyID) != wantKey) {
			t.Fatalf("%q: %q %d %q %t, want %q %d %q %t", name, workspaceID, sequence, keyID, ok, wantWorkspace, wantSequence, wantKey, want)
		}
	})
}
