package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// file is a file of an archive.
type file struct {
	name       string
	content    []byte
	executable bool
}

// archive writes an archive NAME.tar.gz, in which everything is in a folder NAME.
func (r *release) archive(name string, files []file) error {
	within := make([]file, 0, len(files))
	for _, each := range files {
		each.name = name + "/" + each.name
		within = append(within, each)
	}
	packed, err := pack(within, r.at)
	if err != nil {
		return err
	}
	var compressed bytes.Buffer
	// The header of gzip has neither a time nor a name.
	writer, err := gzip.NewWriterLevel(&compressed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := writer.Write(packed); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	return r.write(name+".tar.gz", compressed.Bytes())
}

// pack returns a tar archive of files, sorted, which all belong to root and have the same time.
func pack(files []file, at time.Time) ([]byte, error) {
	var packed bytes.Buffer
	writer := tar.NewWriter(&packed)
	sorted := slices.SortedFunc(slices.Values(files), func(a, b file) int { return cmp.Compare(a.name, b.name) })
	for _, each := range sorted {
		mode := int64(0o644)
		if each.executable {
			mode = 0o755
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: each.name, Size: int64(len(each.content)), Mode: mode, ModTime: at, Format: tar.FormatPAX}
		if err := writer.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := writer.Write(each.content); err != nil {
			return nil, err
		}
	}
	if err := writer.Close(); err != nil {
		return nil, err
	}
	return packed.Bytes(), nil
}

// write writes a file of the release.
func (r *release) write(name string, content []byte) error {
	return os.WriteFile(filepath.Join(r.output, name), content, 0o644)
}

// checksums writes the SHA-256 of everything that was made, in the form that sha256sum --check reads.
func (r *release) checksums() error {
	entries, err := os.ReadDir(r.output)
	if err != nil {
		return err
	}
	var sums bytes.Buffer
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(r.output, entry.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(content), entry.Name())
	}
	return r.write("SHA256SUMS", sums.Bytes())
}
