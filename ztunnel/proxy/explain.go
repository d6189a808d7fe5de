// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/policy"
)

// Explanation is what would become of a connection of a pod, as far as this ztunnel knows: the other end's ztunnel
// decides by what it knows itself. The admin page shows it.
type Explanation struct {
	// Source is who the pod is; Problem is why it is nobody, and then nothing else is set.
	Source         string `json:"source,omitempty"`
	SourceIdentity string `json:"sourceIdentity,omitempty"`
	Problem        string `json:"problem,omitempty"`
	// Routes are one for each address of the destination.
	Routes []Explained `json:"routes"`
}

// Explained is one address of an Explanation.
type Explained struct {
	Destination netip.AddrPort `json:"destination"`
	// Service is what has the address as its own, or a range around it; Known tells whether anybody has it.
	Service string `json:"service,omitempty"`
	Known   bool   `json:"known"`
	// Verdict is how it would be carried, or why refused; Error says more about a refusal.
	Verdict Verdict `json:"verdict"`
	Error   string  `json:"error,omitempty"`
	// Workload would answer at Dial, in HBONE for Authority; of a service, one of Endpoints.
	Workload  string `json:"workload,omitempty"`
	Identity  string `json:"identity,omitempty"`
	Protocol  string `json:"protocol,omitempty"`
	Node      string `json:"node,omitempty"`
	Endpoints int    `json:"endpoints,omitempty"`
	Waypoint  string `json:"waypoint,omitempty"`
	// Gateway leads to another network, where somebody of the service would answer. Hostname is to be resolved for Dial.
	Gateway   string         `json:"gateway,omitempty"`
	Hostname  string         `json:"hostname,omitempty"`
	Dial      netip.AddrPort `json:"dial,omitzero"`
	Authority string         `json:"authority,omitempty"`
	// Policies apply to the workload: it asks them. Allowed is what they would say; Policy is the one that decides.
	Policies []string `json:"policies,omitempty"`
	Allowed  bool     `json:"allowed"`
	Policy   string   `json:"policy,omitempty"`
	Reason   string   `json:"reason,omitempty"`
}

// Explain says what would become of a connection of a pod to destination: "address:port" or "host:port", where host is a
// service's, in full or as the pod would say it. It changes nothing but whose turn it is.
func (p *Proxy) Explain(pod inpod.Info, destination string) (*Explanation, error) {
	e := &Explanation{Routes: []Explained{}}
	src := (&podProxy{Proxy: p, info: pod}).lookUpSelf()
	if src == nil {
		e.Problem = fmt.Sprintf("workload %s (service account %s) is not known over xDS", pod, pod.ServiceAccount)
		return e, nil
	}
	e.Source, e.SourceIdentity = src.Namespace+"/"+src.Name, src.Identity().String()
	addrs, err := p.destinations(src, destination)
	if err != nil {
		return nil, err
	}
	for _, to := range addrs {
		e.Routes = append(e.Routes, p.explain(src, to))
	}
	return e, nil
}

// destinations finds the addresses that are meant.
func (p *Proxy) destinations(src *discovery.Workload, destination string) ([]netip.AddrPort, error) {
	if to, err := netip.ParseAddrPort(destination); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(to.Addr().Unmap(), to.Port())}, nil
	}
	host, text, ok := strings.Cut(destination, ":")
	port, err := strconv.ParseUint(text, 10, 16)
	if !ok || err != nil {
		return nil, fmt.Errorf("destination %q: want ADDRESS:PORT or HOST:PORT", destination)
	}
	host = strings.TrimSuffix(host, ".")
	for _, name := range []string{host, host + "." + src.Namespace + ".svc.cluster.local", host + ".svc.cluster.local", host + ".cluster.local"} {
		svc := p.Store.ServiceByHostname("", name, src.Namespace)
		if svc == nil {
			continue
		}
		var all []netip.AddrPort
		for _, vip := range svc.VIPs {
			if vip.Network == p.Network {
				all = append(all, netip.AddrPortFrom(vip.Addr, uint16(port)))
			}
		}
		if len(all) == 0 {
			return nil, fmt.Errorf("service %s has no address of its own: ask for the address of one of its pods", svc.Key())
		}
		return all, nil
	}
	return nil, fmt.Errorf("no service %q is known in namespace %s: give an address", host, src.Namespace)
}

func (p *Proxy) explain(src *discovery.Workload, to netip.AddrPort) Explained {
	e := Explained{Destination: to}
	svc := p.Store.ServiceByVIP(p.Network, to.Addr(), src.Namespace)
	if svc != nil {
		e.Service, e.Known, e.Endpoints = svc.Key().String(), true, len(p.Store.Endpoints(svc.Key()))
	} else if w := p.Store.WorkloadByAddr(p.Network, to.Addr()); w != nil {
		e.Known = true
		e.describe(w)
	}
	if isHidden(to.Addr()) {
		e.Verdict, e.Error = VerdictHiddenAddress, "no connection may be aimed at the address of ztunnel's listeners"
		return e
	}
	route, err := p.router.outbound(src, to)
	if err != nil {
		var r *refusal
		if errors.As(err, &r) {
			e.Verdict = r.verdict
		}
		e.Error = err.Error()
		return e
	}
	e.Verdict, e.Dial, e.Authority, e.Allowed = route.carried, route.dial, route.authority, true
	if route.workload == nil {
		return e
	}
	e.describe(route.workload)
	switch {
	case route.inner != nil:
		e.Gateway = e.Workload
	case route.waypoint:
		e.Waypoint = e.Workload
	}
	if !route.dial.Addr().IsValid() {
		e.Hostname = route.workload.Hostname
	}
	e.decide(p, src, route)
	return e
}

func (e *Explained) describe(w *discovery.Workload) {
	e.Workload, e.Identity, e.Protocol, e.Node = w.Namespace+"/"+w.Name, w.Identity().String(), w.Protocol.String(), w.Node
}

// decide asks the policies of who answers. Those of a pod that is not in the mesh bind nobody, a waypoint's are not all
// that it goes by, and a gateway's are not those of who is behind it.
func (e *Explained) decide(p *Proxy, src *discovery.Workload, r *route) {
	if r.carried != VerdictMTLS || r.inner != nil {
		return
	}
	policies := p.Store.PoliciesFor(r.workload)
	for _, each := range policies {
		name := each.Key()
		if each.DryRun {
			name += " (dry run)"
		}
		e.Policies = append(e.Policies, name)
	}
	input := policy.Input{Source: policy.Identity(src.Identity()), Dest: r.dial}
	if to, err := netip.ParseAddrPort(r.authority); err == nil && e.Waypoint == "" {
		input.Dest = to
	}
	if r.authority == "" {
		input.Dest = netip.AddrPortFrom(netip.Addr{}, r.target) // its address is not known yet
	}
	for _, a := range src.Addresses {
		if a.Is4() == input.Dest.Addr().Is4() {
			input.SourceIP = a
			break
		}
	}
	d := policy.Decide(input, policies)
	e.Allowed, e.Policy, e.Reason = d.Allow, d.Policy, d.Reason
}
