// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestBigAnswersAreCutToWhatTheClientTakes(t *testing.T) {
	_, asker, _ := newAsker(t)
	for _, tc := range []struct {
		network   string
		size      uint16
		truncated bool
	}{
		{"udp", 0, true},
		{"udp", 4096, false}, // the server gives 512 bytes only; over TCP it gives all
		{"tcp", 0, false},
	} {
		for _, at := range []netip.Addr{lab.OutsideAddr4, lab.OutsideAddr6} {
			m, err := ask(asker, tc.network, at, "big.example.org.", dns.TypeTXT, tc.size)
			if err != nil {
				t.Errorf("%+v of %s: %v", tc, at, err)
				continue
			}
			if m.Truncated != tc.truncated || (len(m.Answer) == 60) == tc.truncated {
				t.Errorf("%+v of %s: truncated %t, %d records", tc, at, m.Truncated, len(m.Answer))
			}
		}
	}
}

// TestServersThatDoNotAnswer: the pod's own resolver, which waits for 5 s, is told in time that it should ask another.
func TestServersThatDoNotAnswer(t *testing.T) {
	_, asker, server := newAsker(t)
	wantFailure := func(network, name string, at netip.Addr) {
		t.Helper()
		start := time.Now()
		m, err := ask(asker, network, at, name, dns.TypeA, 0)
		if err != nil || m.Rcode != dns.RcodeServerFailure || time.Since(start) > 5*time.Second {
			t.Errorf("%s of %s by %s: %v, %v after %s, want SERVFAIL", name, at, network, m, err, time.Since(start))
		}
	}
	wantFailure("udp", "silent.example.org.", lab.OutsideAddr4)
	wantFailure("tcp", "silent.example.org.", lab.OutsideAddr6)
	server.close()
	for _, at := range []netip.Addr{lab.OutsideAddr4, lab.OutsideAddr6} {
		wantFailure("udp", "www.example.org.", at)
		wantFailure("tcp", "www.example.org.", at)
		if err := wantAddresses(asker, "udp", at, "web.", dns.TypeA, "10.96.0.53"); err != nil {
			t.Errorf("without the server: %v", err)
		}
	}
}

// TestQueriesToTheMeshAreNotInClear: the peer refuses plain text, so an answer proves mutual TLS.
func TestQueriesToTheMeshAreNotInClear(t *testing.T) {
	m, asker, _ := newAsker(t)
	member := startNameServer(t, inside(m.server), m.server.Addr(4), m.server.Addr(6))
	for _, family := range []int{4, 6} {
		testutil.Eventually(t, effect, func() error {
			return wantAddresses(asker, "tcp", m.server.Addr(family), "www.example.org.", dns.TypeA, foreign4.String())
		})
	}
	if member.asked.Load() == 0 {
		t.Error("the member was not asked")
	}
}

func TestQueriesAreAnsweredAcrossRestarts(t *testing.T) {
	m, asker, _ := newAsker(t)
	n := m.Nodes[0]
	answered := func(what string) {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			for _, at := range []netip.Addr{lab.OutsideAddr4, lab.OutsideAddr6} {
				testutil.Eventually(t, effect, func() error {
					if err := wantAddresses(asker, network, at, "www.example.org.", dns.TypeA, foreign4.String()); err != nil {
						return fmt.Errorf("%s: %w", what, err)
					}
					return wantAddresses(asker, network, at, "web.", dns.TypeA, "10.96.0.53")
				})
			}
		}
	}
	m.must(n.Agent.Kill())
	answered("without an agent")
	m.must(n.StartAgent())
	m.must(n.WaitReady())
	m.wantLog(n.Agent.Name, "listeners adopted from ztunnel", "dnsudp4", "dnstcp6")
	answered("with another agent")

	m.must(n.Ztunnel.Kill())
	waiting := make(chan error, 1)
	go func() {
		_, err := ask(asker, "udp", lab.OutsideAddr4, "web.", dns.TypeA, 0)
		waiting <- err
	}()
	m.must(n.StartZtunnel())
	m.must(n.WaitReady())
	if err := <-waiting; err != nil {
		t.Errorf("a query from between two ztunnels: %v", err)
	}
	answered("with another ztunnel")

	old := n.Ztunnel
	m.must(n.StartZtunnel())
	m.must(n.WaitReady())
	m.must(old.Stop(effect))
	answered("after a handover")
}

func TestCaptureOfQueriesFollowsTheAnnotation(t *testing.T) {
	m, asker, _ := newAsker(t)
	for _, on := range []bool{false, true, false} {
		m.write("asker.yaml", fmt.Sprintf(askerManifest, on))
		want := map[bool]string{true: "10.96.0.53", false: foreign4.String()}[on]
		for _, network := range []string{"udp", "tcp"} {
			for _, at := range []netip.Addr{lab.OutsideAddr4, lab.OutsideAddr6} {
				testutil.Eventually(t, effect, func() error {
					return wantAddresses(asker, network, at, "web.mesh.svc.cluster.local.", dns.TypeA, want)
				})
			}
		}
	}
}
