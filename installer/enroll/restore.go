// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// Restore rebuilds what an agent before this one knew, from pins, records and the pods' namespaces, and forgets
// pods that are gone. Pods in the mesh go on undisturbed; call it before any ztunnel is accepted, so that the
// first snapshot names them all.
func (e *Enroller) Restore() error {
	records, err := e.loadRecords()
	if err != nil {
		return err
	}
	// First, so that what is pinned is alive.
	if err := e.collect(); err != nil {
		e.log.Warn("collect", "err", err)
	}
	infos, err := e.cfg.Node.Pods()
	if err != nil {
		e.log.Warn("some attached pods cannot be read", "err", err)
	}
	pinned := map[string]bpf.PodInfo{} // by container id
	for _, info := range infos {
		pinned[info.ContainerID] = info
	}
	for _, r := range records {
		info, isPinned := pinned[r.Sandbox.ContainerID]
		if isPinned && info.NetnsCookie != r.Netns.Cookie {
			continue // The pins are newer or older than the record; go by the pins, below.
		}
		delete(pinned, r.Sandbox.ContainerID)
		p := newPod(r.Sandbox, r.Netns)
		p.interfaces, p.fate, p.lastAccount = r.Interfaces, r.Fate, r.Account
		if isPinned {
			p.settings = attachedSettings(info)
		}
		e.restorePod(p, isPinned)
	}
	for _, info := range pinned {
		p, err := e.podFromPins(info)
		if err != nil {
			e.podLog(p).Warn("record of pod is lost and its namespace cannot be read", "err", err)
		}
		e.restorePod(p, true)
	}
	e.repairHost()
	if err := e.dropStaleWorkloads(); err != nil {
		e.log.Warn("take back what was published of pods that are gone; tried again later", "err", err)
	}
	return nil
}

// restorePod takes a pod up again. One whose ADD died between attaching and serving is taken for served: the next
// comparison gives it what it lacks. Only a pod that has neither pins nor a namespace is gone.
func (e *Enroller) restorePod(p *pod, isPinned bool) {
	if p.fate != stays {
		p.phase = leaving
		e.adopt(p)
		return
	}
	in, err := openInside(p)
	switch {
	case err == nil && isPinned:
		e.resume(p, in)
		return
	case err == nil:
		in.close()
	case isPinned:
		p.phase, p.problem, p.seenBy = lost, err.Error(), Everything
		e.podLog(p).Error("pod cannot be served: its programs are attached, but its network namespace cannot be opened", "err", err)
	case errors.Is(err, unix.ENOENT) || errors.Is(err, errElsewhere):
		e.podLog(p).Info("pod is gone", "err", err)
		if err := e.deleteRecord(p.id()); err != nil {
			e.podLog(p).Warn("clean up after pod", "err", err)
		}
		return
	}
	e.adopt(p)
}

// resume is for a pod found in the mesh.
func (e *Enroller) resume(p *pod, in *inside) {
	in.captureDNS(e.settingsInForce(p).CaptureDNS)
	e.adopt(p)
	account := e.serviceAccount(p)
	e.announceInside(p, in, account)
	e.setPhase(p, served)
	e.cfg.Ztunnels.Put(ztunnelPod(p, in.ns, account))
	e.podLog(p).Info("pod found in the mesh", "addresses", p.sandbox.Addresses())
}

// adopt has the agent know a pod of before its start. A lost pod without interfaces is not put on record: what is
// known of it is in the pins.
func (e *Enroller) adopt(p *pod) {
	if len(p.sandbox.Interfaces) > 0 {
		if err := e.saveRecord(p); err != nil {
			e.podLog(p).Warn("remember pod", "err", err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pods[p.id()] = p
}

// podFromPins makes up for a lost record. Addresses come from the pod itself: on error, which says why it cannot be
// read, they and the interfaces are missing.
func (e *Enroller) podFromPins(info bpf.PodInfo) (*pod, error) {
	sandbox := nodeapi.Pod{
		UID: info.UID, Namespace: info.Namespace, Name: info.Name, ContainerID: info.ContainerID, Netns: info.NetnsPath,
		Network: info.Network,
	}
	at := namespace{Inode: info.NetnsInode, Cookie: info.NetnsCookie}
	p := newPod(sandbox, at)
	p.settings = attachedSettings(info)
	in, err := openInside(p)
	if err != nil {
		return p, err
	}
	defer in.close()
	err = in.ns.Do(func() (err error) {
		sandbox.Interfaces, err = interfacesHere(info)
		return err
	})
	if err != nil {
		return p, err
	}
	p = newPod(sandbox, at)
	p.settings = attachedSettings(info)
	return p, nil
}

// interfacesHere reads the pinned interfaces in the calling thread's namespace.
func interfacesHere(info bpf.PodInfo) ([]nodeapi.Interface, error) {
	var found []nodeapi.Interface
	for n, name := range info.Interfaces {
		link, err := net.InterfaceByName(name)
		if err != nil {
			continue // Taken away, as a second network's DEL does, or renamed.
		}
		i := nodeapi.Interface{Name: name}
		if len(info.HostIfindexes) == len(info.Interfaces) {
			i.HostIfindex = info.HostIfindexes[n]
		}
		addrs, err := link.Addrs()
		if err != nil {
			return nil, fmt.Errorf("addresses of %q: %w", name, err)
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().IsGlobalUnicast() {
				i.Addresses = append(i.Addresses, prefix)
			}
		}
		found = append(found, i)
	}
	return found, nil
}

// collect removes the pins of namespaces that ended, and what crashes left.
func (e *Enroller) collect() error {
	removed, err := e.cfg.Node.Collect(func(bpf.PodInfo) bool { return true })
	if len(removed) > 0 {
		e.log.Info("stale pins removed", "pins", removed)
	}
	if err != nil {
		return fmt.Errorf("collect stale pins: %w", err)
	}
	return nil
}

// dropStaleWorkloads takes back what this node published of pods that are not in the mesh anymore: of those that ended
// while no agent ran, and of those whose file could not be removed when they left.
func (e *Enroller) dropStaleWorkloads() error {
	var errs []error
	for name, w := range e.cfg.Catalog.Snapshot().Workloads {
		if w.Spec.NodeName == e.cfg.NodeName {
			errs = append(errs, e.dropIfStale(name))
		}
	}
	return errors.Join(errs...)
}

func (e *Enroller) dropIfStale(name controlplane.Name) error {
	defer e.workloads.lock(name.String())() // Nobody is writing the file while this is held.
	if e.isPublished(name) {
		return nil
	}
	return e.retract(name.Namespace, name.Name)
}

// isPublished reports whether a sandbox of that name is in the mesh, whether or not it can be served.
func (e *Enroller) isPublished(name controlplane.Name) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.pods {
		if p.workload() == name.String() && (p.inMeshLocked() || p.phase == lost) {
			return true
		}
	}
	return false
}
