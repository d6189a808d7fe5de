// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"io"
	"sync"
	"time"
)

const (
	// batchTime is how long lines that may wait do so, batchBytes how many.
	batchTime  = 20 * time.Millisecond
	batchBytes = 32 << 10
)

// sink keeps lines whole and in order when several goroutines write. Of lines that may wait the first is written at once,
// and those that follow soon share a write: a system call each would cost a short connection as much as its policy.
type sink struct {
	w io.Writer

	mu      sync.Mutex
	pending []byte
	waiting bool // for the timer
	ended   bool // no line may wait any more
}

// write writes a line, after those that wait.
func (s *sink) write(line []byte, mayWait bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	mayWait = mayWait && !s.ended
	if mayWait && s.waiting && len(s.pending)+len(line) <= batchBytes {
		s.pending = append(s.pending, line...)
		return nil
	}
	if mayWait && !s.waiting {
		s.waiting = true
		time.AfterFunc(batchTime, s.tick)
	}
	if len(s.pending) == 0 {
		_, err := s.w.Write(line)
		return err
	}
	s.pending = append(s.pending, line...)
	return s.flushLocked()
}

func (s *sink) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) == 0 {
		s.waiting = false
		return
	}
	_ = s.flushLocked()
	time.AfterFunc(batchTime, s.tick)
}

// end writes what waits; later lines are written at once.
func (s *sink) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if len(s.pending) == 0 {
		return nil
	}
	return s.flushLocked()
}

func (s *sink) flushLocked() error {
	_, err := s.w.Write(s.pending)
	s.pending = s.pending[:0]
	return err
}
