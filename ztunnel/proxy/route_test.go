// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
)

// wanted is a route, or the verdict of a refusal, as a test writes it.
type wanted struct {
	Carried   Verdict
	Dial      string
	Authority string
	Expected  string // service accounts of the expected identities
	Inner     string // those of the far end
	Workload  string
	Service   string
	Refused   Verdict
}

func describe(r *route, err error) wanted {
	if err != nil {
		var refused *refusal
		if errors.As(err, &refused) {
			return wanted{Refused: refused.verdict}
		}
		return wanted{Refused: Verdict(err.Error())}
	}
	w := wanted{Carried: r.carried, Dial: r.dial.String(), Authority: r.authority}
	w.Expected, w.Inner = accounts(r.expected), accounts(r.inner)
	if r.workload != nil {
		w.Workload = r.workload.Name
	}
	if r.service != nil {
		w.Service = r.service.Name
	}
	return w
}

func accounts(ids []string) string {
	var names []string
	for _, id := range ids {
		names = append(names, id[strings.LastIndex(id, "/")+1:])
	}
	return strings.Join(names, " ")
}

func hboneTo(ip, authority, name, service string) wanted {
	return wanted{Carried: VerdictMTLS, Dial: ip + ":15008", Authority: authority, Expected: name, Workload: name, Service: service}
}

func TestOutboundRoutes(t *testing.T) {
	named := func(s *discovery.Service) { s.Ports = map[uint16]uint16{80: 0} }
	passthrough := func(s *discovery.Service) { s.LoadBalancing.Mode = discovery.ModePassthrough }
	waypointed := func(gw *discovery.Gateway) func(*discovery.Service) {
		return func(s *discovery.Service) { s.Waypoint = gw }
	}
	store := storeOf(
		pod("client", "10.0.0.1"),
		pod("server", "10.0.0.2", withAddr("fd00::2"), serving("web", 80, 8080), serving("named", 80, 9090)),
		pod("plain", "10.0.0.3", plainTCP, serving("tcp", 80, 8080)),
		pod("sick", "10.0.0.4", serving("sick", 80, 8080), func(w *discovery.Workload) { w.Healthy = false }),
		pod("host", "192.168.0.1", plainTCP, serving("onhost", 80, 8080), func(w *discovery.Workload) { w.HostNetwork = true }),
		pod("waypoint", "10.0.0.9", serving("gate", 15008, 15008)),
		pod("behind", "10.0.0.5", withWaypoint(gatewayAt("10.0.0.9")), serving("mixed", 80, 8080)),
		pod("behind-service", "10.0.0.6", withWaypoint(gatewayNamed("gate"))),
		pod("behind-nothing", "10.0.0.7", withWaypoint(gatewayNamed("missing"))),
		pod("weightless", "10.0.0.8", serving("weightless", 80, 80), func(w *discovery.Workload) { w.Capacity = 0 }),
		service("web", "10.1.0.1", []uint16{80, 8080}, func(s *discovery.Service) {
			s.SubjectAltNames = []string{"spiffe://cluster.local/ns/default/sa/twin"}
			s.VIPs = append(s.VIPs, discovery.NetworkAddr{Addr: netip.MustParseAddr("fd01::1")})
		}),
		service("named", "10.1.0.2", nil, named),
		service("tcp", "10.1.0.3", []uint16{80, 8080}),
		service("sick", "10.1.0.4", []uint16{80, 8080}),
		service("empty", "10.1.0.5", []uint16{80, 8080}),
		service("onhost", "10.1.0.6", []uint16{80, 8080}),
		service("passing", "10.1.0.7", []uint16{80, 80}, passthrough),
		service("passing-pods", "10.0.0.0", nil, passthrough, func(s *discovery.Service) {
			s.CIDRVIPs = append(s.CIDRVIPs, discovery.NetworkPrefix{Prefix: netip.MustParsePrefix("10.0.0.0/16")})
		}),
		service("passing-pod", "10.0.0.2", nil, passthrough),
		service("gate", "10.1.0.8", []uint16{15008, 15008}),
		pod("tunnel", "10.0.0.20", serving("tunnelgate", 80, 80), func(w *discovery.Workload) { w.AppTunnel = &discovery.Tunnel{Port: 15088} }),
		pod("portless", "10.0.0.21", serving("portlessgate", 80, 80)),
		service("tunnelgate", "", []uint16{80, 80}, func(s *discovery.Service) { s.Private = true }), service("portlessgate", "", []uint16{80, 80}),
		service("bytunnel", "10.1.0.20", []uint16{80, 80}, waypointed(gatewayNamed("tunnelgate")), func(s *discovery.Service) { s.Namespace = "elsewhere" }),
		service("byportless", "10.1.0.21", []uint16{80, 80}, waypointed(gatewayNamed("portlessgate"))),
		service("byaddr", "10.1.0.9", []uint16{80, 80}, waypointed(gatewayAt("10.0.0.9"))),
		service("byname", "10.1.0.10", []uint16{80, 80}, waypointed(gatewayNamed("gate"))),
		service("byvip", "10.1.0.11", []uint16{80, 80}, waypointed(gatewayAt("10.1.0.8"))),
		service("bynothing", "10.1.0.12", []uint16{80, 80}, waypointed(gatewayNamed("missing"))),
		service("passing-waypoint", "10.1.0.13", []uint16{80, 80}, passthrough, waypointed(gatewayAt("10.0.0.9"))),
		service("mixed", "10.1.0.14", []uint16{80, 8080}),
		service("weightless", "10.1.0.15", []uint16{80, 80}),
		service("private", "10.1.0.16", []uint16{80, 80}, func(s *discovery.Service) {
			s.Namespace, s.Private = "elsewhere", true
			s.CIDRVIPs = append(s.CIDRVIPs, discovery.NetworkPrefix{Prefix: netip.MustParsePrefix("10.2.0.0/16")})
		}),
	)
	store.RememberGone()
	store.Apply(discovery.Update{Workloads: []*discovery.Workload{
		pod("gone", "10.3.0.1", withAddr("10.0.9.77")), pod("gone-plain", "10.3.0.2", plainTCP),
	}})
	store.Apply(discovery.Update{RemoveAddresses: []string{"Kubernetes//Pod/default/gone", "Kubernetes//Pod/default/gone-plain"}})
	for _, tc := range []struct {
		name, src, to string
		want          wanted
	}{
		{"unknown address", "client", "1.2.3.4:443", wanted{Carried: VerdictPassthrough, Dial: "1.2.3.4:443"}},
		{"pod that speaks HBONE", "client", "10.0.0.2:8080", hboneTo("10.0.0.2", "10.0.0.2:8080", "server", "")},
		{"the same over IPv6", "client", "[fd00::2]:8080", hboneTo("[fd00::2]", "[fd00::2]:8080", "server", "")},
		{"the pod itself", "server", "10.0.0.2:8080", wanted{Carried: VerdictLocal, Dial: "10.0.0.2:8080", Workload: "server"}},
		{"service that picks the client itself", "server", "10.1.0.1:80", wanted{Carried: VerdictLocal, Dial: "10.0.0.2:8080", Workload: "server", Service: "web"}},
		{"pod that speaks plain TCP", "client", "10.0.0.3:9", wanted{Carried: VerdictPlaintext, Dial: "10.0.0.3:9", Workload: "plain"}},
		{"unhealthy pod by its address", "client", "10.0.0.4:80", hboneTo("10.0.0.4", "10.0.0.4:80", "sick", "")},
		{"host network by its address", "client", "192.168.0.1:80", wanted{Carried: VerdictPassthrough, Dial: "192.168.0.1:80"}},
		{"service: target port and extra identities", "client", "10.1.0.1:80", wanted{
			Carried: VerdictMTLS, Dial: "10.0.0.2:15008", Authority: "10.0.0.2:8080", Expected: "server twin", Workload: "server", Service: "web"}},
		{"service: endpoint's address of the client's family", "client", "[fd01::1]:80", wanted{
			Carried: VerdictMTLS, Dial: "[fd00::2]:15008", Authority: "[fd00::2]:8080", Expected: "server twin", Workload: "server", Service: "web"}},
		{"service: named port", "client", "10.1.0.2:80", hboneTo("10.0.0.2", "10.0.0.2:9090", "server", "named")},
		{"service: plain TCP endpoint", "client", "10.1.0.3:80", wanted{Carried: VerdictPlaintext, Dial: "10.0.0.3:8080", Workload: "plain", Service: "tcp"}},
		{"service: host network endpoint", "client", "10.1.0.6:80", wanted{Carried: VerdictPlaintext, Dial: "192.168.0.1:8080", Workload: "host", Service: "onhost"}},
		{"service: port it does not have", "client", "10.1.0.1:81", wanted{Refused: VerdictNoEndpoint}},
		{"service: only unhealthy endpoints", "client", "10.1.0.4:80", wanted{Refused: VerdictNoEndpoint}},
		{"service: no endpoints", "client", "10.1.0.5:80", wanted{Refused: VerdictNoEndpoint}},
		{"service: endpoints without capacity", "client", "10.1.0.15:80", wanted{Refused: VerdictNoEndpoint}},
		{"service: passthrough", "client", "10.1.0.7:80", wanted{Carried: VerdictPassthrough, Dial: "10.1.0.7:80", Service: "passing"}},
		{"service: passthrough, in whose range, and at whose address, a pod speaks HBONE", "client", "10.0.0.2:8080", hboneTo("10.0.0.2", "10.0.0.2:8080", "server", "")},
		{"the same, at a pod with a waypoint", "client", "10.0.0.5:80", hboneTo("10.0.0.9", "10.0.0.5:80", "waypoint", "")},
		{"service: passthrough, at a stranger's address", "client", "10.0.9.9:80", wanted{Carried: VerdictPassthrough, Dial: "10.0.9.9:80", Service: "passing-pods"}},
		{"service: passthrough with waypoint", "client", "10.1.0.13:80", hboneTo("10.0.0.9", "10.1.0.13:80", "waypoint", "passing-waypoint")},
		{"service: waypoint by address", "client", "10.1.0.9:80", hboneTo("10.0.0.9", "10.1.0.9:80", "waypoint", "byaddr")},
		{"service: waypoint by host name", "client", "10.1.0.10:80", hboneTo("10.0.0.9", "10.1.0.10:80", "waypoint", "byname")},
		{"service: waypoint by VIP", "client", "10.1.0.11:80", hboneTo("10.0.0.9", "10.1.0.11:80", "waypoint", "byvip")},
		{"service: waypoint with an application tunnel, HBONE not in its service", "client", "10.1.0.20:80", hboneTo("10.0.0.20", "10.1.0.20:80", "tunnel", "bytunnel")},
		{"service: waypoint whose service has no HBONE", "client", "10.1.0.21:80", wanted{Refused: VerdictWaypoint}},
		{"service: unknown waypoint", "client", "10.1.0.12:80", wanted{Refused: VerdictWaypoint}},
		{"service without waypoint, endpoint with one", "client", "10.1.0.14:80", hboneTo("10.0.0.5", "10.0.0.5:8080", "behind", "mixed")},
		{"pod with waypoint by address", "client", "10.0.0.5:80", hboneTo("10.0.0.9", "10.0.0.5:80", "waypoint", "")},
		{"pod with waypoint by host name", "client", "10.0.0.6:80", hboneTo("10.0.0.9", "10.0.0.6:80", "waypoint", "")},
		{"pod with unknown waypoint", "client", "10.0.0.7:80", wanted{Refused: VerdictWaypoint}},
		{"pod with waypoint, asked by that waypoint", "waypoint", "10.0.0.5:80", hboneTo("10.0.0.5", "10.0.0.5:80", "behind", "")},
		{"the same, waypoint by host name", "waypoint", "10.0.0.6:80", hboneTo("10.0.0.6", "10.0.0.6:80", "behind-service", "")},
		{"service of which the client must not know", "client", "10.1.0.16:80", wanted{Refused: VerdictNoEndpoint}},
		{"the same, by a range of addresses", "client", "10.2.3.4:80", wanted{Carried: VerdictPassthrough, Dial: "10.2.3.4:80"}},
		{"address of a pod that is gone", "client", "10.3.0.1:80", wanted{Refused: VerdictNoEndpoint}},
		{"the same, of one outside the mesh", "client", "10.3.0.2:80", wanted{Carried: VerdictPassthrough, Dial: "10.3.0.2:80"}},
		{"the same, of one in a passthrough service's range", "client", "10.0.9.77:80", wanted{Refused: VerdictNoEndpoint}},
		{"loopback and a port of ztunnel", "client", "127.0.0.1:15008", wanted{Refused: VerdictReservedPort}},
		{"loopback, IPv6", "client", "[::1]:15001", wanted{Refused: VerdictReservedPort}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &router{store: store, redirected: true}
			src := store.WorkloadByUID("Kubernetes//Pod/default/" + tc.src)
			got := describe(r.outbound(src, netip.MustParseAddrPort(tc.to)))
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("route (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBalanceFollowsCapacity(t *testing.T) {
	heavy := func(w *discovery.Workload) { w.Capacity = 3 }
	store := storeOf(pod("client", "10.0.0.1"), pod("a", "10.0.0.2", serving("web", 80, 80)), pod("b", "10.0.0.3", serving("web", 80, 80), heavy),
		service("web", "10.1.0.1", []uint16{80, 80}))
	r := &router{store: store}
	src := store.WorkloadByUID("Kubernetes//Pod/default/client")
	got := map[string]int{}
	for range 400 {
		route, err := r.outbound(src, netip.MustParseAddrPort("10.1.0.1:80"))
		if err != nil {
			t.Fatal(err)
		}
		got[route.workload.Name]++
	}
	if got["a"] < 95 || got["a"] > 105 || got["a"]+got["b"] != 400 {
		t.Errorf("got %v of 400, want about 100 for a and 300 for b", got)
	}
}

// What is chosen first says nothing of what is chosen next.
func TestChoicesAreIndependent(t *testing.T) {
	waypoint := func(name, addr string) *discovery.Workload { return pod(name, addr, serving(name[:1], 15008, 15008)) }
	store := storeOf(pod("client", "10.0.0.1"), waypoint("a1", "10.0.1.1"), waypoint("a2", "10.0.1.2"), waypoint("a3", "10.0.1.3"),
		waypoint("b1", "10.0.2.1"), waypoint("b2", "10.0.2.2"), waypoint("b3", "10.0.2.3"),
		service("a", "10.1.1.1", []uint16{15008, 15008}), service("b", "10.1.1.2", []uint16{15008, 15008}),
		service("web", "10.1.0.1", []uint16{80, 80}, func(s *discovery.Service) {
			for name, weight := range map[string]uint32{"a": 90, "b": 10} {
				s.WeightedWaypoints = append(s.WeightedWaypoints, discovery.WeightedGateway{Gateway: *gatewayNamed(name), Weight: weight})
			}
		}))
	r := &router{store: store}
	src := store.WorkloadByUID("Kubernetes//Pod/default/client")
	got := map[string]int{}
	for range 9000 {
		route, err := r.outbound(src, netip.MustParseAddrPort("10.1.0.1:80"))
		if err != nil {
			t.Fatal(err)
		}
		got[route.workload.Name]++
	}
	for name, n := range got {
		if want := map[byte]int{'a': 2700, 'b': 300}[name[0]]; n < want*2/3 || n > want*3/2 {
			t.Errorf("%s has %d of 9000 connections, want about %d", name, n, want)
		}
	}
	if len(got) != 6 {
		t.Errorf("chosen: %v, want six", got)
	}
}

func TestHandshakeRefusals(t *testing.T) {
	for want, err := range map[Verdict]error{
		VerdictUnknownWorkload: refuse(VerdictUnknownWorkload, "not known"),
		VerdictIdentity:        &identity.UnavailableError{Err: errors.New("the control plane is away")},
		VerdictTLS:             errors.New("bad record"),
	} {
		err = fmt.Errorf("%w: %w", hbone.ErrTLS, err)
		if got, _, _ := verdictOf(handshakeRefusal(err), ""); got != want {
			t.Errorf("%v: got %s, want %s", err, got, want)
		}
	}
}

func TestNearestEndpoints(t *testing.T) {
	in := func(region, zone, node string) func(*discovery.Workload) {
		return func(w *discovery.Workload) {
			w.Locality = discovery.Locality{Region: region, Zone: zone}
			w.Node = node
		}
	}
	candidates := []endpoint{
		{workload: pod("same-node", "10.0.0.2", in("r1", "z1", "n1"))},
		{workload: pod("same-zone", "10.0.0.3", in("r1", "z1", "n2"))},
		{workload: pod("same-region", "10.0.0.4", in("r1", "z2", "n3"))},
		{workload: pod("elsewhere", "10.0.0.5", in("r2", "z1", "n4"))},
	}
	src := pod("client", "10.0.0.1", in("r1", "z1", "n1"))
	lost := pod("client", "10.0.0.1", in("r9", "z9", "n9"))
	zone := []discovery.Scope{discovery.ScopeNetwork, discovery.ScopeRegion, discovery.ScopeZone}
	for _, tc := range []struct {
		name string
		src  *discovery.Workload
		lb   discovery.LoadBalancing
		want string
	}{
		{"no mode", src, discovery.LoadBalancing{RoutingPreference: zone}, "same-node same-zone same-region elsewhere"},
		{"failover", src, discovery.LoadBalancing{Mode: discovery.ModeFailover, RoutingPreference: zone}, "same-node same-zone"},
		{"failover from far away", lost, discovery.LoadBalancing{Mode: discovery.ModeFailover, RoutingPreference: zone}, "same-node same-zone same-region elsewhere"},
		{"strict", src, discovery.LoadBalancing{Mode: discovery.ModeStrict, RoutingPreference: []discovery.Scope{discovery.ScopeNode}}, "same-node"},
		{"strict, nobody near", lost, discovery.LoadBalancing{Mode: discovery.ModeStrict, RoutingPreference: []discovery.Scope{discovery.ScopeNode}}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var names []string
			for _, e := range nearest(tc.src, &discovery.Service{LoadBalancing: tc.lb}, candidates) {
				names = append(names, e.workload.Name)
			}
			if got := strings.Join(names, " "); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestInboundAuthorities(t *testing.T) {
	tunnel := func(port uint16) func(*discovery.Workload) {
		return func(w *discovery.Workload) { w.AppTunnel = &discovery.Tunnel{Port: port} }
	}
	store := storeOf(
		pod("server", "10.0.0.2", withAddr("fd00::2"), serving("web", 80, 8080), serving("named", 80, 9090)),
		pod("waypoint", "10.0.0.9", serving("gate", 15008, 15008)),
		pod("tunnel", "10.0.0.10", tunnel(15088)),
		pod("behind", "10.0.0.5", withWaypoint(gatewayAt("10.0.0.9"))),
		pod("behind-service", "10.0.0.6", withWaypoint(gatewayNamed("gate"))),
		service("gate", "10.1.0.8", []uint16{15008, 15008}),
		service("web", "10.1.0.1", []uint16{80, 8080}),
		service("named", "10.1.0.2", []uint16{80, 0}),
		service("private", "10.1.0.4", []uint16{80, 80}, func(s *discovery.Service) {
			s.Namespace, s.Private, s.Waypoint = "elsewhere", true, gatewayNamed("gate")
			s.CIDRVIPs = append(s.CIDRVIPs, discovery.NetworkPrefix{Prefix: netip.MustParsePrefix("10.2.0.0/16")})
		}),
		service("mine", "10.1.0.3", []uint16{80, 80}, func(s *discovery.Service) { s.Waypoint = gatewayNamed("gate") }),
	)
	for _, tc := range []struct {
		name, self, local, authority, want string
		status                             int
	}{
		{"own address", "server", "10.0.0.2", "10.0.0.2:8080", "10.0.0.2:8080", 0},
		{"own address, IPv6", "server", "fd00::2", "[fd00::2]:8080", "[fd00::2]:8080", 0},
		{"own address, but not this connection's", "server", "10.0.0.2", "[fd00::2]:8080", "ip mismatch: fd00::2 != 10.0.0.2", 400},
		{"another pod's address", "server", "10.0.0.2", "10.0.0.5:8080", "ip mismatch: 10.0.0.5 != 10.0.0.2", 400},
		{"loopback", "server", "10.0.0.2", "127.0.0.1:8080", "ip mismatch", 400},
		{"no port", "server", "10.0.0.2", "10.0.0.2", "no port", 400},
		{"garbage", "server", "10.0.0.2", "%%:80", "not a host name", 400},
		{"a port of ztunnel", "server", "10.0.0.2", "10.0.0.2:15008", "port 15008 is ztunnel's own", 503},
		{"service host name", "server", "10.0.0.2", "web.default.svc.cluster.local:80", "10.0.0.2:8080", 0},
		{"service host name, named port", "server", "10.0.0.2", "named.default.svc.cluster.local:80", "10.0.0.2:9090", 0},
		{"service host name, unknown port", "server", "10.0.0.2", "web.default.svc.cluster.local:81", "has no port 81", 503},
		{"unknown host name", "server", "10.0.0.2", "nobody.default.svc.cluster.local:80", "unknown service", 503},
		{"pod I am the waypoint of", "waypoint", "10.0.0.9", "10.0.0.5:80", "10.0.0.9:80", 0},
		{"the same, by host name", "waypoint", "10.0.0.9", "10.0.0.6:80", "10.0.0.9:80", 0},
		{"service I am the waypoint of", "waypoint", "10.0.0.9", "10.1.0.3:80", "10.0.0.9:80", 0},
		{"the same, of which my namespace must not know", "waypoint", "10.0.0.9", "10.1.0.4:80", "10.0.0.9:80", 0},
		{"the same, by a range of addresses", "waypoint", "10.0.0.9", "10.2.3.4:80", "10.0.0.9:80", 0},
		{"service I am not the waypoint of", "waypoint", "10.0.0.9", "10.1.0.1:80", "ip mismatch", 400},
		{"application tunnel", "tunnel", "10.0.0.10", "10.7.7.7:80", "10.0.0.10:15088", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &router{store: store, redirected: true}
			self := store.WorkloadByUID("Kubernetes//Pod/default/" + tc.self)
			got, err := r.inbound(self, netip.MustParseAddr(tc.local), tc.authority)
			if err == nil {
				if tc.status != 0 || got.to.String() != tc.want {
					t.Errorf("got %s, want %s (status %d)", got.to, tc.want, tc.status)
				}
				return
			}
			var refused *rejection
			if !errors.As(err, &refused) || refused.status != tc.status || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want status %d with %q", err, tc.status, tc.want)
			}
		})
	}
}
