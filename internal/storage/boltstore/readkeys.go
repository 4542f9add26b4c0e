package boltstore

import (
	"encoding/hex"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// keyBatch is some of a file's keys, with what can be computed of each alone. Hashing
// takes about as long as filling the maps of the directory, so one goroutine hashes a
// batch while the other puts the batch before it into the maps.
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

// compute fills in what the names and values tell.
func (b *keyBatch) compute(hasher *integrity.Hasher) error {
	for index := range b.keys {
		key := &b.keys[index]
		var err error
		if key.slot, key.keyID, key.workspaceID, err = parseKeyName(key.name); err != nil {
			return &storage.DamagedError{Kind: "key", Name: hex.EncodeToString(key.name), Problem: err.Error()}
		}
		payload, err := storage.Unframe("key", frameName(bucketKeys, string(key.name)), key.value)
		if err != nil {
			continue // a damaged key is answered as such where it is read
		}
		if key.requestIDs, err = requestIDsOf(payload); err != nil {
			return &storage.DamagedError{Kind: "key", Name: key.keyID, Problem: err.Error()}
		}
		key.element = hasher.Element(integrity.KindKey, key.workspaceID, key.keyID, integrity.HashPayload(payload))
		key.readable = true
	}
	return nil
}

// keyHasher computes one batch at a time, aside.
type keyHasher struct {
	hasher  *integrity.Hasher
	running *keyBatch
}

// exchange begins with a batch and returns the one before it, computed; nil if there was
// none.
func (h *keyHasher) exchange(batch *keyBatch) (*keyBatch, error) {
	finished, err := h.wait()
	batch.done = make(chan error, 1)
	h.running = batch
	go func() {
		// A fault in mapped memory is caught by the goroutine that meets it.
		batch.done <- guard(func() error { return batch.compute(h.hasher) })
	}()
	return finished, err
}

// wait returns the batch under way once it is computed.
func (h *keyHasher) wait() (*keyBatch, error) {
	finished := h.running
	if finished == nil {
		return nil, nil //nolint:nilnil // documented by exchange
	}
	h.running = nil
	return finished, <-finished.done
}

// readKeys notes where each key lies, and adds up the keys of each workspace.
func (o *opened) readKeys(tx *bolt.Tx) error {
	aside := &keyHasher{hasher: integrity.NewHasher()}
	defer aside.wait() //nolint:errcheck // after an error or a panic: it must not outlive the transaction
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

// addKeys puts a batch into the directory.
func (o *opened) addKeys(batch *keyBatch) error {
	for index := range batch.keys {
		key := &batch.keys[index]
		if _, twice := o.directory.keys[key.keyID]; twice {
			return &storage.DamagedError{Kind: "key", Name: key.keyID, Problem: "stored twice"}
		}
		o.directory.addKey(key.workspaceID, key.keyID, key.slot, key.element.Short())
		if !key.readable {
			continue
		}
		entry := o.directory.keys[key.keyID].workspace
		entry.sum = entry.sum.Add(key.element)
		if len(key.requestIDs) > 0 {
			o.directory.setRequestIDs(key.keyID, key.requestIDs)
		}
	}
	return nil
}
