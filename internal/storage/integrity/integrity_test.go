package integrity

import (
	"crypto/sha256"
	"encoding/hex"
	"math/big"
	"math/rand/v2"
	"testing"
)

// The vectors were computed with Python's hmac and hashlib from the package comment. Stored
// tags depend on them: they change only with KeyVersion and a new schema.
const (
	vectorSetKey  = "73d1bbd70826a15180c205ec418bb41a0390b4c554d3fdb6b11fca3893d3d77f"
	vectorHeadKey = "f281cb76d36a99c723bab6a65755edaeb6063ef0de992916897d6ba61eebdd0c"
	vectorKey     = "edd040b9c11b7eab37e2b9aca3b5e735cda1383f487217c472a23dbdb3fb2f10"
	vectorPolicy  = "234370067e1fae071dc80b3d327108c4244359f01114080b8578be996f28748a"
	vectorSum     = "1113b0c03f3b2cb255aac4e9d626eff9f1e4922f59861fcff81afc572323a39a"
	vectorTag     = "48b632fa5055c004ef84aba3d3a6aceb5dcf03b90784cd7e535f9c6fddef2202"
)

func TestElementsAndTagsMatchVectors(t *testing.T) {
	h := NewHasher()
	equal := func(what string, got []byte, want string) {
		t.Helper()
		if text := hex.EncodeToString(got); text != want {
			t.Errorf("%s: %s, want %s", what, text, want)
		}
	}
	equal("set key", keys().set, vectorSetKey)
	equal("head key", keys().head, vectorHeadKey)
	key := h.Element(KindKey, "acme", "0123456789abcdef", HashPayload([]byte("payload")))
	equal("element of a key", key[:], vectorKey)
	policy := h.Element(KindPolicy, "", "", HashPayload(nil))
	equal("element of a policy", policy[:], vectorPolicy)
	sum := Sum{}.Add(key).Add(policy)
	equal("count and sum", sum.appendTo(nil), "0000000000000002"+vectorSum)
	tag := h.Tag(Head{Epoch: "epoch", WorkspaceID: "acme", Sequence: 7, EventHash: sha256.Sum256([]byte("event"))}, sum)
	equal("tag", tag[:], vectorTag)
	if short := key.Short(); hex.EncodeToString(key[:8]) != big.NewInt(0).SetUint64(short).Text(16) {
		t.Errorf("the short element is %x, want the first 8 bytes of %x", short, key)
	}
}

// TestSumAddsModulo2To256 compares sums with those of package math/big.
func TestSumAddsModulo2To256(t *testing.T) {
	const seed = 1
	t.Logf("seed %d", seed)
	random := rand.NewChaCha8([32]byte{seed})
	modulus := new(big.Int).Lsh(big.NewInt(1), 256)
	var sum Sum
	want := new(big.Int)
	var all []Element
	compare := func() {
		t.Helper()
		if got := new(big.Int).SetBytes(sum.appendTo(nil)[8:]); got.Cmp(want) != 0 || sum.count != uint64(len(all)) {
			t.Fatalf("%d records add up to %x, want %d and %x", sum.count, got, len(all), want)
		}
	}
	for range 1000 {
		var element Element
		_, _ = random.Read(element[:])
		all = append(all, element)
		sum = sum.Add(element)
		want.Add(want, new(big.Int).SetBytes(element[:])).Mod(want, modulus)
		compare()
	}
	for len(all) > 0 {
		element := all[0]
		all = all[1:]
		sum = sum.Remove(element)
		want.Sub(want, new(big.Int).SetBytes(element[:])).Mod(want, modulus)
		compare()
	}
	if sum != (Sum{}) {
		t.Errorf("without records: %v", sum)
	}
}

// TestEveryInputChangesElementAndTag changes one input at a time.
func TestEveryInputChangesElementAndTag(t *testing.T) {
	h := NewHasher()
	payload := HashPayload([]byte("payload"))
	elements := map[Element]string{}
	for what, element := range map[string]Element{
		"as it is":      h.Element(KindKey, "acme", "key", payload),
		"kind":          h.Element(KindMember, "acme", "key", payload),
		"workspace":     h.Element(KindKey, "acm", "ekey", payload),
		"name":          h.Element(KindKey, "acme", "kez", payload),
		"payload":       h.Element(KindKey, "acme", "key", HashPayload(nil)),
		"no workspace":  h.Element(KindKey, "", "acmekey", payload),
		"nothing":       h.Element(KindKey, "", "", payload),
		"another empty": h.Element(KindPolicy, "", "", payload),
	} {
		if other, twice := elements[element]; twice {
			t.Errorf("%s and %s have one element", what, other)
		}
		elements[element] = what
	}
	sum := Sum{}.Add(h.Element(KindKey, "acme", "key", payload))
	head := Head{Epoch: "epoch", WorkspaceID: "acme", Sequence: 3}
	tags := map[[32]byte]bool{h.Tag(head, sum): true}
	for _, change := range []func(head *Head, sum *Sum){
		func(head *Head, _ *Sum) { head.Epoch = "epocha"; head.WorkspaceID = "cme" },
		func(head *Head, _ *Sum) { head.WorkspaceID = "" },
		func(head *Head, _ *Sum) { head.Sequence = 4 },
		func(head *Head, _ *Sum) { head.EventHash[31] = 1 },
		func(_ *Head, sum *Sum) { *sum = Sum{} },
		func(_ *Head, sum *Sum) { sum.count++ },
	} {
		otherHead, otherSum := head, sum
		change(&otherHead, &otherSum)
		tag := h.Tag(otherHead, otherSum)
		if tags[tag] {
			t.Errorf("%+v, %+v: a tag that another head has", otherHead, otherSum)
		}
		tags[tag] = true
	}
}

func BenchmarkElement(b *testing.B) {
	h := NewHasher()
	payload := HashPayload([]byte("payload"))
	b.ReportAllocs()
	for b.Loop() {
		h.Element(KindKey, "workspace-000001", "0123456789abcdef", payload)
	}
}

func BenchmarkTag(b *testing.B) {
	h := NewHasher()
	b.ReportAllocs()
	for b.Loop() {
		h.Tag(Head{Epoch: "0123456789abcdef01234567", WorkspaceID: "workspace-000001", Sequence: 7}, Sum{})
	}
}
