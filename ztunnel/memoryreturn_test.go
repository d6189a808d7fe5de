// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"runtime"
	"testing"
	"time"
)

func TestMemoryOfConnectionsGoesBackOnceTheyHaveGone(t *testing.T) {
	const size = 64 << 20
	held := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		held[i] = 1
	}
	tick, counts := make(chan time.Time), make(chan int)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		returnMemory(ctx, tick, func() int { return <-counts })
	}()
	look := func(connections int) {
		tick <- time.Time{}
		counts <- connections
	}
	look(5000)
	before := released()
	runtime.KeepAlive(held)
	held = nil
	look(0)
	look(0) // taken once the look before is over
	cancel()
	<-done
	if got := int64(released() - before); got < size/2 {
		t.Errorf("%d bytes went back to the kernel, want most of %d", got, size)
	}
}

// released is how much memory of the heap is the kernel's again, in bytes.
func released() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapReleased
}

func TestFewConnectionsThatGoCostNoCollection(t *testing.T) {
	var l waterLevel
	for i, step := range []struct {
		connections int
		fell        bool
	}{
		{0, false}, {900, false}, {0, false}, // too few
		{10000, false}, {9000, false}, {5001, false}, {5000, true}, // not before half have gone
		{5000, false}, {4000, false}, {2500, true}, {1600, false}, {1500, false}, {1250, true}, {0, true}, {0, false},
	} {
		if got := l.fell(step.connections); got != step.fell {
			t.Errorf("step %d, %d connections: got %v, want %v", i, step.connections, got, step.fell)
		}
	}
}
