// SPDX-License-Identifier: Apache-2.0

// Package running finds the sandboxes of pods that started before the agent, of which no CNI ADD has told it.
//
// The runtime is asked first. Where it does not tell, the processes of the pod are looked for by the cgroup that kubelet
// made for it. Neither is trusted alone: the namespace must have the addresses that the API knows the pod by, and must
// not be the node's.
package running

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/installer/cri"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// annotationMirror has the uid by which the runtime knows a static pod.
const annotationMirror = "kubernetes.io/config.mirror"

// Finder looks for sandboxes. Safe for concurrent use.
type Finder struct {
	// Sockets are the runtimes' that may serve, as this process sees them; those that nobody serves are passed over.
	Sockets []string
	// Proc is where the node's processes are seen; empty means /proc.
	Proc string
	// NetnsDirs are where runtimes keep the paths of pods' namespaces; nil means the usual ones.
	NetnsDirs []string
}

// usualNetnsDirs are containerd's and CRI-O's, and that of cri-dockerd.
var usualNetnsDirs = []string{"/run/netns", "/var/run/netns", "/run/docker/netns"}

// Found is what became of the search for one pod: what its CNI ADD would have told, or why that is not known.
type Found struct {
	Sandbox nodeapi.Pod
	Err     error
}

// candidate is a sandbox that may be a pod's. path leads to its namespace now, and does so for as long as the pod lives.
type candidate struct{ uid, id, path string }

// Find looks for the pods. Its answers are in their order.
func (f *Finder) Find(ctx context.Context, pods []*corev1.Pod) []Found {
	byUID := map[string]bool{}
	for _, p := range pods {
		for _, uid := range uidsOf(p) {
			byUID[uid] = true
		}
	}
	told, runtimeErr := f.askRuntimes(ctx, func(uid string) bool { return byUID[uid] })
	var seen []candidate // by their processes; looked for once, and only if need be
	var procErr error
	looked := false
	all := make([]Found, 0, len(pods))
	for _, p := range pods {
		s, err := choose(p, told)
		if errors.Is(err, errNone) {
			if !looked {
				seen, procErr = f.processes(byUID)
				looked = true
			}
			if s, err = choose(p, seen); errors.Is(err, errNone) {
				err = errors.Join(err, runtimeErr, procErr)
				if runtimeErr == nil && procErr == nil && !isAmong(p, told) && !isAmong(p, seen) {
					err = ErrAbsent
				}
			}
		}
		all = append(all, Found{s, err})
	}
	return all
}

func uidsOf(p *corev1.Pod) []string {
	if mirror := p.Annotations[annotationMirror]; mirror != "" {
		return []string{string(p.UID), mirror}
	}
	return []string{string(p.UID)}
}

// errNone reports that nothing was found that could be the pod's sandbox.
var errNone = errors.New("its network namespace was not found")

// ErrAbsent reports that nothing of a pod runs on the node: the runtime has no sandbox of it that is ready, and it has no
// process.
var ErrAbsent = errors.New("nothing of it runs on this node")

func isAmong(p *corev1.Pod, all []candidate) bool {
	return slices.ContainsFunc(all, func(c candidate) bool { return slices.Contains(uidsOf(p), c.uid) })
}

// choose takes the candidate that is the pod's, of which there must be one.
func choose(p *corev1.Pod, from []candidate) (nodeapi.Pod, error) {
	var s nodeapi.Pod
	var errs []error
	n := 0
	for _, c := range from {
		if !slices.Contains(uidsOf(p), c.uid) {
			continue
		}
		interfaces, err := verify(p, c.path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		n++
		s = nodeapi.Pod{UID: c.uid, Namespace: p.Namespace, Name: p.Name, ContainerID: c.id, Netns: c.path, Interfaces: interfaces}
	}
	switch {
	case n == 1:
		return s, nil
	case n > 1:
		return nodeapi.Pod{}, fmt.Errorf("its network namespace is in doubt: %d have its addresses", n)
	}
	return nodeapi.Pod{}, errors.Join(append([]error{errNone}, errs...)...)
}

// askRuntimes asks all, as a node may have several of which kubelet uses one.
func (f *Finder) askRuntimes(ctx context.Context, wanted func(uid string) bool) ([]candidate, error) {
	var all []candidate
	var errs []error
	for _, socket := range f.Sockets {
		sandboxes, err := cri.Sandboxes(ctx, socket, wanted)
		if err != nil {
			errs = append(errs, err)
		}
		for _, s := range sandboxes {
			path := s.Netns
			if path == "" && s.PID > 0 {
				path = f.stablePath(f.proc(strconv.Itoa(s.PID), "ns", "net"))
			}
			if path != "" {
				all = append(all, candidate{s.UID, s.ID, path})
			}
		}
	}
	if len(f.Sockets) == 0 {
		errs = append(errs, errors.New("no container runtime's socket is there to ask (--cri-socket)"))
	}
	return all, errors.Join(errs...)
}

func (f *Finder) proc(parts ...string) string {
	root := f.Proc
	if root == "" {
		root = "/proc"
	}
	return filepath.Join(append([]string{root}, parts...)...)
}
