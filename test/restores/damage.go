//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

// line is a line of the sink.
type line struct {
	path     string
	text     []byte
	event    bool
	revision int64
}

// readSink reads the lines of a sink, over all of its files, in order.
func readSink(folder string) ([]line, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		return nil, err
	}
	files := make([][]line, 0, len(paths))
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var lines []line
		for text := range bytes.Lines(content) {
			var read struct {
				Type     string `json:"type"`
				Revision int64  `json:"revision"`
			}
			if err := json.Unmarshal(text, &read); err != nil {
				return nil, fmt.Errorf("a line of the sink: %w", err)
			}
			lines = append(lines, line{path, bytes.Clone(text), read.Type == "event", read.Revision})
		}
		if len(lines) > 0 {
			files = append(files, lines)
		}
	}
	slices.SortFunc(files, func(a, b []line) int { return int(a[0].revision - b[0].revision) })
	return slices.Concat(files...), nil
}

// writeSink writes the lines into their files. Files without a line are removed.
func writeSink(folder string, lines []line) error {
	paths, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		var content []byte
		for _, each := range lines {
			if each.path == path {
				content = append(content, each.text...)
			}
		}
		if len(content) > 0 {
			err = errors.Join(err, os.WriteFile(path, content, 0o600))
		} else {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}

// damages are the ways to damage a sink. Each returns false if the sink is too short. The restore must
// notice each, but the first: of that nobody says that the sink is complete.
var damages = []struct {
	name   string
	unsaid bool
	do     func(random *rand.Rand, lines []line, backup int64) ([]line, bool)
}{
	{"end cut off", true, func(random *rand.Rand, lines []line, backup int64) ([]line, bool) {
		return lines[:1+random.IntN(len(lines)-1)], true
	}},
	{"nobody says that it is complete", true, func(_ *rand.Rand, lines []line, _ int64) ([]line, bool) { return lines, true }},
	{"beginning cut off", false, func(random *rand.Rand, lines []line, backup int64) ([]line, bool) {
		// At least one event after the backup is cut off, and one is left.
		from := slices.IndexFunc(lines, func(each line) bool { return each.event && each.revision > backup })
		if from < 0 || from+1 >= len(lines) {
			return nil, false
		}
		return lines[from+1+random.IntN(len(lines)-from-1):], true
	}},
	{"a line lost", false, func(random *rand.Rand, lines []line, backup int64) ([]line, bool) {
		index, found := eventSince(random, lines, backup)
		if !found {
			return nil, false
		}
		return slices.Delete(lines, index, index+1), true
	}},
	{"lines lost", false, func(random *rand.Rand, lines []line, backup int64) ([]line, bool) {
		index, found := eventSince(random, lines, backup)
		if !found {
			return nil, false
		}
		return slices.Delete(lines, index, index+1+random.IntN(len(lines)-index-1)), true // the last line stays
	}},
	{"a line altered", false, func(random *rand.Rand, lines []line, backup int64) ([]line, bool) {
		index, found := eventSince(random, lines, backup)
		if !found {
			return nil, false
		}
		text := lines[index].text
		for {
			at := random.IntN(len(text))
			if old := text[at]; old >= '0' && old <= '8' || old >= 'a' && old <= 'y' || old >= 'A' && old <= 'Y' {
				text[at]++
				return lines, true
			}
		}
	}},
	{"a line torn", false, func(random *rand.Rand, lines []line, backup int64) ([]line, bool) {
		index, found := eventSince(random, lines, backup)
		if !found {
			return nil, false
		}
		// The end of a sink after a power cut.
		text := lines[index].text
		lines[index].text = text[:1+random.IntN(len(text)-2)]
		return lines[:index+1], true
	}},
	{"two lines swapped", false, func(random *rand.Rand, lines []line, backup int64) ([]line, bool) {
		index, found := eventSince(random, lines, backup)
		if !found || !lines[index+1].event {
			return nil, false
		}
		lines[index].text, lines[index+1].text = lines[index+1].text, lines[index].text
		return lines, true
	}},
}

// eventSince returns a random event after the backup, which is not the last line.
func eventSince(random *rand.Rand, lines []line, backup int64) (int, bool) {
	var fit []int
	for index, each := range lines[:len(lines)-1] {
		if each.event && each.revision > backup {
			fit = append(fit, index)
		}
	}
	// Events that follow must be left for the gap to show.
	if len(fit) == 0 || !lines[len(lines)-1].event {
		return 0, false
	}
	return fit[random.IntN(len(fit))], true
}
