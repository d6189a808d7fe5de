// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/cilium/ebpf"
)

var (
	probeSpec   specOf = sync.OnceValues(loadProbe)
	hostendSpec specOf = sync.OnceValues(loadHostend)
	bindSpec    specOf = sync.OnceValues(loadBind)
	flowsSpec   specOf = sync.OnceValues(loadFlows)
)

func (a *hostAttachment) probePrograms(seen *witnesses) ([]hostProgram, error) {
	set := map[string]any{probeVarHostNetns: a.cfg.HostCookie}
	return a.load(probeSpec, set, seen, hostProgram{probeLink, ebpf.AttachCGroupSockOps, nil})
}

func (a *hostAttachment) bindPrograms(seen *witnesses) ([]hostProgram, error) {
	progs, err := a.load(bindSpec, nil, seen,
		hostProgram{bind4Link, ebpf.AttachCGroupInet4Bind, nil},
		hostProgram{bind6Link, ebpf.AttachCGroupInet6Bind, nil})
	if err != nil {
		return nil, fmt.Errorf("an app that binds without SO_REUSEADDR may find its port taken by ztunnel's connections: %w", err)
	}
	return progs, nil
}

func (a *hostAttachment) flowsPrograms(seen *witnesses) ([]hostProgram, error) {
	set := map[string]any{flowsVarInterval: uint64(a.cfg.FlowInterval.Nanoseconds())}
	return a.load(flowsSpec, set, seen, hostProgram{flowsLink, ebpf.AttachCGroupSockOps, nil})
}

// load loads programs of one object file, named like their pins, over the maps of the node.
func (a *hostAttachment) load(from specOf, set map[string]any, seen *witnesses, progs ...hostProgram) ([]hostProgram, error) {
	spec, err := from()
	if err != nil {
		return nil, err
	}
	spec = spec.Copy()
	for name, value := range set {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set constant %s: %w", name, err)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: a.maps(spec, seen)})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", progs[0].pin, err)
	}
	defer coll.Close()
	for i := range progs {
		if progs[i].prog = coll.DetachProgram(progs[i].pin); progs[i].prog == nil {
			closePrograms(progs[:i])
			return nil, errors.New("no program " + progs[i].pin)
		}
	}
	return progs, nil
}

// maps picks those that the object file knows.
func (a *hostAttachment) maps(spec *ebpf.CollectionSpec, seen *witnesses) map[string]*ebpf.Map {
	all := a.node.maps.byName()
	maps.Copy(all, a.node.host.byName())
	all[probeMapWitnesses] = &seen.cookies
	picked := map[string]*ebpf.Map{}
	for name, m := range all {
		if want, ok := spec.Maps[name]; ok {
			want.MaxEntries = (*m).MaxEntries() // of the release that made it
			picked[name] = *m
		}
	}
	return picked
}
