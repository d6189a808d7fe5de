// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"fmt"
	"net"
	"strconv"
)

var (
	// ErrTLS is wrapped by every error of a TLS handshake: bad certificates, no ALPN h2, timeout.
	ErrTLS = errors.New("tls handshake")
	// ErrDial is wrapped by every error of the dial function given to [Pool.Connect].
	ErrDial = errors.New("dial")
	// ErrGoAway reports a connection that the peer is closing and that did not process the request.
	ErrGoAway = errors.New("peer is going away")
	// ErrPingTimeout reports a peer that did not answer a PING in time.
	ErrPingTimeout = errors.New("ping timeout")
	// ErrPoolClosed is returned by [Pool.Connect] after [Pool.Close].
	ErrPoolClosed = errors.New("pool closed")
	// ErrServerClosed is returned by [Server.ServeConn] after [Server.Shutdown].
	ErrServerClosed = errors.New("server closed")
	// ErrAuthority is wrapped by every error of [ParseAuthority].
	ErrAuthority = errors.New("bad authority")
)

// ErrCode is an HTTP/2 error code (RFC 9113, section 7).
type ErrCode uint32

// The codes of RFC 9113, section 7.
const (
	CodeNo                 ErrCode = 0x0
	CodeProtocol           ErrCode = 0x1
	CodeInternal           ErrCode = 0x2
	CodeFlowControl        ErrCode = 0x3
	CodeSettingsTimeout    ErrCode = 0x4
	CodeStreamClosed       ErrCode = 0x5
	CodeFrameSize          ErrCode = 0x6
	CodeRefusedStream      ErrCode = 0x7
	CodeCancel             ErrCode = 0x8
	CodeCompression        ErrCode = 0x9
	CodeConnect            ErrCode = 0xa
	CodeEnhanceYourCalm    ErrCode = 0xb
	CodeInadequateSecurity ErrCode = 0xc
	CodeHTTP11Required     ErrCode = 0xd
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
	"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

// String gives the name that RFC 9113 uses.
func (c ErrCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return "0x" + strconv.FormatUint(uint64(c), 16)
}

// StatusError is what [Pool.Connect] returns when the peer answered with anything but 200.
type StatusError struct {
	Code int
}

func (e *StatusError) Error() string { return fmt.Sprintf("peer answered %d", e.Code) }

// StreamError ends one stream and leaves its connection usable.
type StreamError struct {
	Code ErrCode
	// Remote is true when the peer sent RST_STREAM, false when this end did.
	Remote bool
	reason string
}

func (e *StreamError) Error() string {
	who := "stream reset"
	if e.Remote {
		who = "stream reset by peer"
	}
	if e.reason != "" {
		return fmt.Sprintf("%s: %s: %s", who, e.Code, e.reason)
	}
	return who + ": " + e.Code.String()
}

// ConnError ends a whole connection, and with it every stream on it.
type ConnError struct {
	Code ErrCode
	// Remote is true when the peer sent GOAWAY with this code, false when this end found the peer at fault.
	Remote bool
	reason string
}

func (e *ConnError) Error() string {
	who := "connection error"
	if e.Remote {
		who = "connection error from peer"
	}
	if e.reason != "" {
		return fmt.Sprintf("%s: %s: %s", who, e.Code, e.reason)
	}
	return who + ": " + e.Code.String()
}

func connErrorf(code ErrCode, format string, args ...any) *ConnError {
	return &ConnError{Code: code, reason: fmt.Sprintf(format, args...)}
}

// opError says in which phase err happened: errors.Is finds the phase's sentinel and the cause.
type opError struct {
	phase error
	err   error
}

func (e *opError) Error() string { return e.phase.Error() + ": " + e.err.Error() }

func (e *opError) Unwrap() []error { return []error{e.phase, e.err} }

// Timeout makes a dial or handshake that ran out of time a net.Error timeout.
func (e *opError) Timeout() bool {
	var ne net.Error
	return errors.As(e.err, &ne) && ne.Timeout()
}
