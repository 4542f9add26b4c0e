package boltstore

import (
	"encoding/hex"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// keyBatch is a batch of a file's keys, with what can be computed of each key alone.
// Hashing takes about as long as filling the maps of the index. So one goroutine hashes a
// batch while another one adds the previous batch to the maps.
type keyBatch struct {
	keys []keyRead
	done chan error
}

// keyRead is one key's record. Name and value are bbolt's memory.
type keyRead struct {
	name, value []byte
	slot        int64
	keyID       string
	workspaceID string
	readable    bool
	element     integrity.Element
	requestIDs  []string
}

const keyBatchSize = 2048

// compute fills in the fields of each key that follow from its name and value.
func (b *keyBatch) compute(hasher *integrity.Hasher) error {
	for index := range b.keys {
		key := &b.keys[index]
		var err error
		if key.slot, key.keyID, key.workspaceID, err = parseKeyName(key.name); err != nil {
			return &storage.DamagedError{Kind: "key", Name: hex.EncodeToString(key.name), Problem: err.Error()}
		}
		payload, err := storage.Unframe("key", frameName(bucketKeys, string(key.name)), key.value)
		if err != nil {
			continue // reads of this key return the damage
		}
		if key.requestIDs, err = requestIDsOf(payload); err != nil {
			return &storage.DamagedError{Kind: "key", Name: key.keyID, Problem: err.Error()}
		}
		key.element = hasher.Element(integrity.KindKey, key.workspaceID, key.keyID, integrity.HashPayload(payload))
		key.readable = true
	}
	return nil
}

// keyHasher computes batches in the background, one at a time.
type keyHasher struct {
	hasher  *integrity.Hasher
	running *keyBatch
}

// exchange starts to compute a batch, and returns the previous batch, which is computed by
// then; nil if this batch is the first.
func (h *keyHasher) exchange(batch *keyBatch) (*keyBatch, error) {
	finished, err := h.wait()
	batch.done = make(chan error, 1)
	h.running = batch
	go func() {
		// guard catches a fault in mapped memory only in its own goroutine.
		batch.done <- guard(func() error { return batch.compute(h.hasher) })
	}()
	return finished, err
}

// wait waits for the batch that is being computed and returns it; nil if no batch is.
func (h *keyHasher) wait() (*keyBatch, error) {
	finished := h.running
	if finished == nil {
		return nil, nil
	}
	h.running = nil
	return finished, <-finished.done
}

// readKeys adds the keys to the index, and to the sum of each workspace.
func (o *opened) readKeys(tx *bolt.Tx) error {
	aside := &keyHasher{hasher: integrity.NewHasher()}
	defer aside.wait() //nolint:errcheck // after an error or a panic: the batch must not outlive the transaction
	batch := &keyBatch{}
	next := func() error {
		finished, err := aside.exchange(batch)
		if err != nil || finished == nil {
			return err
		}
		return o.addKeys(finished)
	}
	cursor := tx.Bucket([]byte(bucketKeys)).Cursor()
	for name, value := cursor.First(); name != nil; name, value = cursor.Next() {
		if batch.keys = append(batch.keys, keyRead{name: name, value: value}); len(batch.keys) < keyBatchSize {
			continue
		}
		if err := next(); err != nil {
			return err
		}
		batch = &keyBatch{keys: make([]keyRead, 0, keyBatchSize)}
	}
	if err := next(); err != nil {
		return err
	}
	last, err := aside.wait()
	if err != nil {
		return err
	}
	return o.addKeys(last)
}

// addKeys adds a batch to the index.
func (o *opened) addKeys(batch *keyBatch) error {
	for index := range batch.keys {
		key := &batch.keys[index]
		if _, twice := o.index.keys[key.keyID]; twice {
			return &storage.DamagedError{Kind: "key", Name: key.keyID, Problem: "stored twice"}
		}
		o.index.addKey(key.workspaceID, key.keyID, key.slot, key.element.Short())
		if !key.readable {
			continue
		}
		entry := o.index.keys[key.keyID].workspace
		entry.sum = entry.sum.Add(key.element)
		if len(key.requestIDs) > 0 {
			o.index.setRequestIDs(key.keyID, key.requestIDs)
		}
	}
	return nil
}

// requestIDsOf reads the request ids of an encoded KeyRecord without decoding the rest.
// Decoding all records would double the time that opening a large store takes.
func requestIDsOf(payload []byte) ([]string, error) {
	const field = 14 // KeyRecord.request_ids
	var requestIDs []string
	for len(payload) > 0 {
		number, kind, length := protowire.ConsumeTag(payload)
		if length < 0 {
			return nil, protowire.ParseError(length)
		}
		payload = payload[length:]
		if number == field && kind == protowire.BytesType {
			value, length := protowire.ConsumeBytes(payload)
			if length < 0 {
				return nil, protowire.ParseError(length)
			}
			requestIDs = append(requestIDs, string(value))
			payload = payload[length:]
			continue
		}
		if length = protowire.ConsumeFieldValue(number, kind, payload); length < 0 {
			return nil, protowire.ParseError(length)
		}
		payload = payload[length:]
	}
	return requestIDs, nil
}
