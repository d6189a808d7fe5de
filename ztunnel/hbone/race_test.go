// SPDX-License-Identifier: Apache-2.0

package hbone

import "testing"

// TestResetOvertakesAnEndThatIsNotQueued: CloseWrite waits for its turn to write and Reset comes first. The peer has to
// get one of END_STREAM and RST_STREAM.
func TestResetOvertakesAnEndThatIsNotQueued(t *testing.T) {
	rs := newRawServer(t)
	result := rs.connectAsync(t.Context())
	p := rs.accept()
	id := p.request()
	p.headers(id, false, ":status", "200")
	r := <-result
	must(t, r.err)
	must(t, p.WriteData(id, true, nil))
	s, w := r.s, &r.s.c.w
	eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.remoteEnd })

	w.lock.Lock()
	for queued := 0; queued <= midBlock; queued += frameHeaderLen + 8 {
		must(t, w.push(appendPing(nil, flagAck, [8]byte{})))
	}
	closed := make(chan error, 1)
	go func() { closed <- s.CloseWrite() }()
	eventually(t, func() bool { return w.waiting.Load() == 1 })
	s.Reset(CodeConnect)
	w.unlock(nil)
	p.wantReset(id, CodeConnect)
	wantStreamError(t, <-closed, CodeConnect, false)
}
