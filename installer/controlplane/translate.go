// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/internal/securityapi"
	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

// Names that istiod uses by default.
const (
	defaultClusterID     = "Kubernetes"
	defaultTrustDomain   = "cluster.local"
	defaultRootNamespace = "istio-system"
	defaultDNSDomain     = "cluster.local"
	staticStrictName     = "istio_converted_static_strict"
	convertedPrefix      = "converted_peer_authentication_"
)

// mesh is what translation needs to know beside the objects.
type mesh struct {
	clusterID     string
	trustDomain   string
	rootNamespace string
	dnsDomain     string
}

// translation is a snapshot in the terms of xDS, each list ordered by key.
type translation struct {
	workloads []*workloadapi.Workload
	services  []*workloadapi.Service
	policies  []*securityapi.Authorization
	// warnings are about objects that others make ineffective.
	warnings []*FileError
}

// translate is what istiod would send for the objects of a snapshot.
func (m mesh) translate(s *Snapshot) *translation {
	t := &translation{}
	services := sortedByName(s.Services)
	for _, svc := range services {
		if published := m.service(svc.Service); published != nil {
			t.services = append(t.services, published)
		}
	}
	auth := newPeerAuths(m.rootNamespace, s.PeerAuthentications)
	for _, pod := range sortedByName(s.allPods()) {
		if w := m.workload(pod.Pod); w != nil {
			w.Services = m.endpoints(pod.Pod, services)
			w.Locality = locality(s.Nodes[w.Node])
			w.AuthorizationPolicies = append(auth.policiesFor(pod.Pod), m.selectedBy(pod.Pod, s.AuthorizationPolicies)...)
			slices.Sort(w.AuthorizationPolicies)
			t.workloads = append(t.workloads, w)
		}
	}
	t.workloads = m.addSlices(s, t.workloads)
	t.policies, t.warnings = auth.policies(), auth.ignored
	for _, p := range s.AuthorizationPolicies {
		if a := m.authorization(p); a != nil {
			t.policies = append(t.policies, a)
		}
	}
	slices.SortFunc(t.policies, func(a, b *securityapi.Authorization) int { return strings.Compare(policyKey(a), policyKey(b)) })
	return t
}

// allPods are the pods of both folders. Of one that is in both, what its node's agent wrote counts.
func (s *Snapshot) allPods() map[Name]*Pod {
	pods := maps.Clone(s.Pods)
	maps.Copy(pods, s.Workloads)
	return pods
}

func sortedByName[T any](m map[Name]T) []T {
	names := slices.SortedFunc(maps.Keys(m), func(a, b Name) int { return strings.Compare(a.String(), b.String()) })
	out := make([]T, 0, len(names))
	for _, n := range names {
		out = append(out, m[n])
	}
	return out
}

// workload translates a pod, without what depends on other objects. Pods that have no address, or that are finished,
// are nil.
func (m mesh) workload(p *corev1.Pod) *workloadapi.Workload {
	addrs := podAddresses(p)
	if len(addrs) == 0 || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	w := &workloadapi.Workload{
		Uid:               m.clusterID + "//Pod/" + p.Namespace + "/" + p.Name,
		Name:              p.Name,
		Namespace:         p.Namespace,
		Addresses:         addrs,
		Network:           p.Labels[labelNetwork],
		ServiceAccount:    serviceAccount(p),
		Node:              p.Spec.NodeName,
		WorkloadName:      ownerName(p),
		WorkloadType:      workloadapi.WorkloadType_POD,
		CanonicalRevision: firstOf(p.Labels, "latest", "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"),
		ClusterId:         m.clusterID,
		Status:            health(p),
	}
	w.CanonicalName = firstOf(p.Labels, w.WorkloadName, "service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
	if m.trustDomain != defaultTrustDomain {
		w.TrustDomain = m.trustDomain
	}
	if p.Spec.HostNetwork {
		w.NetworkMode = workloadapi.NetworkMode_HOST_NETWORK
	}
	w.NativeTunnel = p.Labels[labelTunnel] == tunnelHTTP
	if w.NativeTunnel || p.Annotations[annotationRedirect] == redirectEnabled {
		w.TunnelProtocol = workloadapi.TunnelProtocol_HBONE
	}
	return w
}

// podAddresses are the pod's addresses as xDS carries them, 4 or 16 bytes each.
func podAddresses(p *corev1.Pod) [][]byte {
	ips := p.Status.PodIPs
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	var addrs [][]byte
	for _, ip := range ips {
		addrs = append(addrs, addrBytes(ip.IP))
	}
	return addrs
}

// addrBytes converts an address that was checked when its file was read.
func addrBytes(ip string) []byte {
	return netip.MustParseAddr(ip).Unmap().WithZone("").AsSlice()
}

func serviceAccount(p *corev1.Pod) string {
	if p.Spec.ServiceAccountName != "" {
		return p.Spec.ServiceAccountName
	}
	return "default"
}

// ownerName is the name of what the pod was made from. A ReplicaSet counts as its Deployment, whose name it extends by
// the hash that the pod has as a label.
func ownerName(p *corev1.Pod) string {
	for _, o := range p.OwnerReferences {
		if o.Controller == nil || !*o.Controller {
			continue
		}
		if hash := p.Labels["pod-template-hash"]; o.Kind == "ReplicaSet" && hash != "" {
			return strings.TrimSuffix(o.Name, "-"+hash)
		}
		return o.Name
	}
	return p.Name
}

// health is HEALTHY unless the pod is known not to be ready: a file that says nothing of conditions says nothing bad.
func health(p *corev1.Pod) workloadapi.WorkloadStatus {
	if p.DeletionTimestamp != nil {
		return workloadapi.WorkloadStatus_UNHEALTHY
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status != corev1.ConditionTrue {
			return workloadapi.WorkloadStatus_UNHEALTHY
		}
	}
	return workloadapi.WorkloadStatus_HEALTHY
}

// firstOf is the value of the first of keys that is set, else fallback.
func firstOf(labels map[string]string, fallback string, keys ...string) string {
	for _, k := range keys {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return fallback
}

// selects tells whether a selector picks labels. An empty one picks everything.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}
