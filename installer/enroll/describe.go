// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"cmp"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/ztunnels"
	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// podConfig says how to attach to the given interfaces of a pod.
func podConfig(p *pod, interfaces []nodeapi.Interface, s Settings) bpf.PodConfig {
	c := bpf.PodConfig{
		ID: pinID(p.id()), UID: p.sandbox.UID, Namespace: p.sandbox.Namespace, Name: p.sandbox.Name, ContainerID: p.id(),
		Network: p.sandbox.Network, NetnsPath: p.sandbox.Netns,
		CaptureAll: s.CaptureAll, CaptureDNS: s.CaptureDNS, BypassInbound: s.BypassInbound,
		Exclude:   bpf.Exclusions{CIDRs: s.ExcludeCIDRs, Ports: s.ExcludePorts},
		Addresses: []netip.Addr{},
	}
	for _, i := range interfaces {
		if i.Name == "lo" {
			continue
		}
		c.Interfaces = append(c.Interfaces, i.Name)
		for _, a := range i.Addresses {
			c.Addresses = append(c.Addresses, a.Addr().Unmap())
		}
		if i.HostIfindex != 0 {
			c.HostIfindexes = append(c.HostIfindexes, i.HostIfindex)
		}
	}
	return c
}

// attachedSettings are those that a pod's programs have; configuredSettings those that they will have.
func attachedSettings(info bpf.PodInfo) Settings {
	return Settings{
		CaptureAll: info.CaptureAll, CaptureDNS: info.CaptureDNS, BypassInbound: info.BypassInbound,
		ExcludeCIDRs: info.Exclude.CIDRs, ExcludePorts: info.Exclude.Ports,
	}
}

func configuredSettings(c bpf.PodConfig) Settings {
	return Settings{
		CaptureAll: c.CaptureAll, CaptureDNS: c.CaptureDNS, BypassInbound: c.BypassInbound,
		ExcludeCIDRs: c.Exclude.CIDRs, ExcludePorts: c.Exclude.Ports,
	}
}

func ztunnelPod(p *pod, ns *netns.NS, account string) ztunnels.Pod {
	return ztunnels.Pod{
		UID: p.sandbox.UID, Namespace: p.sandbox.Namespace, Name: p.sandbox.Name, ServiceAccount: account, Netns: ns,
	}
}

const defaultServiceAccount = "default"

// catalogPod is what the catalog says of the sandbox's pod, nil if nothing. Successor is set if it is about a later pod of
// that name by now: what that one is, the sandbox is not. Pods of files have no uid, and neither has a sandbox of a runtime
// that does not tell it.
func catalogPod(s *controlplane.Snapshot, sandbox nodeapi.Pod) (m *corev1.Pod, successor bool) {
	c := s.Pods[controlplane.Name{Namespace: sandbox.Namespace, Name: sandbox.Name}]
	switch {
	case c == nil:
		return nil, false
	case c.UID != "" && sandbox.UID != "" && sandbox.UID != sandbox.ContainerID && !controlplane.IsOf(c.Pod, sandbox.UID):
		return nil, true
	}
	return c.Pod, false
}

// serviceAccount is the pod's, or what it was last known to be.
func (e *Enroller) serviceAccount(p *pod) string {
	m, _ := catalogPod(e.cfg.Catalog.Snapshot(), p.sandbox)
	e.mu.Lock()
	defer e.mu.Unlock()
	if m != nil {
		p.lastAccount = cmp.Or(m.Spec.ServiceAccountName, defaultServiceAccount)
	}
	return cmp.Or(p.lastAccount, defaultServiceAccount)
}

// manifest is the pod as the control planes are to publish it.
func (e *Enroller) manifest(p *pod) *corev1.Pod {
	m := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.sandbox.Namespace, Name: p.sandbox.Name, UID: types.UID(p.sandbox.UID),
	}}
	if user, _ := catalogPod(e.cfg.Catalog.Snapshot(), p.sandbox); user != nil {
		m.Labels = user.Labels
	}
	m.Spec.NodeName, m.Spec.ServiceAccountName = e.cfg.NodeName, e.serviceAccount(p)
	m.Status.Phase = corev1.PodRunning
	for _, a := range p.sandbox.Addresses() {
		m.Status.PodIPs = append(m.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if len(m.Status.PodIPs) > 0 {
		m.Status.PodIP = m.Status.PodIPs[0].IP
	}
	return m
}
