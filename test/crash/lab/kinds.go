package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/scribe-mail/keysvc/test/crash/disk"
)

// kind is one kind of crash.
type kind struct {
	name string
	// group is plain, for disks that keep what was synced, or damaged.
	group string
	// weight is the kind's share of all images.
	weight int
	// round makes one history of a store, and images of it.
	round func(r *round) error
}

// The groups of kinds.
const (
	plain   = "plain"
	damaged = "damage"
)

// kinds lists all kinds.
var kinds = []kind{
	{"cut", plain, 20, (*round).cuts},
	{"create", plain, 10, (*round).creations},
	{"grow", plain, 10, (*round).growth},
	{"kill", plain, 5, (*round).kills},
	{"restart", plain, 30, (*round).restarts},
	{"recover", plain, 10, (*round).recoveries},
	{"sync", plain, 10, (*round).failedSyncs},
	{"call", plain, 5, (*round).failedCalls},
	{"crowd", plain, 10, (*round).crowds},
	{"swallow", damaged, 4, damages(swallow)},
	{"misplace", damaged, 2, damages(misplace)},
	{"stale", damaged, 4, damages(stale)},
	{"putback", damaged, 4, damages(putBack)},
	{"flip", damaged, 2, damages(flip)},
	{"alter", damaged, 4, (*round).alterations},
}

// choose returns the kinds in a list with commas, by their names or their groups; all kinds
// for an empty list.
func choose(list string) ([]kind, error) {
	if list == "" {
		return kinds, nil
	}
	var chosen []kind
	for name := range strings.SplitSeq(list, ",") {
		before := len(chosen)
		for _, kind := range kinds {
			if kind.name == name || kind.group == name {
				chosen = append(chosen, kind)
			}
		}
		if len(chosen) == before {
			return nil, fmt.Errorf("no kind of crash, or group of kinds, is called %q", name)
		}
	}
	return chosen, nil
}

// round is one history of a store, with the images made of it.
type round struct {
	kind   string
	seed   uint64
	number int
	folder string
	random *rand.Rand
	names  int
	// images counts the images that were opened. findings describes the broken promises.
	images   int
	findings []string
	keep     func(image *disk.Disk, what string) string
}

// path returns a new name in the laboratory's folder.
func (r *round) path() string {
	r.names++
	return filepath.Join(r.folder, fmt.Sprintf("%s-%x-%d", r.kind, r.seed, r.names))
}

// first returns the first life of a new store, with a number of changes.
func (r *round) first(changes, bulk int, fault *fault) (*life, error) {
	l := newLife(r.random.Uint64(), bulk)
	return l, r.live(l, changes, fault)
}

// live lets a life begin, work and end.
func (r *round) live(l *life, changes int, fault *fault) error {
	err := l.begin(r.path(), fault)
	if err == nil {
		err = l.work(changes, fault)
	}
	if fault != nil {
		fault.disarmed = true
	}
	if l.product != nil {
		if ending := l.end(fault); err == nil {
			err = ending
		}
	} else if ending := l.seal(); err == nil {
		err = ending
	}
	return err
}

// report notes what is wrong, with the image that shows it.
func (r *round) report(err error, l *life, image *disk.Disk, where string) error {
	if wrong := (*findingError)(nil); !errors.As(err, &wrong) {
		return err
	}
	text := fmt.Sprintf("%s: %v", where, err)
	if image != nil {
		text += "\n    image: " + r.keep(image, text)
	}
	if count := len(l.story); count > 6 {
		text += "\n    …"
	}
	text += "\n    " + strings.Join(l.story[max(0, len(l.story)-6):], "\n    ")
	r.findings = append(r.findings, text)
	return nil
}

// cut makes images of a life by power cuts at some moments. The first moment is from.
func (r *round) cut(l *life, count, from int) error {
	moments := make([]int, count)
	for index := range moments {
		moments[index] = from + r.random.IntN(len(l.log)-from+1)
	}
	slices.Sort(moments)
	cursor := l.walk()
	for _, at := range moments {
		now := cursor.to(at)
		way, torn := disk.Cut(r.random.IntN(int(disk.Cuts))), r.random.IntN(4) == 0
		image := now.PowerCut(way, torn, r.random)
		r.images++
		if err := l.verify(image, l.allowed(at), r.path(), r.random.IntN(10) == 0); err != nil {
			where := fmt.Sprintf("power cut after operation %d of %d (%s, torn %t)", at, len(l.log), way, torn)
			if err := r.report(err, l, image, where); err != nil {
				return err
			}
		}
	}
	return nil
}

// moment returns an interesting moment for killing the process, often between a write and
// its sync.
func (r *round) moment(l *life) int {
	at := r.random.IntN(len(l.log) + 1)
	if r.random.IntN(3) == 0 {
		return at
	}
	for ; at < len(l.log); at++ {
		if l.log[at].Kind == disk.Sync || l.log[at].Kind == disk.FailedSync {
			break
		}
	}
	return at
}

// kill returns the folder after the process was killed at a moment. Everything that the
// process wrote is visible. It may be killed in the middle of a write.
func (r *round) kill(l *life, at int) *disk.Disk {
	left := l.walk().to(at)
	if at < len(l.log) && l.log[at].Kind == disk.Write && r.random.IntN(3) == 0 {
		part := l.log[at]
		part.Data = part.Data[:r.random.IntN(len(part.Data)/disk.PageSize+1)*disk.PageSize]
		if len(part.Data) > 0 {
			left.Apply(part)
		}
	}
	return left
}

func (r *round) cuts() error {
	l, err := r.first(3+r.random.IntN(40), r.random.IntN(2)*r.random.IntN(2000), nil)
	if err != nil {
		return r.report(err, l, nil, "without a fault")
	}
	return r.cut(l, 60, 0)
}

func (r *round) creations() error {
	l, err := r.first(r.random.IntN(3), 0, nil)
	if err != nil {
		return r.report(err, l, nil, "without a fault")
	}
	return r.cut(l, 30, 0)
}

// growth makes a file that grows several times.
func (r *round) growth() error {
	l, err := r.first(20+r.random.IntN(20), 3000+r.random.IntN(4000), nil)
	if err != nil {
		return r.report(err, l, nil, "without a fault")
	}
	return r.cut(l, 60, 0)
}

func (r *round) kills() error {
	l, err := r.first(1+r.random.IntN(20), 0, nil)
	if err != nil {
		return r.report(err, l, nil, "without a fault")
	}
	for range 10 {
		at := r.moment(l)
		left := r.kill(l, at)
		next := l.after(at, left, r.random.Uint64())
		r.images++
		err := r.live(next, 1+r.random.IntN(3), nil)
		if err == nil {
			end := next.walk().to(len(next.log))
			left = end
			err = next.verify(end, next.allowed(len(next.log)), r.path(), true)
		}
		if err != nil {
			if err := r.report(err, next, left, fmt.Sprintf("killed after operation %d of %d", at, len(l.log))); err != nil {
				return err
			}
		}
	}
	return nil
}

// restarts kills the process, starts another one, and cuts the power while the new process
// makes durable what it found.
func (r *round) restarts() error {
	l, err := r.first(1+r.random.IntN(20), 0, nil)
	if err != nil {
		return r.report(err, l, nil, "without a fault")
	}
	for range 6 {
		if err := r.restart(l, r.moment(l), 8, 0); err != nil {
			return err
		}
	}
	return nil
}

// restart kills a process at a moment, and cuts the power during the life of the next process.
// Sometimes it first kills the next process, too, and the one after that.
func (r *round) restart(l *life, at, images, depth int) error {
	left := r.kill(l, at)
	next := l.after(at, left, r.random.Uint64())
	if err := r.live(next, r.random.IntN(3), nil); err != nil {
		r.images++
		return r.report(err, next, left, fmt.Sprintf("killed after operation %d of %d", at, len(l.log)))
	}
	if depth < 2 && r.random.IntN(4) == 0 {
		return r.restart(next, r.moment(next), images, depth+1)
	}
	return r.cut(next, images, 0)
}

// recoveries cuts the power, and cuts it again while the next process recovers.
func (r *round) recoveries() error {
	l, err := r.first(1+r.random.IntN(20), 0, nil)
	if err != nil {
		return r.report(err, l, nil, "without a fault")
	}
	for range 5 {
		at := r.moment(l)
		left := l.walk().to(at).PowerCut(disk.Cut(r.random.IntN(int(disk.Cuts))), r.random.IntN(4) == 0, r.random)
		next := l.after(at, left, r.random.Uint64())
		if err := r.live(next, r.random.IntN(3), nil); err != nil {
			r.images++
			if err := r.report(err, next, left, fmt.Sprintf("power cut after operation %d of %d", at, len(l.log))); err != nil {
				return err
			}
			continue
		}
		if err := r.cut(next, 8, 0); err != nil {
			return err
		}
	}
	return nil
}

// failedSyncs lets syncs fail. Pages that they did not write are lost although they are visible.
func (r *round) failedSyncs() error {
	changes := 3 + r.random.IntN(12)
	failing := &fault{only: "sync", first: 1 + r.random.IntN(2*changes+6), calls: 1 + r.random.IntN(3)*r.random.IntN(2), err: syscall.EIO}
	l, err := r.first(changes, 0, failing)
	return r.afterFault(l, failing, err)
}

// afterFault makes images of a life with a fault: by power cuts, and by power cuts after the
// process was killed.
func (r *round) afterFault(l *life, failing *fault, err error) error {
	where := fmt.Sprintf("call %d failed with %v (%s)", failing.first, failing.err, failing.on)
	if err != nil {
		r.images++
		return r.report(err, l, nil, where)
	}
	before := len(r.findings)
	if err := r.cut(l, 16, 0); err != nil {
		return err
	}
	for range 3 {
		if err := r.restart(l, r.moment(l), 5, 0); err != nil {
			return err
		}
	}
	for index := before; index < len(r.findings); index++ {
		r.findings[index] = where + "; " + r.findings[index]
	}
	return nil
}

// failures are the errors that calls end with.
var failures = []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EMFILE, syscall.EACCES}

// failedCalls lets the calls of a history fail, one call in each round.
func (r *round) failedCalls() error {
	changes := 1 + r.random.IntN(8)
	seed := r.random.Uint64()
	whole := newLife(seed, 0)
	if err := r.live(whole, changes, nil); err != nil {
		return r.report(err, whole, nil, "without a fault")
	}
	total := whole.rec.calls
	failing := &fault{
		first: r.number%total + 1, calls: 1 + r.random.IntN(4)*r.random.IntN(2),
		err: failures[r.random.IntN(len(failures))], part: r.random.IntN(2) * r.random.IntN(3*disk.PageSize),
	}
	l := newLife(seed, 0)
	return r.afterFault(l, failing, r.live(l, changes, failing))
}
