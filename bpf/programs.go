// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
)

// programs is one pod's instance of each program, on their way into the kernel. They are not pinned: links hold them.
type programs struct {
	dispatch, local, capture, guard loading
}

// loading waits for a program. The programs' owner closes it.
type loading func() (*ebpf.Program, error)

// Close waits for programs that are still loading.
func (p *programs) Close() {
	for _, wait := range []loading{p.dispatch, p.local, p.capture, p.guard} {
		if prog, err := wait(); err == nil {
			_ = prog.Close()
		}
	}
}

// settings are the programs' constants of one pod.
type settings struct {
	captureAll    bool
	captureDNS    bool
	bypassInbound bool
	hasExclusions bool
	// everythingFromLo is for test runs, which cannot give dispatch an interface.
	everythingFromLo bool
}

func (i *PodInfo) settings() settings {
	return settings{
		captureAll: i.CaptureAll, captureDNS: i.CaptureDNS, bypassInbound: i.BypassInbound, hasExclusions: !i.Exclude.IsEmpty(),
	}
}

// loadPrograms loads one pod's programs over the maps of the node and of the pod and their own, side by side: attaching is mostly
// waiting for the kernel, so what is needed first can be attached while the others are verified. The caller closes the
// result, before the maps.
func loadPrograms(node *nodeMaps, pod *podMaps, excluded *exclusionMaps, set settings) *programs {
	shared := mapsOf(node, pod, excluded)
	start := func(name string, spec specOf) loading {
		wait := sync.OnceValues(func() (*ebpf.Program, error) {
			prog, err := set.load(name, spec, shared)
			if err != nil {
				return nil, fmt.Errorf("load %s: %w", name, err)
			}
			return prog, nil
		})
		go func() { _, _ = wait() }()
		return wait
	}
	return &programs{
		dispatch: start(dispatchProgDispatch, dispatchSpec),
		local:    start(localProgLocal, localSpec),
		capture:  start(captureProgCapture, captureSpec),
		guard:    start(guardProgGuard, guardSpec),
	}
}

func (s settings) load(name string, spec specOf, shared map[string]*ebpf.Map) (*ebpf.Program, error) {
	parsed, err := spec()
	if err != nil {
		return nil, err
	}
	parsed = parsed.Copy()
	if err := s.apply(parsed); err != nil {
		return nil, fmt.Errorf("set constants: %w", err)
	}
	return loadProgram(parsed, name, shared)
}

// specOf returns the content of an object file, parsed once. It must not be changed: copy it.
type specOf func() (*ebpf.CollectionSpec, error)

var (
	captureSpec  specOf = sync.OnceValues(loadCapture)
	localSpec    specOf = sync.OnceValues(loadLocal)
	dispatchSpec specOf = sync.OnceValues(loadDispatch)
	guardSpec    specOf = sync.OnceValues(loadGuard)
)

func (s settings) apply(spec *ebpf.CollectionSpec) error {
	var errs []error
	for name, value := range map[string]bool{
		captureVarCaptureAll: s.captureAll, captureVarCaptureDns: s.captureDNS,
		captureVarBypassInbound: s.bypassInbound, captureVarHasExclusions: s.hasExclusions,
	} {
		if v, ok := spec.Variables[name]; ok {
			errs = append(errs, v.Set(value))
		}
	}
	if v, ok := spec.Variables[dispatchVarLoopbackIfindex]; ok && s.everythingFromLo {
		errs = append(errs, v.Set(uint32(0)))
	}
	return errors.Join(errs...)
}

// mapsOf are all maps that programs may name.
func mapsOf(node *nodeMaps, pod *podMaps, excluded *exclusionMaps) map[string]*ebpf.Map {
	all := map[string]*ebpf.Map{}
	for _, maps := range []map[string]**ebpf.Map{node.byName(), pod.byName(), excluded.byName()} {
		for name, m := range maps {
			all[name] = *m
		}
	}
	return all
}

func loadProgram(spec *ebpf.CollectionSpec, name string, shared map[string]*ebpf.Map) (*ebpf.Program, error) {
	own := map[string]*ebpf.Map{}
	for name, want := range spec.Maps {
		if m, ok := shared[name]; ok {
			want.MaxEntries = m.MaxEntries() // those of some maps differ from pod to pod
			own[name] = m
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: own})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return coll.DetachProgram(name), nil
}
