package flat

import (
	"encoding/binary"
	"strings"
)

// Text is the place of a text in Texts; 0 is no text.
type Text uint32

// Texts holds texts that belong to records, each to one. They lie in chunks, so there is no
// pointer for each text. A text that was returned stays valid, whatever happens to Texts later,
// because chunks are never written again: once most texts of a chunk were dropped, the others are
// copied to another chunk.
type Texts struct {
	// place returns where a record keeps the place of its text; nil if there is no such record.
	place func(record uint32) *Text
	// chunks are texts, each behind the number of its record and its length. Texts are appended to
	// newest, which is the last of chunks so far.
	chunks []string
	newest strings.Builder
	// open is the place of newest in chunks.
	open int
	// dropped counts the bytes of dropped texts, by chunk.
	dropped []uint32
	// free are the places in chunks that can be used again.
	free []int
}

const (
	// chunkBits is the number of bits of a place within a chunk.
	chunkBits  = 15
	chunkBytes = 1 << chunkBits
	// maxChunks is the max number of chunks: 4 GiB of texts.
	maxChunks = 1 << (32 - chunkBits)
	// headBytes is the size of the number of a text's record.
	headBytes = 4
)

// NewTexts returns a Texts without texts. place returns where a record keeps the place of its text,
// or nil if there is no such record; Texts changes the places of texts that it moves.
func NewTexts(place func(record uint32) *Text) *Texts { return &Texts{place: place} }

// Add adds a text that belongs to a record. The caller sets the record's place to the result.
func (t *Texts) Add(record uint32, text string) Text {
	var head [headBytes + binary.MaxVarintLen64]byte
	binary.LittleEndian.PutUint32(head[:], record)
	length := headBytes + binary.PutUvarint(head[headBytes:], uint64(len(text)))
	if len(t.chunks) == 0 || t.newest.Len()+length+len(text) > max(chunkBytes, t.newest.Cap()) || t.newest.Len() >= chunkBytes {
		t.begin(length + len(text))
	}
	place := Text(t.open<<chunkBits | t.newest.Len()) //nolint:gosec // G115: below maxChunks and chunkBytes
	t.newest.Write(head[:length])
	t.newest.WriteString(text)
	// Builder.String copies nothing, and what it returned stays as it is when more is appended.
	t.chunks[t.open] = t.newest.String()
	return place
}

// begin begins a chunk that has room for a text.
func (t *Texts) begin(size int) {
	if before := t.open; len(t.chunks) > 0 {
		defer t.tidy(before)
	}
	t.newest.Reset()
	t.newest.Grow(max(size, chunkBytes))
	if last := len(t.free) - 1; last >= 0 {
		t.open, t.free = t.free[last], t.free[:last]
		return
	}
	if len(t.chunks) == maxChunks {
		panic("flat: more than 4 GiB of texts")
	}
	if len(t.chunks) == 0 { // no text has the place 0
		t.newest.WriteByte(0)
	}
	t.open = len(t.chunks)
	t.chunks, t.dropped = append(t.chunks, ""), append(t.dropped, 0)
}

// Get returns a text.
func (t *Texts) Get(place Text) string {
	if place == 0 {
		return ""
	}
	_, text, _ := parse(t.chunks[place>>chunkBits][place%chunkBytes:])
	return text
}

// parse returns the first text of a part of a chunk, and its size with what is before it.
func parse(part string) (record uint32, text string, size int) {
	for index := range headBytes {
		record |= uint32(part[index]) << (8 * index)
	}
	var length uint64
	size = headBytes
	for shift := 0; ; shift += 7 {
		digit := part[size]
		size++
		length |= uint64(digit&0x7f) << shift
		if digit < 0x80 {
			break
		}
	}
	end := size + int(length) //nolint:gosec // G115: within the chunk
	return record, part[size:end], end
}

// Drop removes a text. The text's record must not keep its place any more.
func (t *Texts) Drop(dropped Text) {
	if dropped == 0 {
		return
	}
	chunk := int(dropped >> chunkBits)
	_, _, size := parse(t.chunks[chunk][dropped%chunkBytes:])
	t.dropped[chunk] += uint32(size) //nolint:gosec // G115: within the chunk
	if chunk != t.open {
		t.tidy(chunk)
	}
}

// tidy gives a chunk up if most of its texts were dropped, and moves the others. The chunk is not
// the open one.
func (t *Texts) tidy(chunk int) {
	whole, at := t.chunks[chunk], 0
	if int(t.dropped[chunk]) <= len(whole)/2 {
		return
	}
	if chunk == 0 {
		at = 1 // behind the byte that keeps the place 0 free
	}
	for at < len(whole) {
		record, text, size := parse(whole[at:])
		//nolint:gosec // G115: below maxChunks and chunkBytes
		if kept := t.place(record); kept != nil && *kept == Text(chunk<<chunkBits|at) {
			*kept = t.Add(record, text)
		}
		at += size
	}
	t.chunks[chunk], t.dropped[chunk] = "", 0
	if chunk != 0 {
		t.free = append(t.free, chunk)
	}
}

// Bytes returns about how many bytes of memory the texts take.
func (t *Texts) Bytes() int { return (len(t.chunks) - len(t.free)) * chunkBytes }
