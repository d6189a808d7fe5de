// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"os"
	"strings"
	"testing"
)

// scenario is one of the reference, under its name.
type scenario struct {
	name string
	on   *view
	run  func(*scene)
}

// scenarios are in the order in which they run: a change of view restarts the ztunnels.
var scenarios = []scenario{
	{"local_captured_inpod", onOneNetwork, localCaptured},
	{"cross_node_captured", onOneNetwork, crossNodeCaptured},
	{"server_uncaptured", onOneNetwork, serverUncaptured},
	{"client_uncaptured", onOneNetwork, clientUncaptured},
	{"workload_waypoint", onOneNetwork, workloadWaypoint},
	{"service_waypoint", onOneNetwork, serviceWaypoint("10.99.0.1")},
	{"service_waypoint_hostname", onOneNetwork, serviceWaypoint("10.99.0.2")},
	{"service_waypoint_workload_hostname", onOneNetwork, serviceWaypoint("10.99.0.3")},
	{"sandwich_waypoint_plain", onOneNetwork, sandwichPlain},
	{"sandwich_waypoint_proxy_protocol", onOneNetwork, sandwichProxyProtocol},
	{"service_loadbalancing", onOneNetwork, serviceLoadbalancing},
	{"test_policy", onOneNetwork, policy},
	{"hbone_ip_mismatch", onOneNetwork, ipMismatch},
	{"test_svc_hostname_port", onOneNetwork, serviceHostname("numbered", 7080)},
	{"test_svc_hostname_named_port", onOneNetwork, serviceHostname("named", 7081)},
	{"malicious_calls_inpod", onOneNetwork, maliciousCalls},
	{"test_hbone_metrics_access", onOneNetwork, metricsAccess},
	{"test_prefetch_forget_certs", onOneNetwork, prefetchForgetCerts},
	{"crl_inbound_terminates_existing_connections", onOneNetwork, crlInbound},
	{"crl_outbound_terminates_existing_connections", onOneNetwork, crlOutbound},
	{"test_server_shutdown", onOneNetwork, serverShutdown},
	{"test_ztunnel_shutdown", onOneNetwork, ztunnelShutdown},
	{"trust_domain_mismatch_rejected", inTwoTrustDomains, trustDomainMismatch},
	{"double_hbone1", onTwoNetworks, doubleHBONE("far1", "10.99.1.1")},
	{"double_hbone2", onTwoNetworks, doubleHBONE("far2", "10.99.1.2")},
}

func TestReference(t *testing.T) {
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) { sc.run(enter(t, sc.on)) })
		if w, err := shared(); err != nil || w.broken {
			t.Fatal("without working ztunnels there is no point in going on")
		}
	}
}

// TestEveryScenarioIsListed: users read the list, not this code.
func TestEveryScenarioIsListed(t *testing.T) {
	list, err := os.ReadFile("../../../docs/CONFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, sc := range scenarios {
		if !strings.Contains(string(list), "`"+sc.name+"`") {
			t.Errorf("docs/CONFORMANCE.md does not list `%s`", sc.name)
		}
	}
}
