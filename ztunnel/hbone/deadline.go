// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"os"
	"time"
)

// SetDeadline sets both deadlines; the zero time means none.
func (s *Stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline bounds Read.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rdl.set(t, s.wakeReader)
	s.rcond.Broadcast()
	return nil
}

// SetWriteDeadline bounds the wait for the peer's window in Write.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	s.wdl.set(t, s.wakeWriter)
	s.mu.Unlock()
	s.wakeWriter()
	return nil
}

func (s *Stream) wakeReader() {
	s.mu.Lock()
	s.rcond.Broadcast()
	s.mu.Unlock()
}

func (s *Stream) wakeWriter() {
	s.mu.Lock()
	s.wcond.Broadcast()
	s.mu.Unlock()
	s.c.flow.wake()
}

// deadline is a point in time that wakes whoever waits on a condition.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) set(t time.Time, wake func()) {
	d.stop()
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), wake)
	}
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// errWriteClosed is what Write returns after CloseWrite.
var errWriteClosed = errors.New("write after CloseWrite")

var errDeadline = os.ErrDeadlineExceeded
