package browser_test

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"

	"github.com/scribe-mail/keysvc/clients/keyscreen"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// maxPicture is how many bytes a picture of the docs may have.
const maxPicture = 150 << 10

// TestPicturesOfTheDocs makes the pictures of docs/settings-screen.md, with -pictures only.
func TestPicturesOfTheDocs(t *testing.T) {
	if *pictures == "" {
		t.Skip("without -pictures")
	}
	s := startScreen(t, func(config *keyscreen.Config) { config.PageSize = 10 })
	s.create("max", "Invoice archive", []string{"assets:read", "folders:read"}, 0)
	s.create("mia", "Newsletter import", []string{"marketing_campaigns:read", "marketing_campaigns:write", "assets:read"}, 0)
	s.clock.Advance(91 * 24 * time.Hour)
	crm := s.create("max", "CRM sync", []string{"teammates:read", "teammates:write", "emails:read"}, 60)
	s.clock.Advance(40 * 24 * time.Hour)
	export := s.create("max", "Nightly export", []string{"emails:read", "signatures:read"}, 0)
	old := s.create("mia", "Old importer", []string{"emails:read", "emails:write"}, 0).GetKey().GetKeyId()
	if _, err := s.keysvc.Keys.RevokeKey(t.Context(), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: old}); err != nil {
		t.Fatal(err)
	}
	s.usable(crm.GetToken(), "emails:read", true)
	s.clock.Advance(3 * time.Hour)
	s.usable(export.GetToken(), "emails:read", true)

	shoot := func(w walker, name string, width, height int64) {
		w.do(send(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: w.way.phone}))
		w.until("true")
		writePicture(t, name, w.picture())
	}
	s.as("olivia")
	w := walker{open(t, way{script: true}), s}
	w.visit(s.url + screenPath + "/")
	w.row("Nightly export", "Active")
	shoot(w, "table", 1280, 720)

	s.as("max")
	w.visit(s.url + screenPath + "/")
	w.uses("link", "Create API key", "")
	w.types("Name", "Reports")
	w.uses("button", "Read only", "")
	shoot(w, "create", 1000, 960)
	w.uses("button", "Create key", "")
	w.token()
	shoot(w, "shown-once", 1000, 840)
	w.done("I have copied it")
	w.uses("link", "Create replacement for Nightly export", "")
	w.sees("How long the old key goes on working")
	shoot(w, "replace", 1000, 620)
	w.uses("button", "Create replacement", "")
	w.token()
	w.done("I have copied it")
	w.uses("link", "Revoke CRM sync", "")
	w.sees("Type the name of the key to confirm")
	shoot(w, "revoke", 1000, 620)

	phone := walker{open(t, way{script: true, phone: true}), s}
	phone.visit(s.url + screenPath + "/")
	phone.row("Nightly export", "Being replaced")
	shoot(phone, "phone", 390, 844)

	dark := walker{open(t, way{script: true, dark: true}), s}
	dark.visit(s.url + screenPath + "/")
	dark.row("Nightly export", "Being replaced")
	shoot(dark, "dark", 1280, 640)
}

// writePicture writes a picture with its 256 most frequent colours, which is smaller and looks the same.
func writePicture(t *testing.T, name string, shot []byte) {
	t.Helper()
	full, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		t.Fatal(err)
	}
	bounds := full.Bounds()
	counts := make(map[color.RGBA]int)
	at := func(x, y int) color.RGBA { return color.RGBAModel.Convert(full.At(x, y)).(color.RGBA) }
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			counts[at(x, y)]++
		}
	}
	var colours []color.RGBA
	for colour := range counts {
		colours = append(colours, colour)
	}
	slices.SortFunc(colours, func(a, b color.RGBA) int { return counts[b] - counts[a] })
	var palette color.Palette
	for _, colour := range colours[:min(len(colours), 256)] {
		palette = append(palette, colour)
	}
	small := image.NewPaletted(bounds, palette)
	nearest := make(map[color.RGBA]uint8)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			colour := at(x, y)
			index, known := nearest[colour]
			if !known {
				index = uint8(palette.Index(colour))
				nearest[colour] = index
			}
			small.SetColorIndex(x, y, index)
		}
	}
	var encoded bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&encoded, small); err != nil {
		t.Fatal(err)
	}
	if encoded.Len() > maxPicture {
		t.Errorf("the picture %s has %d bytes, more than %d", name, encoded.Len(), maxPicture)
	}
	if err := os.MkdirAll(*pictures, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*pictures, name+".png"), encoded.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
