// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// strict is what istiod makes of PeerAuthentication STRICT.
func strict() *discovery.Policy {
	return &discovery.Policy{Namespace: "istio-system", Name: "istio_converted_static_strict", Scope: discovery.PolicyWorkload, Action: discovery.Deny,
		Groups: []discovery.Group{{Clauses: []discovery.Clause{{Matches: []discovery.Match{{NotPrincipals: []discovery.StringMatch{{Kind: discovery.MatchPresence}}}}}}}}}
}

// denyClient refuses the client by its identity.
func denyClient() *discovery.Policy {
	return &discovery.Policy{Namespace: "default", Name: "no-client", Scope: discovery.PolicyNamespace, Action: discovery.Deny,
		Groups: []discovery.Group{{Clauses: []discovery.Clause{{Matches: []discovery.Match{{
			Principals: []discovery.StringMatch{{Value: "cluster.local/ns/default/sa/client"}}}}}}}}}
}

func TestStrictRefusesPlaintextAndCutsWhatIsOpen(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	open := w.open(w.legacy, echo.Addr)
	mesh := w.open(w.client.Pod, echo.Addr)

	w.store.Apply(discovery.Update{Policies: []*discovery.Policy{strict()}})
	if err := testutil.Ping(open); err != nil {
		t.Fatalf("a policy that nobody names yet: %v", err)
	}
	w.republish(w.server, func(c *discovery.Workload) { c.Policies = []string{"istio-system/istio_converted_static_strict"} })
	wantReset(t, open)
	w.wantLine(`verdict="refused-policy-change"`, `policy="istio-system/istio_converted_static_strict"`, "connection closed due to policy change")
	if err := w.mustFail(w.legacy, echo.Addr); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("new plaintext connection: got %v, want a reset", err)
	}
	w.wantLine(`verdict="refused-policy"`, `policy="istio-system/istio_converted_static_strict"`, "connection closed due to policy rejection: explicitly denied by")
	if err := testutil.Ping(mesh); err != nil {
		t.Errorf("mTLS connection: %v", err)
	}
	if _, err := w.client.AskFrom(echo.Addr); err != nil {
		t.Errorf("new mTLS connection: %v", err)
	}
}

func TestDenyByIdentityRefusesAndCutsWhatIsOpen(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	open := w.open(w.client.Pod, echo.Addr)
	w.store.Apply(discovery.Update{Policies: []*discovery.Policy{denyClient()}})
	wantReset(t, open)
	w.wantLine(`direction="inbound"`, `verdict="refused-policy-change"`, `policy="default/no-client"`, "src.identity="+clientID)
	if err := w.mustFail(w.client.Pod, echo.Addr); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("new connection: got %v, want a reset", err)
	}
	w.wantLine(`direction="inbound"`, `verdict="refused-policy"`, `policy="default/no-client"`, "src.identity="+clientID, "dst.identity="+serverID)
	w.wantLine(`direction="outbound"`, `verdict="refused-by-peer"`, "401")
	if got := w.proxy.metric("istio_tcp_connections_failed_total", `reporter="destination"`, `response_flags="DENY"`); got != 2 {
		t.Errorf("failed with DENY: got %v, want 2", got)
	}
	w.store.Apply(discovery.Update{RemovePolicies: []string{"default/no-client"}})
	if _, err := w.client.AskFrom(echo.Addr); err != nil {
		t.Errorf("after the policy is gone: %v", err)
	}
}
