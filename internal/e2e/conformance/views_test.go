// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"strings"
	"text/template"
)

// view is what the ztunnels of both nodes are told.
type view struct {
	name    string
	objects [2]string // YAML of local xDS, with {{.NAME}} for pods' addresses and {{.NAME6}} for their others
	flags   func(w *world, node int) []string
}

// fill puts addresses into a text.
func (s *scene) fill(text string) string {
	s.t.Helper()
	addrs := map[string]string{}
	for name, p := range s.pods {
		addrs[name], addrs[name+"6"] = p.Addr4.String(), p.Addr6.String()
	}
	for _, n := range s.Nodes {
		addrs[n.Name] = n.Wire4.String()
	}
	t, err := template.New("").Option("missingkey=error").Parse(text)
	s.must(err)
	var b strings.Builder
	s.must(t.Execute(&b, addrs))
	return b.String()
}

// onOneNetwork is the view of most scenarios.
var onOneNetwork = &view{name: "one-network", objects: [2]string{everything, everything}}

const everything = `
workloads:
- {name: client, namespace: mesh, serviceAccount: client, protocol: HBONE, workloadIps: [{{.client}}, "{{.client6}}"], workloadName: client, services: {}}
- {name: near, namespace: mesh, serviceAccount: near, protocol: HBONE, workloadIps: [{{.near}}, "{{.near6}}"], workloadName: near, services: {}}
- name: server
  namespace: mesh
  serviceAccount: server
  protocol: HBONE
  workloadIps: [{{.server}}, "{{.server6}}"]
  workloadName: server
  services:
    mesh/both.mesh.svc.cluster.local: {80: 7013}
    mesh/numbered.mesh.svc.cluster.local: {80: 7080}
    mesh/named.mesh.svc.cluster.local: {80: 7081}
- {name: tcpserver, namespace: plain, protocol: TCP, workloadIps: [{{.tcpserver}}], workloadName: tcpserver, services: {mesh/both.mesh.svc.cluster.local: {80: 7013}}}
- {name: plain, namespace: plain, protocol: TCP, workloadIps: [{{.plain}}], workloadName: plain, services: {}}
- {name: behind, namespace: mesh, serviceAccount: behind, protocol: HBONE, workloadIps: [10.244.2.250], services: {}, waypoint: {destination: /{{.waypoint}}}}
- name: waypoint
  namespace: plain
  serviceAccount: waypoint
  protocol: HBONE
  hostname: waypoint.workload.example
  workloadIps: [{{.waypoint}}]
  workloadName: waypoint
  services: {plain/waypoint.plain.svc.cluster.local: {15008: 15008}}
- {name: sandwich, namespace: mesh, serviceAccount: sandwich, protocol: HBONE, workloadIps: [{{.sandwich}}], services: {}}
- {name: proxied, namespace: mesh, serviceAccount: proxied, protocol: HBONE, workloadIps: [{{.proxied}}], services: {}, applicationTunnel: {protocol: PROXY, port: 15088}}
- {name: walled, namespace: mesh, serviceAccount: walled, protocol: HBONE, workloadIps: [{{.walled}}], services: {}, authorizationPolicies: [mesh/others-only]}
- {name: leaver, namespace: mesh, serviceAccount: leaver, protocol: HBONE, workloadIps: [{{.leaver}}], services: {}}
- {name: visitor, namespace: mesh, serviceAccount: visitor, protocol: HBONE, workloadIps: [], services: {}}
- {name: ztunnel-node1, namespace: sluice-system, serviceAccount: ztunnel, protocol: HBONE, workloadIps: [{{.node1}}], services: {}}
- {name: ztunnel-node2, namespace: sluice-system, serviceAccount: ztunnel, protocol: HBONE, workloadIps: [{{.node2}}], services: {}}
services:
- {name: by-address, namespace: mesh, hostname: by-address.mesh.svc.cluster.local, vips: [/10.99.0.1], ports: {80: 8080}, waypoint: {destination: /{{.waypoint}}}}
- {name: by-service, namespace: mesh, hostname: by-service.mesh.svc.cluster.local, vips: [/10.99.0.2], ports: {80: 8080}, waypoint: {destination: plain/waypoint.plain.svc.cluster.local}}
- {name: by-workload, namespace: mesh, hostname: by-workload.mesh.svc.cluster.local, vips: [/10.99.0.3], ports: {80: 8080}, waypoint: {destination: plain/waypoint.workload.example}}
- {name: waypoint, namespace: plain, hostname: waypoint.plain.svc.cluster.local, vips: [/10.99.0.10], ports: {15008: 15008}}
- {name: sandwiched, namespace: mesh, hostname: sandwiched.mesh.svc.cluster.local, vips: [/10.99.0.4], ports: {80: 80}, waypoint: {destination: /{{.sandwich}}}}
- {name: introduced, namespace: mesh, hostname: introduced.mesh.svc.cluster.local, vips: [/10.99.0.5], ports: {80: 80}, waypoint: {destination: /{{.proxied}}}}
- {name: both, namespace: mesh, hostname: both.mesh.svc.cluster.local, vips: [/10.99.0.6], ports: {80: 7013}}
- {name: numbered, namespace: mesh, hostname: numbered.mesh.svc.cluster.local, vips: [/10.99.0.7], ports: {80: 7080}}
- {name: named, namespace: mesh, hostname: named.mesh.svc.cluster.local, vips: [/10.99.0.8], ports: {80: 0}}
policies:
- {name: others-only, namespace: mesh, scope: WorkloadSelector, action: Allow, rules: [[[{principals: [{Exact: cluster.local/ns/mesh/sa/somebody-else}]}]]]}
`

// inTwoTrustDomains has the client, and nobody else, in another.
var inTwoTrustDomains = &view{
	name:    "two-trust-domains",
	objects: [2]string{strings.Replace(everything, "serviceAccount: client,", "serviceAccount: client, trustDomain: elsewhere.example,", 1), everything},
	flags: func(w *world, node int) []string {
		if node == 1 {
			return nil
		}
		return []string{"--ca-address", "unix://" + w.caSocket("elsewhere.example")}
	},
}

// onTwoNetworks has the second node on a network that the first knows by its gateway.
var onTwoNetworks = &view{
	name:    "two-networks",
	objects: [2]string{withFarServices, farNetwork},
	flags: func(_ *world, node int) []string {
		if node == 0 {
			return nil
		}
		return []string{"--network", "far"}
	},
}

const withFarServices = `
workloads:
- {name: client, namespace: mesh, serviceAccount: client, protocol: HBONE, workloadIps: [{{.client}}, "{{.client6}}"], workloadName: client, services: {}}
- {name: near, namespace: mesh, serviceAccount: near, protocol: HBONE, workloadIps: [{{.near}}, "{{.near6}}"], workloadName: near, services: {}}
- {name: gateway, namespace: plain, serviceAccount: gateway, network: far, protocol: HBONE, workloadIps: [{{.gateway}}], workloadName: gateway, services: {plain/gateway.far.example: {15009: 15008}}}
- {name: far1, namespace: mesh, serviceAccount: server, network: far, protocol: HBONE, workloadIps: [], services: {mesh/far1.mesh.svc.cluster.local: {8080: 8080}}, networkGateway: {destination: far/{{.gateway}}, hboneMtlsPort: 15008}}
- {name: far2, namespace: mesh, serviceAccount: server, network: far, protocol: HBONE, workloadIps: [], services: {mesh/far2.mesh.svc.cluster.local: {8080: 8080}}, networkGateway: {destination: plain/gateway.far.example, hboneMtlsPort: 15009}}
services:
- {name: far1, namespace: mesh, hostname: far1.mesh.svc.cluster.local, vips: [/10.99.1.1], ports: {8080: 8080}, subjectAltNames: [spiffe://cluster.local/ns/mesh/sa/server]}
- {name: far2, namespace: mesh, hostname: far2.mesh.svc.cluster.local, vips: [/10.99.1.2], ports: {8080: 8080}, subjectAltNames: [spiffe://cluster.local/ns/mesh/sa/server]}
- {name: gateway, namespace: plain, hostname: gateway.far.example, vips: [far/10.99.1.9], ports: {15009: 15008}}
`

const farNetwork = `
workloads:
- name: server
  namespace: mesh
  serviceAccount: server
  network: far
  protocol: HBONE
  workloadIps: [{{.server}}, "{{.server6}}"]
  workloadName: server
  services:
    mesh/far1.mesh.svc.cluster.local: {8080: 7011}
    mesh/far2.mesh.svc.cluster.local: {8080: 7011}
- {name: gateway, namespace: plain, serviceAccount: gateway, network: far, protocol: HBONE, workloadIps: [{{.gateway}}], workloadName: gateway, services: {}}
services:
- {name: far1, namespace: mesh, hostname: far1.mesh.svc.cluster.local, vips: [far/10.99.2.1], ports: {8080: 7011}}
- {name: far2, namespace: mesh, hostname: far2.mesh.svc.cluster.local, vips: [far/10.99.2.2], ports: {8080: 7011}}
`
