// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// hostMap is the name of the record of what AttachHost attached.
const hostMap = "host"

// hostMaps are the node's maps that only the programs of the host and their readers use.
type hostMaps struct {
	Namespaces   *ebpf.Map
	PodAddresses *ebpf.Map
	FlowEvents   *ebpf.Map
	FlowsLost    *ebpf.Map
	Host         *ebpf.Map
}

// byName's keys are the names of the maps in C and of their pins.
func (m *hostMaps) byName() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		flowsMapNamespaces:   &m.Namespaces,
		probeMapPodAddresses: &m.PodAddresses,
		flowsMapFlowEvents:   &m.FlowEvents,
		flowsMapFlowsLost:    &m.FlowsLost,
		hostMap:              &m.Host,
	}
}

func hostMapSpecs() (map[string]*ebpf.MapSpec, error) {
	record := infoSpec()
	record.Name = hostMap
	specs := map[string]*ebpf.MapSpec{hostMap: record}
	for _, load := range []specOf{probeSpec, flowsSpec} {
		spec, err := load()
		if err != nil {
			return nil, err
		}
		for name, m := range spec.Maps {
			specs[name] = m
		}
	}
	return specs, nil
}

// openHostMaps opens the maps with open. Those that a release without them left out stay nil, for a caller that may not
// create any: the agent does, and then enters the pods that are there.
func openHostMaps(root string, open func(string, *ebpf.MapSpec) (*ebpf.Map, error)) (maps hostMaps, err error) {
	specs, err := hostMapSpecs()
	if err != nil {
		return hostMaps{}, err
	}
	for name, m := range maps.byName() {
		opened, err := open(filepath.Join(root, nodeDir, name), specs[name])
		if errors.Is(err, ErrNotLoaded) {
			continue
		}
		if err != nil {
			_ = maps.Close()
			return hostMaps{}, fmt.Errorf("map %q: %w", name, err)
		}
		*m = opened
	}
	return maps, nil
}

// complete is false on a node that no agent of this release has loaded.
func (m *hostMaps) complete() bool {
	for _, each := range m.byName() {
		if *each == nil {
			return false
		}
	}
	return true
}

func (m *hostMaps) Close() error {
	var errs []error
	for _, each := range m.byName() {
		if *each != nil {
			errs = append(errs, (*each).Close())
		}
	}
	return errors.Join(errs...)
}
