// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const procDir = "/proc"

// places says where the programs of the host belong.
type places struct {
	mount   cgroupMount
	cgroup  string
	probe   string // empty like cgroup if there is none
	reason  string // why there is none
	none    bool   // the node has no cgroup2, which is more than that it could not be looked for
	caveat  string // what the programs do not see there
	kubelet bool   // probe was to be kubelet's own, if it has one
}

func findPlaces(cfg *HostConfig) places {
	p := places{cgroup: cfg.Cgroup, probe: cfg.ProbeCgroup, mount: cgroupMount{Path: cfg.Cgroup, Root: "/"}}
	if p.cgroup == "" {
		mount, err := findCgroup2()
		if err != nil {
			var none *noCgroup2Error
			p.reason, p.none = err.Error(), errors.As(err, &none)
			return p
		}
		p.mount, p.cgroup = mount, mount.Path
		if !isCgroupRoot(mount.Path) {
			p.caveat = fmt.Sprintf("%q shows only the sub-tree %q of the cgroup2 hierarchy, processes outside of it are not seen: mount the host's cgroup2 root",
				mount.Path, mount.Root)
		}
	}
	if p.probe == "" {
		p.kubelet = true
		p.probe = kubeletCgroup(procDir, p.mount)
	}
	if p.probe == "" {
		p.probe = p.cgroup
	}
	return p
}

// hostAttachment is one call of AttachHost under the host's lock.
type hostAttachment struct {
	node   *Node
	cfg    HostConfig
	places places
	status HostStatus

	// ineffective says that probe cannot work on this node, and that its fallback would trust no more than was asked for.
	ineffective bool
}

func (a *hostAttachment) run() (HostStatus, error) {
	// A process that died in the middle of a move left a second link, at a cgroup that no status names.
	if err := dropHostLink(a.node.hostPin(movingLink)); err != nil {
		return a.status, err
	}
	seen, err := newWitnesses()
	if err != nil {
		return a.status, err
	}
	defer func() { _ = seen.Close() }()

	errs := []error{
		a.hook(&a.status.Probe, a.cfg.Probe, a.places.probe, seen, a.probePrograms),
		a.hook(&a.status.Bind, a.cfg.Bind, a.places.cgroup, seen, a.bindPrograms),
		a.hook(&a.status.Flows, a.cfg.Flows, a.places.cgroup, seen, a.flowsPrograms),
	}
	a.status.Probe.TrustsAll = a.status.Probe.Attached && a.places.probe == a.places.cgroup
	a.testEffect(seen)
	a.testProbe(seen)
	errs = append(errs, a.hostEnds())
	record := hostRecord{
		Status: a.status, FindKubelet: a.places.kubelet, Mount: a.places.mount,
		HostEnd: a.status.Probe.Kind == HookHostEnd,
	}
	errs = append(errs, writeHostRecord(a.node.host.Host, &record))
	return a.status, errors.Join(errs...)
}

// hostProgram is a program and the name of its pin.
type hostProgram struct {
	pin  string
	hook ebpf.AttachType
	prog *ebpf.Program
}

// hook attaches the programs that load returns. That this node cannot have them is told in the status; an error is what
// could not be taken away.
func (a *hostAttachment) hook(s *HookStatus, wanted bool, cgroup string, seen *witnesses, load func(*witnesses) ([]hostProgram, error)) error {
	if !wanted {
		return errors.Join(a.dropHook(s)...)
	}
	*s = HookStatus{Kind: HookCgroup, Cgroup: cgroup, Problem: a.places.reason}
	if cgroup == "" {
		a.probeFails(s, a.places.none)
		return errors.Join(a.dropHook(s)...)
	}
	progs, err := load(seen)
	if err != nil {
		a.probeFails(s, !isPassing(err))
		s.Problem = err.Error()
		return errors.Join(a.dropHook(s)...)
	}
	defer closePrograms(progs)
	for _, p := range progs {
		l := hostLink{pin: a.node.hostPin(p.pin), cgroup: cgroup, hook: p.hook, prog: p.prog}
		if err := l.put(); err != nil {
			a.probeFails(s, !isPassing(err))
			s.Problem = err.Error()
			return errors.Join(a.dropHook(s)...)
		}
	}
	s.Attached, s.Problem = true, a.places.caveat
	return nil
}

// probeFails notes that probe, if s is its status, is ineffective. Where only kubelet
// or a cgroup that was given is to be trusted it never is: the fallback trusts all processes of the host.
func (a *hostAttachment) probeFails(s *HookStatus, ineffective bool) {
	if s == &a.status.Probe && a.cfg.ProbeCgroup == "" && a.places.probe == a.places.cgroup {
		a.ineffective = ineffective
	}
}

// testProbe finds out whether probe is ineffective though it was attached. A test that fails says nothing of that.
func (a *hostAttachment) testProbe(w *witnesses) {
	if s := &a.status.Probe; s.Attached {
		connected, err := w.connectWitness()
		a.probeFails(s, err == nil && connected&probeWitnessWITNESS_PROBE == 0)
	}
}

// isPassing tells errors that say nothing of what the node can do: it is short of something.
func isPassing(err error) bool {
	for _, passing := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN, unix.EINTR} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// dropHook takes the hook's links away, so that a status without them is true.
func (a *hostAttachment) dropHook(s *HookStatus) []error {
	pins := map[*HookStatus][]string{
		&a.status.Probe: {probeLink}, &a.status.Bind: {bind4Link, bind6Link}, &a.status.Flows: {flowsLink},
	}
	var errs []error
	for _, pin := range pins[s] {
		errs = append(errs, dropHostLink(a.node.hostPin(pin)))
	}
	return errs
}

func closePrograms(progs []hostProgram) {
	for _, p := range progs {
		_ = p.prog.Close()
	}
}
