package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/scribe-mail/keysvc/test/crash/disk"
)

// This file replaces records by older ones, with a right checksum, in the pages that bbolt
// has mapped in a running process. Decisions come from the memory of the process and do not
// change. A change that reads such a record must not write it back as valid.

// The layout of bbolt's pages: a header, the elements, and their keys and values. An element
// has the distance from itself to its key. The value follows the key.
const (
	pageHeader   = 16
	elementSize  = 16
	bucketHeader = 16
	leafPage     = 0x02
	isBucket     = 0x01
)

// alterations alters a record of a store that is served, and then makes honest changes.
func (r *round) alterations() error {
	l, err := r.first(8+r.random.IntN(30), 0, nil)
	if err != nil {
		return r.report(err, l, nil, "without a fault")
	}
	quiet := l.quiet()
	for range 30 {
		position := r.random.IntN(len(quiet))
		at, before := quiet[position], quiet[r.random.IntN(position+1)]
		left := l.walk().to(at).PowerCut(disk.Everything, false, r.random)
		name, older, newer, err := r.earlier(l, before, left)
		if err != nil {
			return err
		}
		if name == "" {
			continue
		}
		err = r.verifyAltered(l, l.allowed(at)[0], left, func(content []byte) bool {
			_, key, _ := bytes.Cut([]byte(name), []byte("/"))
			return alter(content, key, newer, older)
		})
		where := fmt.Sprintf("after operation %d of %d, record %q became under a running process what it was after operation %d", at, len(l.log), name, before)
		if err := r.report(err, l, left, where); err != nil {
			return err
		}
	}
	return nil
}

// earlier chooses a record that had another value at an earlier moment. The name is empty if
// no record had.
func (r *round) earlier(l *life, before int, left *disk.Disk) (name string, older, newer []byte, err error) {
	was, err := r.records(l.walk().to(before).PowerCut(disk.Everything, false, r.random))
	if err != nil {
		return "", nil, nil, err
	}
	is, err := r.records(left)
	if err != nil {
		return "", nil, nil, err
	}
	var different []string
	for name, value := range is {
		if earlier, found := was[name]; found && value != nil && earlier != nil && !bytes.Equal(value, earlier) {
			different = append(different, name)
		}
	}
	if len(different) == 0 {
		return "", nil, nil, nil
	}
	slices.Sort(different)
	name = different[r.random.IntN(len(different))]
	return name, was[name], is[name], nil
}

// verifyAltered serves a store, alters its file meanwhile, and opens it once more. index is
// the state that is stored.
func (r *round) verifyAltered(l *life, index int, left *disk.Disk, change func(content []byte) bool) error {
	return r.withFile(left, func(folder, file string) error {
		quiet := &recorder{folder: folder, quiet: true}
		recorders.Store(folder, quiet)
		defer quiet.end()
		p, err := start(folder, l.config())
		if err != nil {
			return found("the store does not open: %v", err)
		}
		p.follow()
		content, err := os.ReadFile(file)
		if err != nil || !change(content) {
			_ = p.close()
			return err
		}
		r.images++
		// In place, because the process has mapped this file.
		err = overwrite(file, content)
		if err == nil {
			_, err = r.judgeDamaged(p, l, index)
		}
		if err == nil {
			l.touch(p, index)
			_, err = r.judgeDamaged(p, l, index)
		}
		_ = p.close() // a process that found damage may end as it likes
		if err != nil {
			return err
		}
		problems, err := examine(folder)
		named := len(problems) > 0 || err != nil
		if p, err = start(folder, l.config()); err != nil {
			return nil // refused at the start, which is right
		}
		different, err := r.judgeDamaged(p, l, index)
		_ = p.close()
		if err == nil && different && !named {
			err = found("answers differ, and check names nothing")
		}
		return err
	})
}

// overwrite replaces the content of a file by content of the same length, in place.
func overwrite(name string, content []byte) error {
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(content, 0)
	if closing := file.Close(); err == nil {
		err = closing
	}
	return err
}

// alter replaces the value of a record in every page of a store's file that has it, and
// reports whether one had.
func alter(content, key, from, to []byte) bool {
	altered := false
	for start := 0; start+disk.PageSize <= len(content); start += disk.PageSize {
		overflow := int(binary.LittleEndian.Uint32(content[start+12:]))
		if overflow > (len(content)-start)/disk.PageSize-1 {
			continue
		}
		page := content[start : start+(overflow+1)*disk.PageSize]
		altered = alterPage(page, key, from, to) || altered
	}
	return altered
}

// alterPage does the same in one page, which may be the page of an inline bucket.
func alterPage(page, key, from, to []byte) bool {
	if len(page) < pageHeader || binary.LittleEndian.Uint16(page[8:]) != leafPage {
		return false
	}
	end, at, altered := 0, -1, false
	for index := range int(binary.LittleEndian.Uint16(page[10:])) {
		entry := pageHeader + index*elementSize
		name, value, ok := element(page, entry)
		if !ok {
			return altered
		}
		end = max(end, value[1])
		switch {
		case binary.LittleEndian.Uint32(page[entry:])&isBucket != 0:
			if value[1]-value[0] > bucketHeader {
				altered = alterPage(page[value[0]+bucketHeader:value[1]:value[1]], key, from, to) || altered
			}
		case bytes.Equal(page[name[0]:name[1]], key) && bytes.Equal(page[value[0]:value[1]], from):
			at = entry
		}
	}
	if at < 0 {
		return altered
	}
	name, value, _ := element(page, at)
	if place := value[0]; len(to) > len(from) {
		// At the end of the page, if there is room.
		if end+len(key)+len(to) > len(page) {
			return altered
		}
		binary.LittleEndian.PutUint32(page[at+4:], uint32(end-at))
		place = end + copy(page[end:], page[name[0]:name[1]])
		copy(page[place:], to)
	} else {
		copy(page[place:], to)
	}
	binary.LittleEndian.PutUint32(page[at+12:], uint32(len(to)))
	return true
}

// element returns where the key and the value of an element begin and end in a page. It returns
// false if they are outside of the page.
func element(page []byte, entry int) (name, value [2]int, ok bool) {
	if entry+elementSize > len(page) {
		return name, value, false
	}
	position := binary.LittleEndian.Uint32(page[entry+4:])
	keys, values := binary.LittleEndian.Uint32(page[entry+8:]), binary.LittleEndian.Uint32(page[entry+12:])
	if position > math.MaxInt32 || keys > math.MaxInt32 || values > math.MaxInt32 {
		return name, value, false
	}
	begin := entry + int(position)
	name = [2]int{begin, begin + int(keys)}
	value = [2]int{name[1], name[1] + int(values)}
	return name, value, value[1] <= len(page)
}
