package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// jitterShare is the part of the interval by which a scheduled backup may be later: a tenth.
	jitterShare = 10
	// retryShare is the part of the interval after which a failed backup is tried again, and minRetry
	// and maxRetry bound that.
	retryShare         = 10
	minRetry, maxRetry = time.Minute, time.Hour
)

// timeLayout is the time in the name of a backup's file.
const timeLayout = "20060102T150405Z"

var namePattern = regexp.MustCompile(`^keysvc-([0-9]{8}T[0-9]{6}Z)-([0-9]{12,19})\.db$`)

// NameOf returns the name of the file of a scheduled backup: keysvc-20270301T120000Z-000000004711.db
// for one that was begun then, with that newest revision. Names sort by time.
func NameOf(header Header) string {
	return fmt.Sprintf("keysvc-%s-%012d.db", header.Time.UTC().Format(timeLayout), header.Revision)
}

// parseName returns the time and the revision in a name that NameOf has returned, and reports whether
// it is one.
func parseName(name string) (at time.Time, revision int64, is bool) {
	found := namePattern.FindStringSubmatch(name)
	if found == nil {
		return time.Time{}, 0, false
	}
	at, err := time.Parse(timeLayout, found[1])
	if err != nil {
		return time.Time{}, 0, false
	}
	revision, err = strconv.ParseInt(found[2], 10, 64)
	if err != nil || NameOf(Header{Time: at, Revision: revision}) != name {
		return time.Time{}, 0, false
	}
	return at, revision, true
}

// Schedule makes backups in a folder, one each interval, and deletes old ones.
type Schedule struct {
	// Folder must exist. Nothing else has files with such names in it.
	Folder string
	// Interval is the time from one backup to the next, and Keep how many are kept, at least 1.
	Interval time.Duration
	Keep     int
	// Save makes a backup in the folder and checks it; see Backups.Save.
	Save func(ctx context.Context, folder string) (Made, error)
	// Fail notes that a backup is due, or may be, and was not begun.
	Fail func(err error)
	// Found is called once, when Run begins, with the newest backup in the folder, if there is one; nil for
	// nobody. It has no digest and no epoch.
	Found func(Made)
	// Now is the clock, and Jitter returns a random part of a duration.
	Now    func() time.Time
	Jitter func(most time.Duration) time.Duration
	// Done is called with the outcome of each backup, and Deleted with those of deletions.
	Done    func(Made, error)
	Deleted func(names []string, err error)
}

// Run makes backups until the context ends. If the newest backup is older than the interval, or
// the folder has no backup, Run begins with one.
func (s Schedule) Run(ctx context.Context) {
	if made, found, err := s.newest(); s.Found != nil && err == nil && found {
		s.Found(made)
	}
	for {
		wait, err := s.untilNext()
		if err == nil && !sleep(ctx, wait) {
			return
		}
		var made Made
		if err != nil {
			s.Fail(err)
		} else {
			made, err = s.Save(ctx, s.Folder)
		}
		if ctx.Err() != nil {
			return
		}
		s.Done(made, err)
		if err != nil {
			if !sleep(ctx, max(minRetry, min(s.Interval/retryShare, maxRetry))) {
				return
			}
			continue
		}
		if deleted, err := s.deleteOld(made); err != nil || len(deleted) > 0 {
			s.Deleted(deleted, err)
		}
	}
}

// untilNext returns how long it is until the next backup is due. It removes what a crash has left
// behind.
func (s Schedule) untilNext() (time.Duration, error) {
	if err := s.removeIncomplete(); err != nil {
		return 0, err
	}
	made, found, err := s.newest()
	if err != nil || !found {
		return 0, err
	}
	return max(0, made.Time.Add(s.Interval).Sub(s.Now())+s.Jitter(s.Interval/jitterShare)), nil
}

// newest returns the newest backup in the folder, as far as its name and its size tell. One that was made
// while the clock was ahead does not count.
func (s Schedule) newest() (made Made, found bool, err error) {
	names, err := s.list()
	if err != nil {
		return Made{}, false, err
	}
	now := s.Now()
	for _, name := range slices.Backward(names) {
		at, revision, _ := parseName(name)
		if at.After(now) {
			continue
		}
		path := filepath.Join(s.Folder, name)
		info, err := os.Stat(path)
		if err != nil {
			continue // somebody has just deleted it
		}
		return Made{Header: Header{Size: info.Size(), Revision: revision, Time: at}, Path: path}, true, nil
	}
	return Made{}, false, nil
}

// removeIncomplete deletes files that are not complete. Nobody writes one while the schedule waits.
func (s Schedule) removeIncomplete() error {
	entries, err := os.ReadDir(s.Folder)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), scheduledPrefix) && entry.Type().IsRegular() {
			err = errors.Join(err, os.Remove(filepath.Join(s.Folder, entry.Name())))
		}
	}
	return err
}

// list returns the names of the backups in the folder, by time.
func (s Schedule) list() ([]string, error) {
	entries, err := os.ReadDir(s.Folder)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if _, _, is := parseName(entry.Name()); is && entry.Type().IsRegular() {
			names = append(names, entry.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// deleteOld deletes all but the newest backups, and never the one that was just made, because that
// backup is known to be good.
func (s Schedule) deleteOld(made Made) (deleted []string, err error) {
	names, err := s.list()
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == filepath.Base(made.Path) })
	for _, name := range names[:max(0, len(names)-s.Keep+1)] {
		if failed := os.Remove(filepath.Join(s.Folder, name)); failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		deleted = append(deleted, name)
	}
	return deleted, err
}

// sleep waits for a duration, and reports whether the context did not end meanwhile.
func sleep(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
