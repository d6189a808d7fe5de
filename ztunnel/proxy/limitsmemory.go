// SPDX-License-Identifier: Apache-2.0

package proxy

import "sync/atomic"

// leastLoan is what is worth an update of a window, in bytes.
const leastLoan = 4 << 10

// memory is what the windows of all pods' tunnels hold of [Limits.Memory].
type memory struct {
	lent  atomic.Int64
	short atomic.Uint64 // how often there was less than asked for
}

// podMemory is what one pod's windows hold. It implements [hbone.Memory], without a lock.
//
// A pod may have no more than is then still free: half of all if it is alone, 1/(n+1) each if n pods take all they can. A
// pod that has more than that, because another came, gives back as its windows are read. One whose windows are full and
// unread keeps what it has, but never leaves the next pod less than a half of what was free before.
type podMemory struct {
	node  *memory
	total int64
	lent  atomic.Int64
}

// Borrow implements [hbone.Memory]. No loan is more than an eighth of what the pod may still have, so that there is
// something for its next stream.
func (m *podMemory) Borrow(n int) int {
	for {
		all := m.node.lent.Load()
		room := (m.total - all - m.lent.Load()) / 2 // with n more lent, the pod has n more and n less are free
		lend := min(int64(n), room/8)
		if lend < int64(min(n, leastLoan)) {
			m.node.short.Add(1)
			return 0
		}
		if m.node.lent.CompareAndSwap(all, all+lend) {
			m.lent.Add(lend)
			if lend < int64(n) {
				m.node.short.Add(1)
			}
			return int(lend)
		}
	}
}

// Return implements [hbone.Memory].
func (m *podMemory) Return(n int) {
	m.lent.Add(-int64(n))
	m.node.lent.Add(-int64(n))
}

// Short implements [hbone.Memory].
func (m *podMemory) Short() bool { return m.lent.Load() > m.total-m.node.lent.Load() }

// Memory returns how many bytes the windows of tunnels hold above their least, and how often one got less than it asked
// for, since the start.
func (p *Proxy) Memory() (lent int64, short uint64) {
	return p.memory.lent.Load(), p.memory.short.Load()
}
