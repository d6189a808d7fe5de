// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/proxy"
)

// configDump is the admin page's /config_dump. The keys are the reference proxy's, whose command line reads them (ambient
// section 9.4).
type configDump struct {
	discovery.Dump
	StaticConfig  struct{}             `json:"staticConfig"`
	Version       string               `json:"version"`
	Config        *Config              `json:"config"`
	Certificates  []identity.CertState `json:"certificates"`
	WorkloadState map[string]podDump   `json:"workloadState"`
}

type podDump struct {
	State       string                        `json:"state"`
	Connections map[string][]proxy.Connection `json:"connections"`
	Info        infoDump                      `json:"info"`
}

type infoDump struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

func (z *ztunnel) dump() any {
	d := configDump{Dump: z.store.Dump(), Version: version(), Config: z.config, Certificates: []identity.CertState{}, WorkloadState: z.dumpPods()}
	if z.certs != nil {
		d.Certificates = z.certs.Snapshot()
	}
	return d
}

func (z *ztunnel) dumpPods() map[string]podDump {
	dump := map[string]podDump{}
	z.mu.Lock()
	pods, carrier := z.pods, z.proxy
	z.mu.Unlock()
	if pods == nil {
		return dump
	}
	for _, p := range pods.Pods() {
		dump[p.UID] = podDump{
			State:       p.State(),
			Connections: map[string][]proxy.Connection{"inbound": {}, "outbound": {}},
			Info:        infoOf(p.Info),
		}
	}
	for _, c := range carrier.Connections() {
		if p, ok := dump[c.UID]; ok {
			p.Connections[string(c.Direction)] = append(p.Connections[string(c.Direction)], c)
		}
	}
	return dump
}

// explain answers for a pod that is served; uid is Kubernetes'.
func (z *ztunnel) explain(uid, destination string) (any, error) {
	z.mu.Lock()
	pods, carrier := z.pods, z.proxy
	z.mu.Unlock()
	if pods != nil {
		for _, p := range pods.Pods() {
			if p.UID == uid {
				return carrier.Explain(p.Info, destination)
			}
		}
	}
	return nil, fmt.Errorf("pod %q: is not served by this ztunnel", uid)
}

func infoOf(i inpod.Info) infoDump { return infoDump{i.Name, i.Namespace, i.ServiceAccount} }
