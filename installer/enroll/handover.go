// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"fmt"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/listeners"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// listeners hands over the pod's sockets. The caller's own, if it offers some, are taken back into custody first: after
// a restart of the agent ztunnel's copies are the only ones.
func (e *Enroller) listeners(req *nodeapi.Request, fds []int) (nodeapi.Answer, *nodeapi.Error) {
	e.mu.Lock()
	p := e.current[req.Pod.UID]
	var in *inside
	if p != nil {
		in = p.inside
	}
	e.mu.Unlock()
	if in == nil {
		return nodeapi.Answer{}, nodeapi.Errorf(nodeapi.CodeNotFound, "listeners: no pod with uid %s is served", req.Pod.UID)
	}
	offered, err := offeredSlots(req.Slots, fds)
	if err != nil {
		return nodeapi.Answer{}, nodeapi.Errorf(nodeapi.CodeBadRequest, "listeners: %w", err)
	}
	slots, own, err := e.handOver(p, in, offered)
	if err != nil {
		e.podLog(p).Warn("listeners not handed over", "err", err)
		return nodeapi.Answer{}, nodeapi.Errorf(nodeapi.CodeInternal, "listeners: %w", err)
	}
	answer := nodeapi.Answer{FDs: own, CloseAfter: true}
	for _, s := range slots {
		answer.Slots = append(answer.Slots, s.String())
	}
	return answer, nil
}

func (e *Enroller) handOver(p *pod, in *inside, offered map[bpf.Slot]int) ([]bpf.Slot, []int, error) {
	attached, err := e.cfg.Node.Pod(pinID(p.id()))
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = attached.Close() }()
	if adopted := in.set.Adopt(attached, offered); len(adopted) > 0 {
		e.podLog(p).Info("listeners adopted from ztunnel", "slots", adopted)
	}
	// Whatever is held by nobody, or by a ztunnel that is not the one asking, is made anew.
	if err := in.set.Open(in.ns, e.tagProxy); err != nil {
		return nil, nil, err
	}
	if err := in.set.Install(attached); err != nil {
		return nil, nil, err
	}
	return in.set.Duplicate()
}

func (e *Enroller) tagProxy(fd int) error { return e.cfg.Node.TagSocket(fd, bpf.TagProxy) }

func offeredSlots(names []string, fds []int) (map[bpf.Slot]int, error) {
	if len(names) != len(fds) {
		return nil, fmt.Errorf("%d slots for %d descriptors", len(names), len(fds))
	}
	offered := make(map[bpf.Slot]int, len(names))
	for i, name := range names {
		for _, s := range listeners.Names(true) {
			if s.String() == name {
				offered[s] = fds[i]
			}
		}
	}
	return offered, nil
}
