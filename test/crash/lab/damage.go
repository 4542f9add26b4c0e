package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/test/crash/disk"
)

// This file damages a quiet store, one thing at a time: everything was acknowledged and
// synced. After that nothing may be ALLOWED that should not be, and a damage that changes
// an answer must be detected.

// damage changes left, the folder of a quiet store after the first at operations of a life. It
// returns the changed folder, which may be another disk, and describes the damage; the text is
// empty if nothing was damaged.
type damage func(r *round, l *life, at int, left *disk.Disk) (*disk.Disk, string, error)

// damages returns the kind that applies a damage to many images.
func damages(do damage) func(*round) error {
	return func(r *round) error {
		l, err := r.first(8+r.random.IntN(30), 0, nil)
		if err != nil {
			return r.report(err, l, nil, "without a fault")
		}
		quiet := l.quiet()
		for range 30 {
			at := quiet[r.random.IntN(len(quiet))]
			left := l.walk().to(at).PowerCut(disk.Everything, false, r.random)
			damaged, what, err := do(r, l, at, left.Clone())
			if err != nil {
				return err
			}
			if what == "" || damaged.Equal(left) {
				continue
			}
			r.images++
			err = r.verifyDamaged(l, l.allowed(at)[0], damaged)
			if err := r.report(err, l, damaged, fmt.Sprintf("after operation %d of %d, %s", at, len(l.log), what)); err != nil {
				return err
			}
		}
		return nil
	}
}

// quiet returns the moments of a life at which no change was in progress and a policy was
// active.
func (l *life) quiet() []int {
	var moments []int
	for index, event := range l.events {
		end := len(l.log)
		if index+1 < len(l.events) {
			end = l.events[index+1].at
		}
		if len(event.allowed) == 1 && l.states[event.allowed[0]].model.policy {
			moments = append(moments, end)
		}
	}
	return moments
}

// target chooses one of the existing files, mostly the store's.
func (r *round) target(d *disk.Disk) int {
	names := d.Names()
	if r.random.IntN(4) > 0 {
		return d.Number(storeFile)
	}
	return d.Number(names[r.random.IntN(len(names))])
}

// part chooses a part of a write: all of it, a page, or a sector.
func (r *round) part(op disk.Op) (start, end int64) {
	end = int64(len(op.Data))
	unit := []int64{end, disk.PageSize, disk.SectorSize}[r.random.IntN(3)]
	if unit >= end {
		return 0, end
	}
	start = r.random.Int64N(end/unit) * unit
	return start, min(start+unit, end)
}

// writes returns the operations up to at that write a file.
func (l *life) writes(number, at int) []int {
	var found []int
	for index, op := range l.log[:at] {
		if op.Kind == disk.Write && op.File == number {
			found = append(found, index)
		}
	}
	return found
}

// recent chooses one of the writes, a recent one rather than an old one, because old writes are
// mostly overwritten.
func (r *round) recent(writes []int) int {
	return writes[len(writes)-1-min(r.random.IntN(len(writes)), r.random.IntN(len(writes)))]
}

// swallow leaves out one write, or a part of it, that the disk reported as done.
func swallow(r *round, l *life, at int, left *disk.Disk) (*disk.Disk, string, error) {
	number := r.target(left)
	writes := l.writes(number, at)
	if len(writes) == 0 {
		return nil, "", nil
	}
	index := r.recent(writes)
	start, end := r.part(l.log[index])
	now := l.base.Clone()
	for position, op := range l.log[:at] {
		if position == index {
			data := slices.Clone(op.Data)
			was := now.Bytes(number, op.Offset+start, end-start)
			copy(data[start:end], was)
			op.Data = data
		}
		now.Apply(op)
	}
	what := fmt.Sprintf("bytes %d to %d of operation %d, %v, were swallowed", start, end, index, l.log[index])
	return now.PowerCut(disk.Everything, false, r.random), what, nil
}

// misplace writes to a wrong page.
func misplace(r *round, l *life, at int, left *disk.Disk) (*disk.Disk, string, error) {
	number := r.target(left)
	writes := l.writes(number, at)
	if len(writes) == 0 {
		return nil, "", nil
	}
	index := r.recent(writes)
	now, where := l.base.Clone(), int64(0)
	for position, op := range l.log[:at] {
		if position == index {
			where = r.random.Int64N(now.Size(number)/disk.PageSize+1) * disk.PageSize
			op.Offset = where
		}
		now.Apply(op)
	}
	what := fmt.Sprintf("operation %d, %v, was written to page %d", index, l.log[index], where/disk.PageSize)
	return now.PowerCut(disk.Everything, false, r.random), what, nil
}

// stale restores an earlier version of a page or a sector.
func stale(r *round, l *life, at int, left *disk.Disk) (*disk.Disk, string, error) {
	number := r.target(left)
	writes := l.writes(number, at)
	if len(writes) == 0 {
		return nil, "", nil
	}
	source := l.log[writes[r.random.IntN(len(writes))]]
	start, end := r.part(source)
	left.Damage(number, source.Offset+start, source.Data[start:end])
	return left, fmt.Sprintf("bytes %d to %d of %v were put back", start, end, source), nil
}

// flip changes one byte.
func flip(r *round, _ *life, _ int, left *disk.Disk) (*disk.Disk, string, error) {
	number := r.target(left)
	if left.Size(number) == 0 {
		return nil, "", nil
	}
	offset := r.random.Int64N(left.Size(number))
	was := left.Bytes(number, offset, 1)
	was[0] ^= byte(1 + r.random.IntN(255))
	left.Damage(number, offset, was)
	return left, fmt.Sprintf("byte %d of %s was changed", offset, storeFile), nil
}

// putBack restores the previous value of one record, or removes a record that had none.
func putBack(r *round, l *life, at int, left *disk.Disk) (*disk.Disk, string, error) {
	quiet := l.quiet()
	before := quiet[r.random.IntN(slices.Index(quiet, at)+1)]
	older, err := r.records(l.walk().to(before).PowerCut(disk.Everything, false, r.random))
	if err != nil {
		return nil, "", err
	}
	newer, err := r.records(left)
	if err != nil {
		return nil, "", err
	}
	var different []string
	for name, value := range newer {
		if !bytes.Equal(value, older[name]) {
			different = append(different, name)
		}
	}
	for name := range older {
		if _, found := newer[name]; !found {
			different = append(different, name)
		}
	}
	if len(different) == 0 {
		return nil, "", nil
	}
	slices.Sort(different)
	chosen := different[r.random.IntN(len(different))]
	changed, err := r.rewrite(left, func(tx *bolt.Tx) error {
		bucket, name, _ := bytes.Cut([]byte(chosen), []byte("/"))
		value, found := older[chosen]
		if !found {
			return tx.Bucket(bucket).Delete(name)
		}
		return tx.Bucket(bucket).Put(name, value)
	})
	return changed, fmt.Sprintf("record %q was put back as it was after operation %d", chosen, before), err
}

// withFile calls use with a folder that holds nothing but the store of a disk.
func (r *round) withFile(d *disk.Disk, use func(folder, file string) error) error {
	folder := r.path()
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	if err := d.Restore(folder); err != nil {
		return err
	}
	return use(folder, filepath.Join(folder, storeFile))
}

// records returns all values of the store, by bucket and name.
func (r *round) records(d *disk.Disk) (map[string][]byte, error) {
	records := make(map[string][]byte)
	err := r.withFile(d, func(_, file string) error {
		database, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
		if err != nil {
			return err
		}
		err = database.View(func(tx *bolt.Tx) error {
			return tx.ForEach(func(bucket []byte, content *bolt.Bucket) error {
				return content.ForEach(func(name, value []byte) error {
					records[string(bucket)+"/"+string(name)] = bytes.Clone(value)
					return nil
				})
			})
		})
		return errors.Join(err, database.Close())
	})
	return records, err
}

// rewrite changes the store's file in a transaction and returns the folder afterwards.
func (r *round) rewrite(d *disk.Disk, change func(*bolt.Tx) error) (*disk.Disk, error) {
	after := d.Clone()
	err := r.withFile(d, func(_, file string) error {
		database, err := bolt.Open(file, 0o600, &bolt.Options{NoSync: true, NoGrowSync: true, Timeout: time.Second, FreelistType: bolt.FreelistMapType})
		if err != nil {
			return err
		}
		if err := errors.Join(database.Update(change), database.Close()); err != nil {
			return err
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		number := after.Number(storeFile)
		after.Apply(disk.Op{Kind: disk.Resize, File: number, Size: int64(len(content))})
		after.Damage(number, 0, content)
		return nil
	})
	return after, err
}

// verifyDamaged opens a damaged folder. index is the state that was stored before the damage.
func (r *round) verifyDamaged(l *life, index int, damaged *disk.Disk) error {
	return r.withFile(damaged, func(folder, _ string) error {
		quiet := &recorder{folder: folder, quiet: true}
		recorders.Store(folder, quiet)
		defer quiet.end()
		anchored := anchoredAt(folder)
		problems, err := examine(folder)
		named := len(problems) > 0 || err != nil
		p, err := start(folder, l.config())
		if err != nil {
			return nil // refused at the start, which is right
		}
		p.follow()
		if err := p.install(); err != nil { // as the server does
			_ = p.close()
			return nil
		}
		closed := false
		defer func() {
			if !closed {
				_ = p.close()
			}
		}()
		for {
			different, err := r.judgeDamaged(p, l, index)
			if err == nil && (!different || named) {
				break
			}
			// Keys that the anchor does not have yet may be missing. They were created less than a
			// second ago.
			if state := &l.states[index]; state.creates && state.revision > anchored && l.states[index-1].model.policy {
				index--
				continue
			}
			if err == nil {
				err = found("answers differ, and check names nothing")
			}
			return err
		}
		// An honest change must not make the damage true.
		l.touch(p, index)
		_, err = r.judgeDamaged(p, l, index)
		closed = true
		_ = p.close()
		if err != nil {
			return found("after honest changes: %v", err)
		}
		return nil
	})
}

// judgeDamaged reports whether answers differ from what they were. It fails if something is
// allowed that should not be.
func (r *round) judgeDamaged(p *product, l *life, index int) (different bool, err error) {
	m := l.states[index].model
	for number, token := range l.tokens {
		for _, scope := range scopes {
			got, want := p.decide(token, scope), m.decision(token, scope)
			if got == allowed && want != allowed {
				return true, found("WRONGLY ALLOWED: token %d (%s…) with %s, expected %s", number, token[:min(len(token), 28)], scope, want)
			}
			different = different || got != want
		}
	}
	return different, nil
}

// touch makes changes of every key and member that do not change any decision.
func (l *life) touch(p *product, index int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	m := l.states[index].model
	for number := range m.keys {
		key := &m.keys[number]
		if key.id == "" {
			continue
		}
		// A refusal is as good as a change here.
		_, _ = p.UpdateKey(ctx, actor, &keysvcv1.UpdateKeyRequest{
			Key:        &keysvcv1.Key{WorkspaceId: m.members[key.member].workspace, KeyId: key.id, Name: "touched"},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
		})
	}
	for _, workspace := range slices.Sorted(maps.Keys(m.workspaces())) {
		_, _ = p.PutMember(ctx, actor, &keysvcv1.PutMemberRequest{
			WorkspaceId: workspace, MemberId: "somebody", Role: "admin", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
		})
	}
}

// workspaces returns the workspaces that have a member.
func (m *model) workspaces() map[string]bool {
	found := make(map[string]bool)
	for _, member := range m.members {
		if member.there {
			found[member.workspace] = true
		}
	}
	return found
}
