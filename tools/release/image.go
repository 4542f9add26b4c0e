package main

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	containers "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// user is the user and the group of the process in a container; nothing in the image belongs to root
// that the process writes.
const user = 65532

// image writes an image for containers, in the layout of the Open Container Initiative: nothing but
// the binary, for each platform of Linux.
func (r *release) image(binaries map[platform][]byte) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, each := range platforms {
		if each.system != "linux" {
			continue
		}
		image, err := r.imageOf(each, binaries[each])
		if err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: containers.Descriptor{
			Platform: &containers.Platform{OS: each.system, Architecture: each.architecture},
			// Programs that load a layout take the name from here.
			Annotations: map[string]string{"org.opencontainers.image.ref.name": r.version},
		}})
	}
	folder, err := os.MkdirTemp("", "keysvc-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	if _, err := layout.Write(folder, index); err != nil {
		return err
	}
	var files []file
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		files = append(files, file{name: filepath.ToSlash(strings.TrimPrefix(path, folder+"/")), content: content})
		return err
	})
	if err != nil {
		return err
	}
	packed, err := pack(files, r.at)
	if err != nil {
		return err
	}
	return r.write(r.name("image.tar"), packed)
}

// imageOf returns the image for a platform.
func (r *release) imageOf(of platform, binary []byte) (containers.Image, error) {
	packed, err := r.layer(binary)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	at := containers.Time{Time: r.at}
	image, err := mutate.Append(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1),
		mutate.Addendum{Layer: layer, History: containers.History{Created: at, CreatedBy: "keysvc " + r.version}})
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = of.system, of.architecture, at
	config.Config = containers.Config{
		User: "65532:65532", WorkingDir: "/", Entrypoint: []string{"/keysvc"}, Cmd: []string{"serve"},
		Env: []string{"PATH=/", "KEYSVC_DATA=/data"}, Volumes: map[string]struct{}{"/data": {}},
		Labels: map[string]string{
			"org.opencontainers.image.title": "keysvc", "org.opencontainers.image.version": r.version,
			"org.opencontainers.image.revision": r.commit,
		},
	}
	return mutate.ConfigFile(image, config)
}

// layer returns the only layer: the binary, and an empty folder for the store.
func (r *release) layer(binary []byte) ([]byte, error) {
	var packed bytes.Buffer
	writer := tar.NewWriter(&packed)
	for _, header := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "data/", Mode: 0o700, Uid: user, Gid: user},
		{Typeflag: tar.TypeReg, Name: "keysvc", Mode: 0o755, Size: int64(len(binary))},
	} {
		header.ModTime, header.Format = r.at, tar.FormatPAX
		if err := writer.WriteHeader(header); err != nil {
			return nil, err
		}
	}
	if _, err := writer.Write(binary); err != nil {
		return nil, err
	}
	err := writer.Close()
	return packed.Bytes(), err
}
