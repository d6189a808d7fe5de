// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// infoMap is the name of the pod's record among its maps.
const infoMap = "info"

// podMaps is what the programs of one pod share.
type podMaps struct {
	Info          *ebpf.Map
	Verdicts      *ebpf.Map
	Listeners     *ebpf.Map
	LocalFlows    *ebpf.Map
	Grandfathered *ebpf.Map
	Searching     *ebpf.Map
}

// byName's keys are the names of the maps in C and of their pins.
func (m *podMaps) byName() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		infoMap:                 &m.Info,
		captureMapVerdicts:      &m.Verdicts,
		dispatchMapListeners:    &m.Listeners,
		localMapLocalFlows:      &m.LocalFlows,
		captureMapGrandfathered: &m.Grandfathered,
		captureMapSearching:     &m.Searching,
	}
}

// createPodMaps creates the maps of a pod and pins them in dir.
func createPodMaps(dir string, grandfathered int) (_ *podMaps, err error) {
	specs, err := podMapSpecs(grandfathered)
	if err != nil {
		return nil, err
	}
	var maps podMaps
	for name, m := range maps.byName() {
		if *m, err = ebpf.NewMap(specs[name]); err == nil {
			err = (*m).Pin(filepath.Join(dir, name))
		}
		if err != nil {
			_ = maps.Close()
			return nil, fmt.Errorf("create map %q: %w", name, err)
		}
	}
	return &maps, nil
}

func podMapSpecs(grandfathered int) (map[string]*ebpf.MapSpec, error) {
	specs := map[string]*ebpf.MapSpec{infoMap: infoSpec()}
	for _, load := range []specOf{captureSpec, localSpec, dispatchSpec} {
		spec, err := load()
		if err != nil {
			return nil, err
		}
		for name, m := range spec.Maps {
			specs[name] = m.Copy()
		}
	}
	specs[captureMapGrandfathered].MaxEntries = uint32(max(grandfathered, 1))
	return specs, nil
}

// openPodMaps opens what createPodMaps pinned.
func openPodMaps(dir string) (*podMaps, error) {
	var maps podMaps
	for name, m := range maps.byName() {
		var err error
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
			_ = maps.Close()
			return nil, fmt.Errorf("open map %q: %w", name, err)
		}
	}
	return &maps, nil
}
