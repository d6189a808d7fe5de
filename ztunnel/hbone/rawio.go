// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"io"
	"os"
	"syscall"
	"unsafe"
)

// maxCall bounds what one system call moves. Calls on sockets that never block are made without telling the scheduler,
// which would take a long call for a blocked one and start another thread; so none may be long.
const maxCall = 64 << 10

// readFD reads into p until it is full or nothing more has arrived; 0 and no error is the end. EAGAIN comes only without
// data. Other errors may come with it: the kernel tells each once.
func readFD(fd uintptr, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, errno := rawIO(syscall.SYS_READ, fd, p[n:min(len(p), n+maxCall)])
		switch {
		case errno == syscall.EINTR:
			continue
		case errno == syscall.EAGAIN && n > 0:
			return n, nil
		case errno != 0:
			return n, errno
		}
		n += m
		if m < maxCall {
			break
		}
	}
	return n, nil
}

// peekFD reports whether there is data, as readFD does, and leaves it there.
func peekFD(fd uintptr) (int, error) {
	var p [1]byte
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&p)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}

// writeFD writes p until all is written or the socket takes no more, which is the error EAGAIN.
func writeFD(fd uintptr, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, errno := rawIO(syscall.SYS_WRITE, fd, p[n:min(len(p), n+maxCall)])
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return n, errno
		}
		n += m
	}
	return n, nil
}

// rawIO is read(2) or write(2) with a p that is not empty.
func rawIO(call, fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// sink writes to a connection that has a descriptor, waiting in the poller when it takes no more. Other writers are asked
// to write.
type sink struct {
	w   io.Writer
	raw syscall.RawConn
	try func(fd uintptr) bool

	p   []byte
	n   int
	err error
}

func newSink(w io.Writer) *sink {
	k := &sink{w: w}
	if sc, ok := w.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			k.raw, k.try = raw, k.tryWrite
		}
	}
	return k
}

// Write implements io.Writer.
func (k *sink) Write(p []byte) (int, error) {
	if k.raw == nil {
		return k.w.Write(p)
	}
	k.p, k.n, k.err = p, 0, nil
	err := k.raw.Write(k.try)
	k.p = nil
	if err == nil {
		err = k.err
	}
	return k.n, err
}

// tryWrite makes one attempt; false makes the poller wait for room and try again.
func (k *sink) tryWrite(fd uintptr) bool {
	n, err := writeFD(fd, k.p[k.n:])
	k.n += n
	if err == syscall.EAGAIN {
		return false
	}
	if err != nil {
		k.err = os.NewSyscallError("write", err)
	}
	return true
}
