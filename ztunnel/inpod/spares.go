// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Spare sockets of a pod that connects often are made several at a time: two threads have to take turns for each visit to
// the pod's namespace, which costs more than all sockets made there. A pod that connects now and then has none.
const (
	maxSpares = 16
	// spareRate is how soon one visit must follow another for the next to bring more.
	spareRate = time.Second
	// spareTime is how long spares that nobody takes are kept.
	spareTime = 5 * time.Second
)

// spares are the sockets of one family that a pod has ready: made in its namespace, prepared, not bound.
type spares struct {
	mu     sync.Mutex
	fds    []int
	batch  int // of the last visit
	visit  time.Time
	taken  bool // since the timer was set
	timer  *time.Timer
	closed bool
}

// take returns a spare, or else how many sockets to make.
func (s *spares) take(now time.Time) (fd, want int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.fds); n > 0 {
		fd = s.fds[n-1]
		s.fds = s.fds[:n-1]
		s.taken = true
		return fd, 0
	}
	if now.Sub(s.visit) < spareRate {
		s.batch = min(2*s.batch, maxSpares)
	} else {
		s.batch = 1
	}
	s.visit = now
	return -1, s.batch
}

// put keeps prepared sockets for later.
func (s *spares) put(fds []int) {
	if len(fds) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	room := maxSpares - len(s.fds)
	if s.closed {
		room = 0
	}
	if len(fds) > room {
		closeAll(fds[room:])
		fds = fds[:room]
	}
	s.fds = append(s.fds, fds...)
	if len(s.fds) > 0 && s.timer == nil {
		s.taken = false
		s.timer = time.AfterFunc(spareTime, s.expire)
	}
}

// expire closes spares that nobody wants.
func (s *spares) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = nil
	if s.taken && !s.closed {
		s.taken = false
		s.timer = time.AfterFunc(spareTime, s.expire)
		return
	}
	closeAll(s.fds)
	s.fds = nil
}

// close closes all that are left and those that are put later.
func (s *spares) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	closeAll(s.fds)
	s.fds = nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// socket returns a TCP socket of the pod, prepared, not bound. The caller closes it.
func (p *Pod) socket(ctx context.Context, family int) (int, error) {
	spares := &p.spares4
	if family == unix.AF_INET6 {
		spares = &p.spares6
	}
	fd, want := spares.take(time.Now())
	if want == 0 {
		return fd, nil
	}
	fds, err := p.sockets.openSome(ctx, p.ns, family, unix.SOCK_STREAM, want)
	if err != nil {
		return -1, err
	}
	spares.put(fds[1:])
	return fds[0], nil
}
