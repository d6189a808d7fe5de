// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// Header is one header field. Names are lower case.
type Header struct{ Name, Value string }

// findHeader returns the first value of the named header, or "".
func findHeader(headers []Header, name string) string {
	for _, h := range headers {
		if h.Name == name {
			return h.Value
		}
	}
	return ""
}

// headerEncoder turns header fields into HEADERS and CONTINUATION frames. Its state follows the order on the wire, so the
// writer's queue lock guards it.
type headerEncoder struct {
	buf bytes.Buffer
	enc *hpack.Encoder
}

func (e *headerEncoder) init() {
	e.enc = hpack.NewEncoder(&e.buf)
	e.enc.SetMaxDynamicTableSizeLimit(defaultTableSize)
}

func (e *headerEncoder) field(name, value string) {
	// A value that is new in each request would push the useful ones out of the peer's table.
	once := name == "traceparent" || name == "forwarded"
	_ = e.enc.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: once})
}

// request encodes a CONNECT (RFC 9113, section 8.5): no :scheme, no :path.
func (e *headerEncoder) request(authority string, headers []Header) {
	e.buf.Reset()
	e.field(":method", "CONNECT")
	e.field(":authority", authority)
	e.fields(headers)
}

func (e *headerEncoder) response(status int, headers []Header) {
	e.buf.Reset()
	e.field(":status", strconv.Itoa(status))
	e.fields(headers)
}

func (e *headerEncoder) fields(headers []Header) {
	for _, h := range headers {
		e.field(h.Name, h.Value)
	}
}

// frames returns what was encoded as frames of at most maxFrame bytes.
func (e *headerEncoder) frames(stream uint32, maxFrame int, endStream bool) []byte {
	out := make([]byte, 0, e.buf.Len()+frameHeaderLen)
	for first := true; first || e.buf.Len() > 0; first = false {
		part := e.buf.Next(maxFrame)
		h := frameHeader{length: len(part), typ: frameContinuation, stream: stream}
		if first {
			h.typ = frameHeaders
			if endStream {
				h.flags |= flagEndStream
			}
		}
		if e.buf.Len() == 0 {
			h.flags |= flagEndHeaders
		}
		out = append(h.appendTo(out), part...)
	}
	return out
}

// checkHeaders refuses what must not be put on the wire.
func checkHeaders(headers []Header) error {
	for _, h := range headers {
		if why := badField(h.Name, h.Value); why != "" {
			return &StreamError{Code: CodeInternal, reason: "header " + strconv.Quote(clip(h.Name)) + ": " + why}
		}
	}
	return nil
}

// headerBlock is a decoded header block with its pseudo fields taken out.
type headerBlock struct {
	method, authority, status string
	other                     string // a pseudo header that plain CONNECT must not have
	fields                    []Header
	malformed                 string // why, if it is
	size                      int    // as SETTINGS_MAX_HEADER_LIST_SIZE counts
	tooLarge                  bool
}

// headerDecoder collects the fragments of one header block at a time and decodes it. It belongs to the read loop.
type headerDecoder struct {
	dec     *hpack.Decoder
	maxList int // more is answered 431, or resets the stream
	raw     []byte
	frames  int
	cur     *headerBlock
}

// Limits on one header block. Over them the peer is attacking: a block within maxList has no use for them.
const (
	maxContinuations = 64
	blockPerList     = 4 // compressed block size, as a multiple of the header list limit
)

func (d *headerDecoder) init(maxList int) {
	d.maxList = maxList
	d.dec = hpack.NewDecoder(defaultTableSize, d.emit)
	d.dec.SetMaxStringLength(maxList * blockPerList)
}

// add takes one fragment of a block.
func (d *headerDecoder) add(fragment []byte) error {
	d.frames++
	if d.frames > maxContinuations || len(d.raw)+len(fragment) > d.maxList*blockPerList {
		return connErrorf(CodeEnhanceYourCalm, "header block of %d bytes in %d frames", len(d.raw)+len(fragment), d.frames)
	}
	d.raw = append(d.raw, fragment...)
	return nil
}

// decode returns the block that is complete. An error is one of compression, which ends the connection.
func (d *headerDecoder) decode() (*headerBlock, error) {
	d.cur = new(headerBlock)
	_, err := d.dec.Write(d.raw)
	if err == nil {
		err = d.dec.Close()
	}
	d.frames = 0
	if cap(d.raw) > smallBlock {
		d.raw = nil // a large block must not stay with an idle connection
	}
	d.raw = d.raw[:0]
	if err != nil {
		return nil, connErrorf(CodeCompression, "%v", err)
	}
	return d.cur, nil
}

func (d *headerDecoder) emit(f hpack.HeaderField) {
	b := d.cur
	b.size += int(f.Size())
	if b.size > d.maxList {
		b.tooLarge, b.fields = true, nil
		return
	}
	if f.IsPseudo() {
		b.pseudo(f)
		return
	}
	if why := badField(f.Name, f.Value); why != "" && b.malformed == "" {
		b.malformed = "header " + strconv.Quote(clip(f.Name)) + ": " + why
	}
	if b.fields == nil {
		b.fields = make([]Header, 0, 4)
	}
	b.fields = append(b.fields, Header{f.Name, f.Value})
}

func (b *headerBlock) pseudo(f hpack.HeaderField) {
	slot := &b.other
	value := f.Value
	switch f.Name {
	case ":method":
		slot = &b.method
	case ":authority":
		slot = &b.authority
	case ":status":
		slot = &b.status
	default:
		value = f.Name
	}
	switch {
	case b.malformed != "":
	case len(b.fields) > 0:
		b.malformed = f.Name + " after a header"
	case *slot != "" && (slot != &b.other || *slot == f.Name):
		b.malformed = f.Name + " after " + f.Name
	case badValue(f.Value):
		b.malformed = f.Name + ": bad byte in value"
	}
	*slot = value
}

// connectionHeaders must not appear in HTTP/2 (RFC 9113, section 8.2.2).
const connectionHeaders = " connection proxy-connection keep-alive transfer-encoding upgrade "

// badField says why a header field is malformed (RFC 9113, section 8.2.1), or "".
func badField(name, value string) string {
	switch {
	case name == "":
		return "empty name"
	case strings.Trim(name, tokenChars) != "":
		return "bad byte in name"
	case strings.Contains(connectionHeaders, " "+name+" "):
		return "not allowed in HTTP/2"
	case name == "te" && value != "trailers":
		return "not allowed in HTTP/2"
	case badValue(value):
		return "bad byte in value"
	}
	return ""
}

// tokenChars are those of RFC 9110, section 5.6.2, without upper case.
const tokenChars = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"

func badValue(v string) bool {
	for i := 0; i < len(v); i++ {
		if v[i] == 0 || v[i] == '\r' || v[i] == '\n' {
			return true
		}
	}
	return v != "" && (isBlank(v[0]) || isBlank(v[len(v)-1]))
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// checkRequest says what is wrong with a request: a status to answer, or a reason to reset the stream.
func (b *headerBlock) checkRequest() (status int, malformed string) {
	switch {
	case b.tooLarge:
		return 431, ""
	case b.malformed != "":
		return 0, b.malformed
	case b.status != "":
		return 0, ":status in a request"
	case b.method == "":
		return 0, "no :method"
	case b.method != "CONNECT":
		return 400, ""
	case b.other != "":
		return 0, b.other + " in CONNECT"
	case b.authority == "":
		return 0, "no :authority"
	}
	return 0, ""
}

// checkResponse returns the status of a response.
func (b *headerBlock) checkResponse() (status int, malformed string) {
	switch {
	case b.tooLarge:
		return 0, "header list too large"
	case b.malformed != "":
		return 0, b.malformed
	case b.method != "" || b.authority != "" || b.other != "":
		return 0, "request header in a response"
	case len(b.status) != 3:
		return 0, "bad :status"
	}
	n, err := strconv.Atoi(b.status)
	if err != nil || n < 100 {
		return 0, "bad :status"
	}
	return n, ""
}
