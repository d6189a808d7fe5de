// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// Resolver knows the names of the mesh. It only looks things up.
type Resolver struct {
	Store *discovery.Store
	// Domain is the cluster's, "cluster.local".
	Domain string
	// PreferredNamespace has its services chosen over those of other namespaces with the same host name, unless one is
	// the client's own or canonical. It may be "".
	PreferredNamespace string
}

// answer is what a name of the mesh stands for.
type answer struct {
	// canonical is the name asked for without the search suffix that the client appended, "" if it appended none.
	canonical string
	addresses []netip.Addr // of both families
}

// lookup finds what client means by a name, in lower case and without the dot at its end. It is false for names that are
// not of the mesh.
func (r *Resolver) lookup(client *discovery.Workload, name string) (answer, bool) {
	for _, alias := range r.aliases(client.Namespace, name) {
		for candidate := range wildcards(alias.name) {
			if svc := r.choose(client, candidate); svc != nil {
				return answer{canonical: alias.canonical, addresses: r.addresses(client, svc)}, true
			}
		}
	}
	return answer{}, false
}

// choose picks among services that share a host name: ambient section 8.7. One without VIP has no addresses of its own,
// unless it is a headless one of Kubernetes.
func (r *Resolver) choose(client *discovery.Workload, hostname string) *discovery.Service {
	services := slices.DeleteFunc(r.Store.ServicesByHostname(hostname, client.Namespace), func(s *discovery.Service) bool {
		return len(s.VIPs) == 0 && !under(hostname, "svc."+r.Domain)
	})
	if len(services) == 0 {
		return nil
	}
	best := services[0] // the client's own, or a canonical one if there is any
	if best.Namespace == client.Namespace || best.Canonical {
		return best
	}
	for _, s := range services {
		if s.Namespace == r.PreferredNamespace {
			return s
		}
	}
	return best
}

// addresses are those of the client's own network: the service's VIPs, or its endpoints' if it has none.
func (r *Resolver) addresses(client *discovery.Workload, svc *discovery.Service) []netip.Addr {
	var found []netip.Addr
	for _, vip := range svc.VIPs {
		if vip.Network == client.Network {
			found = append(found, vip.Addr)
		}
	}
	if len(svc.VIPs) > 0 {
		return found
	}
	for _, e := range r.Store.Endpoints(svc.Key()) {
		if e.Workload.Network != client.Network {
			continue
		}
		for _, a := range e.Workload.Addresses {
			if serves(svc.IPFamilies, a) && !slices.Contains(found, a) {
				found = append(found, a)
			}
		}
	}
	return found
}

func serves(families discovery.IPFamilies, a netip.Addr) bool {
	switch families {
	case discovery.FamiliesIPv4:
		return a.Is4()
	case discovery.FamiliesIPv6:
		return a.Is6()
	}
	return true
}

func under(name, domain string) bool { return strings.HasSuffix(name, "."+domain) }
