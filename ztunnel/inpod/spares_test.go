// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSparesComeWithDemand(t *testing.T) {
	var s spares
	now := time.Now()
	want := func(at time.Time, n int) {
		t.Helper()
		if fd, got := s.take(at); fd != -1 || got != n {
			t.Errorf("take = %d, %d, want to make %d", fd, got, n)
		}
	}
	want(now, 1)
	want(now.Add(2*spareRate), 1) // now and then: no spares
	want(now.Add(2*spareRate+1), 2)
	want(now.Add(2*spareRate+2), 4)
	for range 5 {
		_, _ = s.take(now.Add(2*spareRate + 3))
	}
	want(now.Add(2*spareRate+4), maxSpares)
	want(now.Add(4*spareRate), 1)
}

func TestSparesAreTakenKeptAndClosed(t *testing.T) {
	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	open := func(fd int) bool {
		_, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		return err == nil
	}
	var s spares
	a, b, c := socket(), socket(), socket()
	s.put([]int{a, b})
	if fd, want := s.take(time.Now()); fd != b || want != 0 {
		t.Fatalf("take = %d, %d, want the spare %d", fd, want, b)
	}
	defer unix.Close(b)
	s.expire() // one was taken since: kept
	if !open(a) {
		t.Error("a spare of a busy pod is closed")
	}
	s.expire()
	if open(a) || len(s.fds) != 0 {
		t.Error("a spare that nobody took stays open")
	}
	s.close()
	s.put([]int{c})
	if open(c) {
		t.Error("a pod that is gone keeps a socket")
	}
}
