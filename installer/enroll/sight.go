// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/ztunnels"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// errElsewhere reports that a pod's path leads to another network namespace than the one ADD was called for.
var errElsewhere = errors.New("is another network namespace now")

// look reports whether the pod's namespace has ended, and otherwise what keeps it from being seen.
//
// That its path is gone proves nothing: a live pod would go on in clear. The kernel has to say that nothing is left to
// capture: there are no pins (those of a namespace that ended are collected), or no interface is left in the namespace.
func (e *Enroller) look(p *pod) (gone bool, err error) {
	err = pathLeadsTo(p)
	if err == nil {
		return false, nil
	}
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, errElsewhere) {
		return false, err
	}
	attached, aerr := e.cfg.Node.Pod(pinID(p.id()))
	if errors.Is(aerr, bpf.ErrNotAttached) {
		return true, nil
	}
	if aerr == nil {
		_ = attached.Close()
	}
	if e.isDeserted(p) {
		return true, nil
	}
	return false, fmt.Errorf("kept in the mesh, as its network namespace is alive: %w", err)
}

// pathLeadsTo opens nothing as long as all is well. The inode will do then: it is not given out again while the agent
// holds the namespace open, and who enrols a pod makes sure by the cookie.
func pathLeadsTo(p *pod) error {
	var st unix.Stat_t
	if err := unix.Stat(p.sandbox.Netns, &st); err != nil {
		return fmt.Errorf("netns %q: %w", p.sandbox.Netns, err)
	}
	if st.Ino == p.netns.Inode {
		return nil
	}
	at, err := namespaceAt(p.sandbox.Netns)
	if err != nil {
		return err
	}
	return p.sameNamespace(at)
}

func (p *pod) sameNamespace(at namespace) error {
	if at == p.netns {
		return nil
	}
	return fmt.Errorf("netns %q %w: it was %d when the pod was added, and is %d", p.sandbox.Netns, errElsewhere, p.netns.Inode, at.Inode)
}

// isDeserted reports whether the namespace, which the agent itself keeps alive, has nothing left that leads out of it.
func (e *Enroller) isDeserted(p *pod) bool {
	e.mu.Lock()
	in := p.inside
	e.mu.Unlock()
	if in == nil {
		return false
	}
	links, err := in.links()
	return err == nil && !slices.ContainsFunc(links, func(l net.Interface) bool {
		isOurs := slices.ContainsFunc(e.interfacesOf(p), func(i nodeapi.Interface) bool { return i.Name == l.Name })
		return l.Flags&net.FlagLoopback == 0 && (isOurs || l.Flags&net.FlagUp != 0)
	})
}

func (in *inside) links() (links []net.Interface, err error) {
	err = in.ns.Do(func() (err error) {
		links, err = net.Interfaces()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list interfaces of pod: %w", err)
	}
	return links, nil
}

// findAgain takes a lost pod up as soon as its namespace can be opened.
func (e *Enroller) findAgain(ctx context.Context, p *pod) error {
	attached, err := e.cfg.Node.Pod(pinID(p.id()))
	if errors.Is(err, bpf.ErrNotAttached) {
		e.setPhase(p, known) // Its pins were of a namespace that ended, or somebody's DEL took them.
		return nil
	}
	if err != nil {
		return err
	}
	info := attached.Info()
	_ = attached.Close()
	if len(p.sandbox.Interfaces) == 0 { // Its record was lost too.
		again, err := e.podFromPins(info)
		if err != nil {
			return err
		}
		e.mu.Lock()
		again.problem, again.seenBy = p.problem, p.seenBy // Ztunnel may not serve it yet.
		e.mu.Unlock()
		p = again
	}
	in, err := openInside(p)
	if err != nil {
		return err
	}
	e.resume(p, in)
	if err := e.repair(ctx, p); err != nil {
		return err
	}
	if err := e.update(ctx, p, ztunnels.Served); err != nil && !errors.Is(err, ztunnels.ErrNone) {
		return err
	}
	e.setProblem(p, "", Everything)
	return nil
}
