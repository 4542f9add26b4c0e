package notices

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/scribe-mail/keysvc/internal/keys"
)

// placeHeader begins the file with the place, with the version of its form.
const placeHeader = "keysvc notices v1 "

// maxPlaceFile is the max length of the file.
const maxPlaceFile = 1024

var errPlaceFile = errors.New("not a file with the place in the notices")

// readPlace reads the place that was written last. Errors: fs.ErrNotExist for no file, and others for a
// file that cannot be read.
func readPlace(path string) (keys.NoticePlace, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return keys.NoticePlace{}, err
	case info.Size() > maxPlaceFile:
		return keys.NoticePlace{}, fmt.Errorf("%s: %w", path, errPlaceFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return keys.NoticePlace{}, err
	}
	place, err := parsePlaceFile(string(text))
	if err != nil {
		return keys.NoticePlace{}, fmt.Errorf("%s: %w", path, err)
	}
	return place, nil
}

// parsePlaceFile returns the place in the content of the file.
func parsePlaceFile(text string) (keys.NoticePlace, error) {
	rest, is := strings.CutPrefix(text, placeHeader)
	line, ends := strings.CutSuffix(rest, "\n")
	if !is || !ends {
		return keys.NoticePlace{}, errPlaceFile
	}
	return keys.ParseNoticePlace(line)
}

// writePlace makes a place durable. The file has either this place or the one before.
func writePlace(path string, place keys.NoticePlace) error {
	folder := filepath.Dir(path)
	temporary, err := os.CreateTemp(folder, ".keysvc-notices-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) //nolint:errcheck // gone after the rename, else a leftover
	_, err = temporary.WriteString(placeHeader + place.String() + "\n")
	if err == nil {
		err = temporary.Sync()
	}
	if err = errors.Join(err, temporary.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary.Name(), path); err != nil {
		return err
	}
	opened, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(opened.Sync(), opened.Close())
}

// begin returns the place to begin at, and an error if the file's cannot be used. Without a place
// that can be used all present notices are sent: again, perhaps, but with the same ids.
func begin(path string, now time.Time) (keys.NoticePlace, error) {
	place, err := readPlace(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return keys.AllNotices(now), nil
	case err != nil:
		return keys.AllNotices(now), err
	}
	// A place that lies ahead was written while the clock was wrong.
	if place.Due.After(now) {
		place.Due, place.KeyID = now, ""
	}
	if place.NotEndedBy.After(now) {
		place.NotEndedBy = now
	}
	return place, nil
}
