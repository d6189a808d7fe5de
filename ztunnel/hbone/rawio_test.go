// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"fmt"
	"net"
	"testing"
)

// TestResetAfterAnyAmountOfData: the kernel tells a reset once, and whichever read call meets it must not take it for an
// end of data, not even after both ends have said that they send no more.
func TestResetAfterAnyAmountOfData(t *testing.T) {
	for _, size := range []int{1, maxCall - 1, maxCall, maxCall + 1, 2 * maxCall} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			got, err := readAll(newSource(resetAfter(t, size), unbounded()))
			if got > size || !isReset(err) {
				t.Errorf("source: got %d bytes and %v, want at most %d and a reset", got, err, size)
			}
			w := newWire(resetAfter(t, size))
			err = nil
			for buf := make([]byte, bigBlock); err == nil; {
				_, err = w.Read(buf)
			}
			if !isReset(err) {
				t.Errorf("wire: got %v, want a reset", err)
			}
		})
	}
}

func readAll(src *source) (n int, err error) {
	for {
		b, err := src.read()
		if b != nil {
			n += b.w - frameHeaderLen
			b.free()
		}
		if err != nil {
			return n, err
		}
	}
}

// resetAfter returns a connection whose other end sent so much and then reset it.
func resetAfter(t *testing.T, size int) *net.TCPConn {
	near, app := tcpPair(t)
	_, err := app.Write(make([]byte, size))
	must(t, err)
	must(t, app.SetLinger(0))
	must(t, app.Close())
	eventually(t, func() bool { return tcpClosed(near) })
	return near
}

// TestSinkTakesConnectionsThatAreWrapped, as those of a pool are: they have a descriptor too.
func TestSinkTakesConnectionsThatAreWrapped(t *testing.T) {
	near, _ := tcpPair(t)
	if newSink(struct{ *net.TCPConn }{near}).raw == nil {
		t.Error("a wrapped TCP connection is written the slow way")
	}
}

// unbounded is a stream whose windows are as good as open for ever.
func unbounded() *Stream {
	s := &Stream{c: new(conn), sendWindow: maxWindow}
	s.rcond.L, s.wcond.L = &s.mu, &s.mu
	s.c.flow.init()
	s.c.flow.add(maxWindow - defaultWindow)
	return s
}
