// Package refusals collects what was refused, and writes it to the store's stream of refusals. Its
// memory and the rate of its records are bounded, whatever callers do, and no call waits for it.
package refusals

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

const (
	// PerSecond is how many different refusals of one second become records of their own. The rest
	// is counted in one record of kind OTHERS.
	PerSecond = 10
	// repeatInterval is how long equal refusals are counted before they become another record.
	repeatInterval = time.Minute
	// maxKnown is how many different refusals of the last repeatInterval are known.
	maxKnown = int(PerSecond * repeatInterval / time.Second)
	// flushInterval is the pause between two writes.
	flushInterval = time.Second
	// writeTimeout is how long a write waits for the store.
	writeTimeout = 10 * time.Second
)

// Refusal is one refusal.
type Refusal struct {
	// Kind is what was refused.
	Kind storagev1.RefusalKind
	// Method is the RPC, as in "keysvc.v1.KeyService/RevokeKey"; empty for a connection.
	Method string
	// Caller, Credential and Actor are who called, with what, and on whose behalf.
	Caller, Credential, Actor string
	// Peer is the address of the peer without its port.
	Peer string
	// WorkspaceID, KeyID and MemberID name what the call was about. They must exist: other text of a
	// caller may be a token.
	WorkspaceID, KeyID, MemberID string
	// Code and Reason are those of the answer.
	Code, Reason string
}

// known is a refusal of the last repeatInterval.
type known struct {
	// record has what is not written yet: its count is 0 if all is.
	record *storagev1.RefusalRecord
	// written is when it was last written; the zero Time if it was not.
	written time.Time
	// begun is the number of the record among those of the Collector.
	begun int64
}

// Collector collects refusals. Its methods may be called from many goroutines.
type Collector struct {
	store storage.RefusalWriter
	now   func() time.Time
	log   *slog.Logger

	mu    sync.Mutex
	known map[Refusal]*known
	// begun is the number of records that were begun.
	begun int64
	// second is the second that admitted counts in.
	second   int64
	admitted int
	// failing reports whether the last write failed. Only Flush uses it.
	failing bool
}

// New returns a collector that writes to a store.
func New(store storage.RefusalWriter, now func() time.Time, log *slog.Logger) *Collector {
	return &Collector{store: store, now: now, log: log, known: make(map[Refusal]*known)}
}

// Add adds count equal refusals. requestID is the id under which the server logged the call, empty
// for none. Add does not wait for the store.
func (c *Collector) Add(refusal Refusal, requestID string, count int64) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.known[refusal]
	if found == nil {
		if !c.admit(now) {
			refusal, requestID = Refusal{Kind: storagev1.RefusalKind_REFUSAL_KIND_OTHERS}, ""
			found = c.known[refusal]
		}
		if found == nil {
			found = &known{}
			c.known[refusal] = found
		}
	}
	if found.record == nil {
		c.begin(found, refusal.record(requestID, now))
	}
	found.record.Count += count
	found.record.LastTime = timestamppb.New(now)
}

// begin gives a refusal a record.
func (c *Collector) begin(known *known, record *storagev1.RefusalRecord) {
	c.begun++
	known.record, known.begun = record, c.begun
}

// admit reports whether a refusal that is not known may become a record of its own.
func (c *Collector) admit(now time.Time) bool {
	if second := now.Unix(); second != c.second {
		c.second, c.admitted = second, 0
	}
	if c.admitted >= PerSecond || len(c.known) >= maxKnown {
		return false
	}
	c.admitted++
	return true
}

func (r Refusal) record(requestID string, now time.Time) *storagev1.RefusalRecord {
	return &storagev1.RefusalRecord{
		Time: timestamppb.New(now), Kind: r.Kind, Method: r.Method,
		Caller: r.Caller, CallerCredential: r.Credential, ActorMemberId: r.Actor, Peer: r.Peer, RequestId: requestID,
		WorkspaceId: r.WorkspaceID, KeyId: r.KeyID, MemberId: r.MemberID, Code: r.Code, Reason: r.Reason,
	}
}

// due takes what is to be written now, in the order in which it began: what was never written, and what was
// counted for repeatInterval; with all, everything.
func (c *Collector) due(now time.Time, all bool) []*storagev1.RefusalRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	due := make(map[int64]*storagev1.RefusalRecord)
	for refusal, each := range c.known {
		switch recent := now.Sub(each.written) < repeatInterval; {
		case each.record == nil && !recent:
			delete(c.known, refusal)
		case each.record != nil && (!recent || all):
			due[each.begun] = each.record
			each.record, each.written = nil, now
		}
	}
	var records []*storagev1.RefusalRecord
	for _, begun := range slices.Sorted(maps.Keys(due)) {
		records = append(records, due[begun])
	}
	return records
}

// Flush writes what is due; with all, everything that is known. What cannot be written is lost, and
// counted with the others of a later record.
func (c *Collector) Flush(ctx context.Context, all bool) error {
	records := c.due(c.now(), all)
	if len(records) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := c.store.PutRefusals(ctx, records)
	if err == nil {
		c.failing = false
		return nil
	}
	if !c.failing && !errors.Is(err, context.Canceled) {
		c.log.WarnContext(ctx, "refusals could not be recorded; they are counted, and this is not logged again until one can", "error", err)
		c.failing = true
	}
	lost := int64(0)
	for _, record := range records {
		lost += record.GetCount()
	}
	c.addOthers(lost, records[0].GetTime())
	return err
}

// addOthers counts refusals that have no record of their own. They are written with the next flush
// that has anything to write for the first time, or after repeatInterval.
func (c *Collector) addOthers(count int64, since *timestamppb.Timestamp) {
	refusal := Refusal{Kind: storagev1.RefusalKind_REFUSAL_KIND_OTHERS}
	c.mu.Lock()
	defer c.mu.Unlock()
	others := c.known[refusal]
	if others == nil {
		others = &known{written: c.now()} // a full disk is not tried every second
		c.known[refusal] = others
	}
	if others.record == nil {
		c.begin(others, &storagev1.RefusalRecord{Kind: refusal.Kind, Time: since})
	}
	others.record.Count += count
	others.record.LastTime = timestamppb.New(c.now())
}

// Run flushes about every second until the context ends. Call Flush afterwards for the rest.
func (c *Collector) Run(ctx context.Context) {
	ticker := time.NewTicker(flushInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			_ = c.Flush(ctx, false) // it logs its error
		case <-ctx.Done():
			return
		}
	}
}
