// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
)

// PodConfig says which pod to attach to, and how.
type PodConfig struct {
	ID          string // names the pod for all other calls; without "/" and "."
	UID         string
	Namespace   string
	Name        string
	ContainerID string
	Network     string // of the CNI plugin's call, empty for all other callers

	NetnsPath  string
	Interfaces []string // inside the pod; not lo
	// HostIfindexes are the host's ends of the pod's links, in the calling thread's network namespace. Empty: no guard.
	HostIfindexes []int
	// Addresses are the pod's own, to tell probes by. nil: those it had, when attaching again.
	Addresses []netip.Addr

	// CaptureAll captures connections to every destination, in the mesh or not.
	CaptureAll bool
	// CaptureDNS hands queries to port 53, over UDP and TCP, to ztunnel's resolver. Needs the [DNSSlots] filled.
	CaptureDNS bool
	// BypassInbound leaves connections from the network to the app, mutual TLS to port 15008 excepted.
	BypassInbound bool
	// Exclude exempts destinations from capture, also from CaptureAll, and from guard.
	Exclude Exclusions
	// Grandfather exempts the connections that are open now. For pods that run already; ignored when attaching again.
	Grandfather bool
	// Listeners are put into their slots before the first program is attached, so that no connection is refused
	// meanwhile. The caller keeps the descriptors. Slots that are not named stay as they are.
	Listeners map[Slot]int
}

// Validate returns all mistakes that can be seen without looking at the system.
func (c *PodConfig) Validate() error {
	errs := []error{validID(c.ID)}
	if c.NetnsPath == "" {
		errs = append(errs, errors.New("netns path is empty"))
	}
	if len(c.Interfaces) == 0 {
		errs = append(errs, errors.New("no interfaces"))
	}
	for _, i := range c.HostIfindexes {
		if i <= 0 {
			errs = append(errs, fmt.Errorf("host ifindex %d is not positive", i))
		}
	}
	return errors.Join(append(errs, c.Exclude.Validate())...)
}

func (c *PodConfig) info() PodInfo {
	return PodInfo{
		ID: c.ID, UID: c.UID, Namespace: c.Namespace, Name: c.Name, ContainerID: c.ContainerID, Network: c.Network,
		NetnsPath: c.NetnsPath, Interfaces: c.Interfaces, HostIfindexes: c.HostIfindexes, CaptureAll: c.CaptureAll,
		Addresses: c.Addresses, CaptureDNS: c.CaptureDNS, BypassInbound: c.BypassInbound, Exclude: c.Exclude,
	}
}
