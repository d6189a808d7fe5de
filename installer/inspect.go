// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
)

// meshView is what verify and why use of ztunnel's config dump; the keys are those of ztunnel/discovery.Dump.
type meshView struct {
	Workloads []meshWorkload `json:"workloads"`
	Services  []meshService  `json:"services"`
	Policies  []meshPolicy   `json:"policies"`
}

type meshWorkload struct {
	UID            string                       `json:"uid"`
	Name           string                       `json:"name"`
	Namespace      string                       `json:"namespace"`
	ServiceAccount string                       `json:"serviceAccount"`
	TrustDomain    string                       `json:"trustDomain"`
	Addresses      []netip.Addr                 `json:"workloadIps"`
	Protocol       string                       `json:"protocol"`
	Node           string                       `json:"node"`
	Network        string                       `json:"network"`
	Status         string                       `json:"status"`
	Waypoint       *meshGateway                 `json:"waypoint"`
	Policies       []string                     `json:"authorizationPolicies"`
	Services       map[string]map[uint16]uint16 `json:"services"`
}

type meshGateway struct {
	Destination string `json:"destination"`
}

type meshService struct {
	Name       string            `json:"name"`
	Namespace  string            `json:"namespace"`
	Hostname   string            `json:"hostname"`
	Visibility string            `json:"visibility"`
	VIPs       []string          `json:"vips"`     // network/address
	CIDRVIPs   []string          `json:"cidrVips"` // network/address/bits
	Ports      map[uint16]uint16 `json:"ports"`
	Waypoint   *meshGateway      `json:"waypoint"`
	Endpoints  map[string]any    `json:"endpoints"`
}

type meshPolicy struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Scope     string `json:"scope"`
	Action    string `json:"action"`
	DryRun    bool   `json:"dryRun"`
}

// endedConn is what is used of ztunnel's /debug/connections.
type endedConn struct {
	At          time.Time      `json:"at"`
	Direction   string         `json:"direction"`
	Src         netip.AddrPort `json:"src"`
	Dst         netip.AddrPort `json:"dst"`
	DstIdentity string         `json:"dstIdentity"`
	SrcIdentity string         `json:"srcIdentity"`
	HBONEAddr   string         `json:"hboneAddr"`
	Service     string         `json:"service"`
	Verdict     string         `json:"verdict"`
	Policy      string         `json:"policy"`
	Error       string         `json:"error"`
}

// identity is the name in the workload's certificate.
func (w *meshWorkload) identity() string {
	return fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", w.TrustDomain, w.Namespace, w.ServiceAccount)
}

// addrs are the service's own addresses.
func (s *meshService) addrs() (all []netip.Addr) {
	for _, vip := range s.VIPs {
		if a, err := netip.ParseAddr(vip[strings.LastIndex(vip, "/")+1:]); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// has tells whether the address is one of the service's, or in a range of its.
func (s *meshService) has(addr netip.Addr) bool {
	return slices.Contains(s.addrs(), addr) || slices.ContainsFunc(s.CIDRVIPs, func(text string) bool {
		_, cidr, _ := strings.Cut(text, "/")
		p, err := netip.ParsePrefix(cidr)
		return err == nil && p.Contains(addr)
	})
}

func sortedPorts(ports map[uint16]uint16) []uint16 { return slices.Sorted(maps.Keys(ports)) }

// findPod opens the one attached pod that a user's word names. The caller closes both.
func findPod(pinRoot, typed string) (*bpf.Node, *bpf.Pod, error) {
	node, err := bpf.OpenNode(pinRoot)
	if err != nil {
		return nil, nil, err
	}
	pod, err := findPodIn(node, typed)
	if err != nil {
		return nil, nil, errors.Join(err, node.Close())
	}
	return node, pod, nil
}

func findPodIn(node *bpf.Node, typed string) (*bpf.Pod, error) {
	infos, err := node.Pods()
	if err != nil && len(infos) == 0 {
		return nil, err
	}
	var found []bpf.PodInfo
	for _, i := range infos {
		if isPod(typed, i.Namespace, i.Name, i.UID) || typed == i.ContainerID {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 1:
		return node.Pod(found[0].ID)
	case 0:
		return nil, fmt.Errorf("no pod %q is attached on this node: it is not enrolled, runs elsewhere, or is called otherwise (sluice-installer status lists all; NAMESPACE/NAME, name or uid)", typed)
	}
	var names []string
	for _, i := range found {
		names = append(names, i.Namespace+"/"+i.Name+" "+i.UID)
	}
	return nil, fmt.Errorf("%q names %d pods: %s", typed, len(found), strings.Join(names, ", "))
}
