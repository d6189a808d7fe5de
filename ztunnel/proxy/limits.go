// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"sync"
)

// Limits bound what pods may use at a time.
type Limits struct {
	// Descriptors is how many the process may open for connections of pods, see [DescriptorsFor]. Zero means no limit.
	Descriptors int
	// Connections are the connections of all pods, ConnectionsPerPod those of one. Zero means no limit but the others.
	Connections, ConnectionsPerPod int
	// Memory is what the windows of tunnels may hold above 64 KiB each, in bytes. Zero means no limit but the windows' own.
	Memory int64
}

// What a connection may hold, in file descriptors.
const (
	fdsAccepted = 1 // outbound or plaintext: the accepted socket
	fdsPlain    = 5 // more of them if it goes on in plaintext: the other socket, and a pipe each way for the kernel to splice
	fdsStream   = 1 // a stream of HBONE: the socket to the application
	fdsHBONE    = 1 // a connection of HBONE, whoever opened it
)

// errLimit is the cause of every refusal for want of room.
var errLimit = errors.New("too many connections")

// DescriptorsFor returns how many descriptors may go to connections when the process may have open files.
//
// An eighth is kept for what has to work while pods have used up theirs: listeners, namespaces, the sockets to agent,
// control plane and certificate authority, admin pages. At least 128, if that leaves anything.
func DescriptorsFor(open uint64) int {
	const most = 1 << 30
	reserve := max(open/8, min(128, open/2))
	return int(min(open-reserve, most))
}

// budget shares the node's limits among pods.
//
// A pod may have no more than twice what is then still free. So a pod alone gets two thirds of the node, two that take all
// they can two fifths each, n pods 2/(2n+1) each, and half of that is left for the next one: nobody has to be told how many
// pods there will be, and no pod can leave another with nothing. What is given back is free at once.
type budget struct {
	limits Limits

	mu   sync.Mutex
	used use // by all pods
}

// use is what connections hold.
type use struct{ connections, descriptors int }

func (u use) plus(v use) use {
	return use{u.connections + v.connections, u.descriptors + v.descriptors}
}

func (u use) minus(v use) use {
	return use{u.connections - v.connections, u.descriptors - v.descriptors}
}

// account is what one pod uses. The budget's lock guards it.
type account struct {
	budget *budget
	used   use
}

// take takes want for the pod. The caller must release the lease. The error says which limit was reached.
func (a *account) take(want use) (*lease, error) {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.allowLocked(want, a.used.plus(want), b.used); err != nil {
		return nil, err
	}
	a.used, b.used = a.used.plus(want), b.used.plus(want)
	return &lease{account: a, holds: want}, nil
}

// allowLocked judges what a pod that wants more would use then, while all use what they do now.
func (b *budget) allowLocked(want, pod, all use) error {
	l := b.limits
	if want.connections == 0 { // growing: it was judged before
		return share("file descriptors", pod.descriptors, all.descriptors, l.Descriptors)
	}
	if most := l.ConnectionsPerPod; most > 0 && pod.connections > most {
		return fmt.Errorf("%w: the pod has %d, the limit of each pod", errLimit, most)
	}
	if err := share("connections", pod.connections, all.connections, l.Connections); err != nil {
		return err
	}
	return share("file descriptors", pod.descriptors, all.descriptors, l.Descriptors)
}

// share is the rule: what a pod has then is at most twice what is free now. The last of all is nobody's share.
func share(of string, pod, all, total int) error {
	if free := total - all; total > 0 && pod > 2*free {
		return fmt.Errorf("%w: the pod's share of %d %s is used up, %d are free", errLimit, total, of, max(free, 0))
	}
	return nil
}

// lease is what one connection holds of the pod's account.
type lease struct {
	account *account
	holds   use // guarded by the budget's lock
}

// grow takes more descriptors for a connection that turned out to need them.
func (l *lease) grow(descriptors int) error {
	more, err := l.account.take(use{descriptors: descriptors})
	if err != nil {
		return err
	}
	b := l.account.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	l.holds = l.holds.plus(more.holds)
	return nil
}

// release gives everything back. Releasing again does nothing.
func (l *lease) release() {
	b := l.account.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	l.account.used, b.used = l.account.used.minus(l.holds), b.used.minus(l.holds)
	l.holds = use{}
}
