// SPDX-License-Identifier: Apache-2.0

package hbone

import "encoding/binary"

// RFC 9113, section 4.1.
const frameHeaderLen = 9

type frameType uint8

// RFC 9113, section 6.
const (
	frameData         frameType = 0x0
	frameHeaders      frameType = 0x1
	framePriority     frameType = 0x2
	frameRST          frameType = 0x3
	frameSettings     frameType = 0x4
	framePushPromise  frameType = 0x5
	framePing         frameType = 0x6
	frameGoAway       frameType = 0x7
	frameWindowUpdate frameType = 0x8
	frameContinuation frameType = 0x9
)

const (
	flagAck        = 0x1
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

type setting uint16

// RFC 9113, section 6.5.2.
const (
	settingHeaderTableSize   setting = 0x1
	settingEnablePush        setting = 0x2
	settingMaxStreams        setting = 0x3
	settingInitialWindow     setting = 0x4
	settingMaxFrameSize      setting = 0x5
	settingMaxHeaderListSize setting = 0x6
)

const (
	clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

	minMaxFrame      = 16 << 10
	maxMaxFrame      = 1<<24 - 1
	maxWindow        = 1<<31 - 1
	maxStreamID      = 1<<31 - 1
	defaultWindow    = 65535 // before SETTINGS
	defaultTableSize = 4096
)

// What this engine advertises: the numbers of a stock ztunnel, except that a stream's window begins small and grows to
// maxStreamWindow.
//
// The connection's window is given back on receipt, so that a stream nobody reads takes nothing from the others. What
// bounds memory are the streams' windows: a connection holds at most ourStreamWindow for each stream, and windowLoans
// more for all that have grown. Blocks may be half empty, and the first of a stream emptier, so for 200 streams it is at
// most 2 * (100 + 16) + 25 MiB. A [Memory] bounds what is above 64 KiB a stream, in the sum of all connections.
const (
	ourMaxFrame         = 1 << 20
	ourStreamWindow     = 512 << 10
	maxStreamWindow     = 4 << 20
	windowLoans         = 16 << 20
	ourConnWindow       = 16 << 20
	ourServerHeaderList = 64 << 10
	ourClientHeaderList = 16 << 10
	ourMaxStreams       = 200
)

// maxSendFrame bounds DATA frames sent: with its header such a frame fills 16 TLS records exactly.
const maxSendFrame = 256<<10 - frameHeaderLen

const tlsRecord = 16 << 10

// sendFrameSize is the most payload to send in one DATA frame to a peer that accepts frames of peerMax: the largest that
// fills whole TLS records together with the frame's header.
func sendFrameSize(peerMax int) int {
	if peerMax >= maxSendFrame {
		return maxSendFrame
	}
	return (peerMax+frameHeaderLen)/tlsRecord*tlsRecord - frameHeaderLen
}

type frameHeader struct {
	length int
	typ    frameType
	flags  uint8
	stream uint32
}

func (h frameHeader) has(flag uint8) bool { return h.flags&flag != 0 }

func parseFrameHeader(b *[frameHeaderLen]byte) frameHeader {
	return frameHeader{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		typ:    frameType(b[3]),
		flags:  b[4],
		stream: binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

func (h frameHeader) put(b []byte) {
	_ = b[8]
	b[0], b[1], b[2] = byte(h.length>>16), byte(h.length>>8), byte(h.length)
	b[3], b[4] = byte(h.typ), h.flags
	binary.BigEndian.PutUint32(b[5:], h.stream)
}

func (h frameHeader) appendTo(b []byte) []byte {
	var buf [frameHeaderLen]byte
	h.put(buf[:])
	return append(b, buf[:]...)
}

func appendSettings(b []byte, pairs ...uint32) []byte {
	b = frameHeader{length: len(pairs) / 2 * 6, typ: frameSettings}.appendTo(b)
	for i := 0; i+1 < len(pairs); i += 2 {
		b = binary.BigEndian.AppendUint16(b, uint16(pairs[i]))
		b = binary.BigEndian.AppendUint32(b, pairs[i+1])
	}
	return b
}

func appendWindowUpdate(b []byte, stream, n uint32) []byte {
	b = frameHeader{length: 4, typ: frameWindowUpdate, stream: stream}.appendTo(b)
	return binary.BigEndian.AppendUint32(b, n)
}

func appendReset(b []byte, stream uint32, code ErrCode) []byte {
	b = frameHeader{length: 4, typ: frameRST, stream: stream}.appendTo(b)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

func appendPing(b []byte, flags uint8, data [8]byte) []byte {
	b = frameHeader{length: 8, typ: framePing, flags: flags}.appendTo(b)
	return append(b, data[:]...)
}

func appendGoAway(b []byte, last uint32, code ErrCode, debug string) []byte {
	b = frameHeader{length: 8 + len(debug), typ: frameGoAway}.appendTo(b)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, debug...)
}
