// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"io"
	"net"
	"runtime"
	"testing"
)

// inUse is the memory of heap and stacks after all that can be freed has been.
func inUse() uint64 {
	for range 3 { // pools survive one collection
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// TestIdleStreamsHoldNoBuffers: a spliced connection that has moved data and is idle now costs, both ends together, a few
// goroutine stacks and no buffer. The figure includes the test's own two TCP connections.
func TestIdleStreamsHoldNoBuffers(t *testing.T) {
	_, open := proxied(t)
	const streams = 200
	move := func(from, to *net.TCPConn) {
		sent := make(chan struct{})
		go func() { defer close(sent); _, _ = io.Copy(from, source64(1<<20, 1)) }()
		if _, err := io.CopyN(io.Discard, to, 1<<20); err != nil {
			t.Error(err)
		}
		<-sent
	}
	client, server, _ := open() // what a connection costs once
	move(client, server)
	before := inUse()
	for range streams {
		client, server, _ := open()
		move(client, server)
		move(server, client)
	}
	per := (int64(inUse()) - int64(before)) / streams
	t.Logf("%d bytes per idle stream, both ends and the test's TCP connections", per)
	if per > 40<<10 {
		t.Errorf("%d bytes per idle stream, want at most 40 KiB", per)
	}
}
