// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// programs is one pod's instance of each program. They are not pinned: links hold them.
type programs struct {
	Capture  *ebpf.Program
	Local    *ebpf.Program
	Dispatch *ebpf.Program
	Guard    *ebpf.Program
}

func (p *programs) Close() {
	for _, prog := range []*ebpf.Program{p.Capture, p.Local, p.Dispatch, p.Guard} {
		if prog != nil {
			_ = prog.Close()
		}
	}
}

// settings are the programs' constants of one pod.
type settings struct {
	captureAll bool
	// everythingFromLo is for test runs, which cannot give dispatch an interface.
	everythingFromLo bool
}

// loadPrograms loads one pod's programs over the maps of the node and of the pod.
func loadPrograms(node *nodeMaps, pod *podMaps, set settings) (_ *programs, err error) {
	var p programs
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	for _, each := range []struct {
		name string
		spec func() (*ebpf.CollectionSpec, error)
		into **ebpf.Program
	}{
		{captureProgCapture, loadCapture, &p.Capture},
		{localProgLocal, loadLocal, &p.Local},
		{dispatchProgDispatch, loadDispatch, &p.Dispatch},
		{guardProgGuard, loadGuard, &p.Guard},
	} {
		spec, err := each.spec()
		if err != nil {
			return nil, err
		}
		if err := set.apply(spec); err != nil {
			return nil, fmt.Errorf("set constants of %s: %w", each.name, err)
		}
		if *each.into, err = loadProgram(spec, each.name, node, pod); err != nil {
			return nil, fmt.Errorf("load %s: %w", each.name, err)
		}
	}
	return &p, nil
}

func (s settings) apply(spec *ebpf.CollectionSpec) error {
	var errs []error
	if v, ok := spec.Variables[captureVarCaptureAll]; ok {
		errs = append(errs, v.Set(s.captureAll))
	}
	if v, ok := spec.Variables[dispatchVarLoopbackIfindex]; ok && s.everythingFromLo {
		errs = append(errs, v.Set(uint32(0)))
	}
	return errors.Join(errs...)
}

func loadProgram(spec *ebpf.CollectionSpec, name string, node *nodeMaps, pod *podMaps) (*ebpf.Program, error) {
	shared := map[string]*ebpf.Map{}
	for _, maps := range []map[string]**ebpf.Map{node.byName(), pod.byName()} {
		for name, m := range maps {
			if want, ok := spec.Maps[name]; ok {
				want.MaxEntries = (*m).MaxEntries() // grandfathered's differs from pod to pod
				shared[name] = *m
			}
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return coll.DetachProgram(name), nil
}
