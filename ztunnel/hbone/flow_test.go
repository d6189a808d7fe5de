// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"testing"
	"time"
)

// TestWindowIsGivenInTurn: streams that wait for the connection's window get it in the order in which they came, whoever
// wakes first, and nobody overtakes them.
func TestWindowIsGivenInTurn(t *testing.T) {
	w := new(sendWindow)
	w.init()
	for w.tryTake(maxSendFrame) > 0 {
		w.done(0)
	}
	const takers = 5
	turns := make(chan int, takers)
	for i := range takers {
		go func() {
			if got := w.take(maxSendFrame, func() bool { return false }); got != leastShare {
				t.Errorf("taker %d got %d bytes, want %d", i, got, leastShare)
			}
			turns <- i
		}()
		eventually(t, func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.queue) == i+1 })
	}
	for i := range takers {
		if !w.add(leastShare) {
			t.Fatal("overflow")
		}
		if n := w.tryTake(1); n != 0 {
			t.Errorf("somebody overtook taker %d and got %d bytes", i, n)
		}
		if got := <-turns; got != i {
			t.Errorf("turn %d was of taker %d", i, got)
		}
	}
}

// TestWindowOfALostTurn: who gives up lets the next one go.
func TestWindowOfALostTurn(t *testing.T) {
	w := new(sendWindow)
	w.init()
	for range maxUnsent {
		if w.tryTake(1) != 1 {
			t.Fatal("no window")
		}
	}
	if w.tryTake(1) != 0 {
		t.Fatalf("more than %d blocks on their way", maxUnsent)
	}
	stopped := make(chan struct{})
	got := make(chan int, 2)
	for i, stop := range []func() bool{
		func() bool {
			select {
			case <-stopped:
				return true
			default:
				return false
			}
		},
		func() bool { return false },
	} {
		go func() { got <- w.take(10, stop) }()
		eventually(t, func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.queue) == i+1 })
	}
	close(stopped)
	w.wake()
	if n := <-got; n != 0 {
		t.Errorf("one that was stopped got %d bytes", n)
	}
	w.done(0)
	if n := <-got; n != 10 {
		t.Errorf("the next one got %d bytes, want 10", n)
	}
}

// TestClaimedWindowIsGivenBack: of what was claimed for a block that may not be sent any more, nothing is lost.
func TestClaimedWindowIsGivenBack(t *testing.T) {
	const n = 1000
	for name, change := range map[string]func(*Stream){
		"a deadline":     func(s *Stream) { _ = s.SetWriteDeadline(time.Unix(1, 0)) },
		"a lower window": func(s *Stream) { s.addSendWindow(-maxWindow) },
		"a lower, then a deadline": func(s *Stream) {
			s.addSendWindow(-maxWindow)
			_ = s.SetWriteDeadline(time.Unix(1, 0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := unbounded()
			if got, err := s.claim(n); got != n || err != nil {
				t.Fatal(got, err)
			}
			change(s)
			done := make(chan error)
			go func() {
				_, err := s.sendBlock(newBlock(frameHeaderLen+n), n, false, true)
				done <- err
			}()
			eventually(t, func() bool {
				w := &s.c.flow
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.n == maxWindow && w.unsent == 0
			})
			_ = s.SetWriteDeadline(time.Unix(1, 0))
			if err := <-done; err != errDeadline {
				t.Errorf("got %v, want %v", err, errDeadline)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.sendWindow != maxWindow && s.sendWindow != 0 {
				t.Errorf("%d bytes of the stream's window are left, want all or none", s.sendWindow)
			}
		})
	}
}
