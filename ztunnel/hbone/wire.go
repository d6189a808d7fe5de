// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// recordHeader is the size of a TLS record header (RFC 8446, section 5.1).
const recordHeader = 5

// wire is the net.Conn below crypto/tls. It reads 256 KiB at a time, joins the records that crypto/tls writes one by one
// into one write per flush, and holds no buffer while it waits.
//
// Read gives crypto/tls at most one record per call, so crypto/tls never hides a second one from buffered.
type wire struct {
	net.Conn
	raw syscall.RawConn // nil if Conn has no file descriptor
	to  *sink

	// beforeBlock, if set, runs in the reader's goroutine each time Read is about to wait for the peer.
	beforeBlock func()

	// The read side belongs to the goroutine in Read.
	in     *block
	inErr  error // of try
	after  error // what comes after in
	header [recordHeader]byte
	headN  int // bytes of header seen
	left   int // bytes of the current record not yet read by crypto/tls
	tryFn  func(fd uintptr) bool
	reads  atomic.Uint64 // reads that brought data, for keepalive

	wmu      sync.Mutex
	out      *block
	buffered bool // false during the handshake: each write goes out at once
}

func newWire(conn net.Conn) *wire {
	w := &wire{Conn: conn, to: newSink(conn)}
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			w.raw, w.tryFn = raw, w.try
		}
	}
	return w
}

// Read implements net.Conn for crypto/tls.
func (w *wire) Read(p []byte) (int, error) {
	if w.in == nil {
		if err := w.fill(); err != nil {
			return 0, err
		}
	}
	n := 0
	if w.left == 0 {
		n = copy(p, w.in.data())
		n = min(n, recordHeader-w.headN)
		w.headN += copy(w.header[w.headN:], p[:n])
		w.in.r += n
		if w.headN < recordHeader {
			w.release()
			return n, nil
		}
		w.headN, w.left = 0, int(binary.BigEndian.Uint16(w.header[3:]))
	}
	body := p[n:min(len(p), n+w.left)]
	m := copy(body, w.in.data())
	w.in.r += m
	w.left -= m
	w.release()
	return n + m, nil
}

// release gives the read block back as soon as it is empty.
func (w *wire) release() {
	if w.in.len() == 0 {
		w.in.free()
		w.in = nil
	}
}

// ready reports whether a whole record waits in the read block, so that the next Read of crypto/tls need not wait.
func (w *wire) ready() bool {
	if w.in == nil || w.headN != 0 || w.left != 0 || w.in.len() < recordHeader {
		return false
	}
	head := w.in.data()
	return len(head) >= recordHeader+int(binary.BigEndian.Uint16(head[3:]))
}

// waiting is how many bytes wait in the read block.
func (w *wire) waiting() int {
	if w.in == nil {
		return 0
	}
	return w.in.len()
}

func (w *wire) fill() error {
	if w.raw == nil {
		return w.fillPlain()
	}
	if err := w.after; err != nil {
		return err
	}
	if err := w.raw.Read(w.tryFn); err != nil {
		return err
	}
	w.reads.Add(1)
	err := w.inErr
	w.inErr = nil
	return err
}

// try makes one attempt to read. It is called by the runtime's poller and returns false to wait for readability.
func (w *wire) try(fd uintptr) bool {
	b := newBlock(bigBlock)
	n, err := readFD(fd, b.b)
	if n > 0 {
		b.w = n
		w.in = b
		if err != nil {
			w.after = os.NewSyscallError("read", err)
		}
		return true
	}
	b.free()
	if err == syscall.EAGAIN {
		if w.beforeBlock != nil {
			w.beforeBlock()
		}
		return false
	}
	w.inErr = io.EOF
	if err != nil {
		w.inErr = os.NewSyscallError("read", err)
	}
	return true
}

// fillPlain serves connections without a descriptor, such as a Stream that carries another TLS connection. They keep a
// small block while they wait.
func (w *wire) fillPlain() error {
	if w.beforeBlock != nil {
		w.beforeBlock()
	}
	b := newBlock(pageBlock)
	n, err := w.Conn.Read(b.b)
	if n == 0 {
		b.free()
		if err == nil {
			err = io.ErrNoProgress
		}
		return err
	}
	w.reads.Add(1)
	b.w = n
	w.in = b
	return nil
}

// Write implements net.Conn for crypto/tls. Once buffering it waits only when the block is full.
func (w *wire) Write(p []byte) (int, error) {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	if !w.buffered {
		return w.to.Write(p)
	}
	for rest := p; len(rest) > 0; {
		if w.out == nil {
			w.out = newBlock(bigBlock)
		}
		n := copy(w.out.b[w.out.w:], rest)
		w.out.w += n
		rest = rest[n:]
		if w.out.room() == 0 {
			if err := w.flushLocked(); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}

// buffer switches to joined writes; from now on nothing leaves without flush.
func (w *wire) buffer() {
	w.wmu.Lock()
	w.buffered = true
	w.wmu.Unlock()
}

func (w *wire) flush() error {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	return w.flushLocked()
}

func (w *wire) flushLocked() error {
	if w.out == nil {
		return nil
	}
	b := w.out
	w.out = nil
	_, err := w.to.Write(b.data())
	b.free()
	return err
}

// SetWriteDeadline does nothing: crypto/tls sets one that is in the past when it closes, which would keep the last
// records from leaving. The engine sets deadlines on Conn itself.
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// Close sends what is left, as long as the write deadline allows, and closes.
func (w *wire) Close() error {
	_ = w.flush()
	return w.Conn.Close()
}

// closeWrite sends FIN after what was flushed, if the connection knows how.
func (w *wire) closeWrite() error {
	if c, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// drop frees the read block after the last Read.
func (w *wire) drop() {
	if w.in != nil {
		w.in.free()
		w.in = nil
	}
}
