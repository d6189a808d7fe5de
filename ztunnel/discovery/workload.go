// SPDX-License-Identifier: Apache-2.0

// Package discovery knows what is in the mesh: it follows a control plane over delta xDS and keeps workloads, services
// and policies where connections can look them up.
//
//	Client ──parse──► Update ──► Store ◄── lookups of each connection
//	   ▲                           └─────► Subscription, CaptureSet
//	   └─ gRPC ── istiod, or the agent's embedded control plane
//
// Records are immutable once they are in a Store: a change brings a new record.
package discovery

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/ztunnel/identity"
)

// Protocol is what a workload's node speaks for it.
type Protocol uint8

const (
	// ProtocolTCP: nothing of the mesh, plain TCP.
	ProtocolTCP Protocol = iota
	// ProtocolHBONE: HBONE on port 15008.
	ProtocolHBONE
)

// String returns the name that the config dump uses.
func (p Protocol) String() string {
	if p == ProtocolHBONE {
		return "HBONE"
	}
	return "TCP"
}

// WorkloadType is the kind of a workload's owner; its numbers are the API's.
type WorkloadType int32

// String returns "deployment", "cronjob", "pod" or "job"; kinds we do not know are pods.
func (t WorkloadType) String() string {
	switch t {
	case 0:
		return "deployment"
	case 1:
		return "cronjob"
	case 3:
		return "job"
	}
	return "pod"
}

// Locality is where a workload runs.
type Locality struct {
	Region  string `json:"region"`
	Zone    string `json:"zone"`
	Subzone string `json:"subzone"`
}

// Tunnel is how the application of a workload wants its connections.
type Tunnel struct {
	// Proxy asks for a PROXY protocol header before the data.
	Proxy bool
	// Port replaces the destination's port unless 0.
	Port uint16
}

// Workload is a pod, or something like one.
type Workload struct {
	UID       string // primary key
	Name      string
	Namespace string
	Addresses []netip.Addr
	// Hostname is to be resolved when there are no Addresses.
	Hostname       string
	Network        string // empty is the default network
	Protocol       Protocol
	TrustDomain    string // never empty
	ServiceAccount string // never empty
	Waypoint       *Gateway
	NetworkGateway *Gateway
	Node           string
	// CanonicalName and CanonicalRevision are "service" and "version" of metrics.
	CanonicalName     string
	CanonicalRevision string
	WorkloadType      WorkloadType
	WorkloadName      string // of the owner
	// NativeTunnel: the application speaks HBONE itself, there is no ztunnel in front of it.
	NativeTunnel bool
	// Policies are the "namespace/name" of the selector policies that apply, sorted.
	Policies  []string
	Healthy   bool
	ClusterID string // never empty
	// Services the workload is an endpoint of, with its own port mapping: service port to target port.
	Services  map[ServiceKey]map[uint16]uint16
	AppTunnel *Tunnel
	Locality  Locality
	// HostNetwork workloads share the node's addresses, so they cannot be found by address.
	HostNetwork bool
	Capacity    uint32 // load balancing weight; 0 is none
}

// Identity is who the workload is, by what the control plane says.
func (w *Workload) Identity() identity.Identity {
	return identity.Identity{TrustDomain: w.TrustDomain, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}
}

// Owns tells whether a is one of the workload's addresses.
func (w *Workload) Owns(a netip.Addr) bool { return slices.Contains(w.Addresses, a.Unmap()) }

// isPod: several records may claim one address, and a real pod's is the truest. Ambient section 5.8.
func (w *Workload) isPod() bool { return strings.Contains(w.UID, "//Pod/") }

// betterAtAddress orders workloads that share an address.
func betterAtAddress(a, b *Workload) int {
	if a.isPod() != b.isPod() {
		return trueFirst(a.isPod())
	}
	if a.Protocol != b.Protocol {
		return trueFirst(a.Protocol == ProtocolHBONE)
	}
	return strings.Compare(a.UID, b.UID)
}

func trueFirst(b bool) int {
	if b {
		return -1
	}
	return 1
}
