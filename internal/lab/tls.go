// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/tls"
	"errors"
	"fmt"
)

const (
	recordHandshake    = 22
	messageClientHello = 1
	messageServerHello = 2
	extensionVersions  = 43
)

// TLSVersions says, for each connection towards port that has payload, which version its ServerHello chose.
func (t Trace) TLSVersions(port uint16) (versions []uint16, err error) {
	for d, stream := range t.streams() {
		switch {
		case len(stream) == 0:
		case d.dst.Port() == port:
			if _, err := helloVersion(stream, messageClientHello); err != nil {
				return nil, fmt.Errorf("%s to %s: %w", d.src, d.dst, err)
			}
		case d.src.Port() == port:
			v, err := helloVersion(stream, messageServerHello)
			if err != nil {
				return nil, fmt.Errorf("%s to %s: %w", d.src, d.dst, err)
			}
			versions = append(versions, v)
		}
	}
	return versions, nil
}

// helloVersion reads the first record of a stream as the hello wanted and returns the highest version it names: of a
// ServerHello, the one chosen. RFC 8446, sections 4.1 and 4.2.1.
func helloVersion(stream []byte, want uint8) (uint16, error) {
	s := reader{rest: stream}
	if s.number(1) != recordHandshake {
		return 0, fmt.Errorf("no TLS handshake record: %.20q", stream)
	}
	s.take(2)
	record := reader{rest: s.sized(2)}
	if message := record.number(1); message != int(want) {
		return 0, fmt.Errorf("handshake message %d, want %d", message, want)
	}
	hello := reader{rest: record.sized(3)}
	legacy := hello.number(2)
	hello.take(32)
	hello.sized(1) // session
	if want == messageServerHello {
		hello.take(3) // cipher suite and compression
	} else {
		hello.sized(2)
		hello.sized(1)
	}
	if s.short || record.short || hello.short {
		return 0, errShort
	}
	version := supportedVersion(hello.sized(2))
	if version == 0 {
		version = legacy
	}
	return uint16(version), nil
}

// supportedVersion finds the extension that names versions and returns the highest; 0 if there is none.
func supportedVersion(extensions []byte) (highest int) {
	for e := (reader{rest: extensions}); len(e.rest) > 0; {
		kind, data := e.number(2), e.sized(2)
		if kind != extensionVersions {
			continue
		}
		v := reader{rest: data}
		v.take(len(data) % 2) // a client's list has a length before it
		for len(v.rest) > 0 {
			if version := v.number(2); version <= tls.VersionTLS13 { // else a reserved value of RFC 8701
				highest = max(highest, version)
			}
		}
	}
	return highest
}

var errShort = errors.New("the hello is cut short")

// reader takes big-endian fields off its front. Past the end it gives zeros and notes it.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.rest) {
		r.rest, r.short = nil, true
		return nil
	}
	head := r.rest[:n]
	r.rest = r.rest[n:]
	return head
}

func (r *reader) number(bytes int) (n int) {
	for _, b := range r.take(bytes) {
		n = n<<8 | int(b)
	}
	return n
}

// sized takes a field that has its length in front, in so many bytes.
func (r *reader) sized(bytes int) []byte { return r.take(r.number(bytes)) }
