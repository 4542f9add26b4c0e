package backup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// diary is what a schedule did.
type diary struct {
	folder string
	// at has the time of each attempt, deleted the names of deleted files, and fails the number of
	// attempts that fail. failed counts backups that were not begun.
	at      []time.Time
	deleted []string
	errors  []error
	fails   int
	failed  int
}

func (d *diary) schedule(interval time.Duration, keep int) Schedule {
	return Schedule{
		Folder: d.folder, Interval: interval, Keep: keep, Now: time.Now,
		Jitter: func(most time.Duration) time.Duration { return most / 2 },
		Save: func(_ context.Context, folder string) (Made, error) {
			d.at = append(d.at, time.Now())
			if d.fails > 0 {
				d.fails--
				return Made{}, errors.New("no room")
			}
			made := Made{Header: Header{Time: time.Now(), Revision: int64(len(d.at))}}
			made.Path = filepath.Join(folder, NameOf(made.Header))
			return made, os.WriteFile(made.Path, []byte("a copy"), 0o600)
		},
		Fail: func(error) { d.failed++ },
		Done: func(_ Made, err error) { d.errors = append(d.errors, err) },
		Deleted: func(names []string, err error) {
			d.deleted, d.errors = append(d.deleted, names...), append(d.errors, err)
		},
	}
}

// runFor runs a schedule for a time.
func runFor(t *testing.T, s Schedule, lasts time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	s.Run(ctx)
}

func names(t *testing.T, folder string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		all = append(all, entry.Name())
	}
	return all
}

func touch(t *testing.T, folder, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(folder, name), []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestScheduleMakesOneBackupEachIntervalAndKeepsTheNewest starts with an empty folder.
func TestScheduleMakesOneBackupEachIntervalAndKeepsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{folder: t.TempDir()}
		began := time.Now()
		runFor(t, d.schedule(20*time.Hour, 3), 100*time.Hour) // a jitter of one hour
		want := []time.Duration{0, 21 * time.Hour, 42 * time.Hour, 63 * time.Hour, 84 * time.Hour}
		for index, at := range d.at {
			if index >= len(want) || at.Sub(began) != want[index] {
				t.Errorf("backup %d after %s, want %v", index, at.Sub(began), want)
			}
		}
		if left := names(t, d.folder); len(d.at) != 5 || len(left) != 3 || len(d.deleted) != 2 || !strings.HasSuffix(left[0], "-000000000003.db") {
			t.Errorf("%d were made, deleted were %q, left are %q", len(d.at), d.deleted, left)
		}
	})
}

// TestScheduleCatchesUpAtAStart: a start makes a backup at once only if the newest is too old. Files
// that are dated ahead, and files of others, do not count.
func TestScheduleCatchesUpAtAStart(t *testing.T) {
	for name, test := range map[string]struct {
		age  time.Duration
		want time.Duration
	}{"missed": {50 * time.Hour, 0}, "recent": {5 * time.Hour, 16 * time.Hour}, "ahead": {-500 * time.Hour, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &diary{folder: t.TempDir()}
				began := time.Now()
				touch(t, d.folder, NameOf(Header{Time: began.Add(-test.age), Revision: 7}))
				touch(t, d.folder, "keysvc.db")
				runFor(t, d.schedule(20*time.Hour, 1), 20*time.Hour)
				if len(d.at) != 1 || d.at[0].Sub(began) != test.want {
					t.Errorf("backups at %v after %s, want one after %s", d.at, began, test.want)
				}
				// The one that was made stays, whatever the name of the other says.
				if left := names(t, d.folder); len(left) != 2 || !slices.ContainsFunc(left, func(name string) bool { return strings.HasSuffix(name, "-000000000001.db") }) {
					t.Errorf("left are %q", left)
				}
			})
		})
	}
}

// TestScheduleTriesAgainAndDeletesNothingMeanwhile: a failed backup is tried again sooner than the next
// would come, and no good one is deleted for it.
func TestScheduleTriesAgainAndDeletesNothingMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{folder: t.TempDir(), fails: 30}
		began := time.Now()
		for day := range 4 {
			touch(t, d.folder, NameOf(Header{Time: began.Add(-time.Duration(100+day) * time.Hour), Revision: int64(day)}))
		}
		runFor(t, d.schedule(24*time.Hour, 2), 29*time.Hour+time.Minute)
		if len(d.at) != 30 || len(d.errors) != 30 || slices.Contains(d.errors, nil) || len(names(t, d.folder)) != 4 {
			t.Errorf("%d attempts, errors %v, left %q", len(d.at), d.errors, names(t, d.folder))
		}
		for index, at := range d.at {
			if want := time.Duration(index) * time.Hour; at.Sub(began) != want {
				t.Errorf("attempt %d after %s, want %s", index, at.Sub(began), want)
			}
		}
	})
}

// TestScheduleGoesOnWhenItsFolderIsBack: a folder that is missing is an error, and not the end.
func TestScheduleGoesOnWhenItsFolderIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{folder: filepath.Join(t.TempDir(), "mounted")}
		go func() {
			time.Sleep(90 * time.Minute)
			if err := os.Mkdir(d.folder, 0o700); err != nil {
				t.Error(err)
			}
		}()
		runFor(t, d.schedule(24*time.Hour, 2), 5*time.Hour)
		if len(d.errors) != 3 || d.failed != 2 || !errors.Is(d.errors[1], os.ErrNotExist) || d.errors[2] != nil || len(names(t, d.folder)) != 1 {
			t.Errorf("errors %v", d.errors)
		}
	})
}

// TestScheduleRemovesWhatACrashHasLeft, and nothing that somebody else writes in the folder.
func TestScheduleRemovesWhatACrashHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{folder: t.TempDir()}
		touch(t, d.folder, scheduledPrefix+"123")
		touch(t, d.folder, ".keysvc-backup-123")
		runFor(t, d.schedule(24*time.Hour, 2), time.Hour)
		if left := names(t, d.folder); len(left) != 2 || left[0] != ".keysvc-backup-123" {
			t.Errorf("left are %q", left)
		}
	})
}

func FuzzParseName(f *testing.F) {
	f.Add("keysvc-20270301T120000Z-000000004711.db")
	f.Add("keysvc-20270229T120000Z-000000004711.db")
	f.Add("keysvc-20270301T120000Z-9223372036854775808.db")
	f.Add("keysvc-20270301T120000Z-0000000004711.db")
	f.Add("keysvc.db")
	f.Fuzz(func(t *testing.T, name string) {
		at, revision, is := parseName(name)
		if is && NameOf(Header{Time: at, Revision: revision}) != name {
			t.Errorf("%q was read as %s, %d", name, at, revision)
		}
		if is && (filepath.Base(name) != name || revision < 0) {
			t.Errorf("%q is taken for the name of a backup", name)
		}
	})
}

// TestPaceLetsBytesPassAtItsRate: also after a pause, in which nothing is saved up.
func TestPaceLetsBytesPassAtItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, limit := time.Now(), newPace(1000)
		pass := func(pieces int) {
			for range pieces {
				if err := limit.wait(t.Context(), 500); err != nil {
					t.Fatal(err)
				}
			}
		}
		pass(11)
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("5,500 bytes passed in %s", took)
		}
		time.Sleep(time.Minute)
		began = time.Now()
		pass(11)
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("5,500 bytes passed in %s after a pause", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := limit.wait(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("wait returned %v after the end of its context", err)
		}
	})
}

// TestScheduleTellsOfTheNewestBackupAtItsStart has files that are no backup, and one that was made while the
// clock was ahead.
func TestScheduleTellsOfTheNewestBackupAtItsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{folder: t.TempDir()}
		newest := Header{Time: time.Now().Add(-2 * time.Hour).UTC(), Revision: 8}
		older, ahead := Header{Time: newest.Time.Add(-time.Hour), Revision: 9}, Header{Time: time.Now().Add(time.Hour), Revision: 10}
		for _, name := range []string{NameOf(older), NameOf(newest), NameOf(ahead), "keysvc-x.db", scheduledPrefix + "1"} {
			touch(t, d.folder, name)
		}
		var found []Made
		s := d.schedule(24*time.Hour, 7)
		s.Found = func(made Made) { found = append(found, made) }
		runFor(t, s, time.Hour)
		if want := filepath.Join(d.folder, NameOf(newest)); len(found) != 1 || found[0].Path != want || found[0].Revision != 8 || !found[0].Time.Equal(newest.Time) || found[0].Size != int64(len("older")) {
			t.Errorf("got %+v, want %s", found, want)
		}
		if len(d.at) != 0 {
			t.Errorf("backups at %v", d.at)
		}
		// A folder without one, or that is not there, says nothing.
		found = nil
		for _, folder := range []string{t.TempDir(), filepath.Join(d.folder, "absent")} {
			s.Folder = folder
			runFor(t, s, time.Second)
		}
		if len(found) != 0 {
			t.Errorf("got %+v", found)
		}
	})
}

func TestFoundBackupIsTheNewestUntilOneIsMade(t *testing.T) {
	now := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(hours int) Made { return Made{Header: Header{Time: now.Add(time.Duration(hours) * time.Hour)}} }
	b := New(Config{Now: func() time.Time { return now }})
	b.Fail(errors.New("no room"))
	b.Found(at(-2))
	if state := b.State(); !state.Last.Time.Equal(at(-2).Time) || state.Failures != 1 {
		t.Errorf("got %+v", state)
	}
	b.Found(at(-3))
	if state := b.State(); !state.Last.Time.Equal(at(-2).Time) {
		t.Errorf("got %+v", state)
	}
}
