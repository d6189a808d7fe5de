// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
	"github.com/sluice-mesh/sluice/internal/leak"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestServiceAcrossNodes has pods of a labelled namespace ask each other, from node to node, in both families: the wire
// carries nothing but mTLS, ztunnels know who asked, and without the label all is in clear again.
func TestServiceAcrossNodes(t *testing.T) {
	c := use(t)
	ns := c.Namespace(t, enrolled)
	pairs := across(t, c, ns)
	testutil.Eventually(t, effect, func() error { return annotated(t, c, ns, "enabled") })

	seen := watch(t, c, pairs, func() { ask(t, c, pairs) })
	if seen.Count > 0 || seen.HBONE == 0 {
		t.Errorf("in the mesh: %d segments of HBONE, %d leaks: %v", seen.HBONE, seen.Count, seen.Leaks)
	}
	for _, p := range pairs {
		wantLogged(t, c, system, p.server.Spec.NodeName, "src.identity=\"spiffe://cluster.local/ns/"+ns+"/sa/default\"",
			"dst.workload=\""+p.server.Name+"\"", "direction=\"inbound\"")
	}

	c.Kubectl(t, "label", "namespace", ns, "istio.io/dataplane-mode-")
	testutil.Eventually(t, effect, func() error { return annotated(t, c, ns, "") })
	seen = watch(t, c, pairs, func() { ask(t, c, pairs) })
	if seen.Count == 0 || seen.HBONE > 0 {
		t.Errorf("out of the mesh: %d segments of HBONE, %d in clear", seen.HBONE, seen.Count)
	}
}

// TestNothingLeavesForTheGone: clients use an address for some time after its pod. Nothing is sent to it in clear when the
// control plane has forgotten it, and anybody may get it.
func TestNothingLeavesForTheGone(t *testing.T) {
	c := use(t)
	ns, pairs := loaded(t, c)
	client, server := pairs[0].client, pairs[0].server
	seen := watch(t, c, pairs, func() {
		ask(t, c, pairs)
		c.Kubectl(t, "delete", "--namespace="+ns, "pod", server.Name) // and waits for its end
		testutil.Eventually(t, effect, func() error {                 // both families each time: ztunnel remembers for a minute
			for _, ip := range server.Status.PodIPs {
				url := "http://" + netip.AddrPortFrom(netip.MustParseAddr(ip.IP), 8080).String()
				if out, err := c.Exec(ns, client.Name, "/app", "get", url); err == nil {
					return fmt.Errorf("%s: a deleted pod answers: %s", url, out)
				}
			}
			for _, ip := range server.Status.PodIPs {
				if err := isLogged(t, c, system, client.Spec.NodeName, ip.IP+" was "+ns+"/"+server.Name+", which is gone"); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if seen.Count > 0 || seen.HBONE == 0 {
		t.Errorf("%d segments of HBONE, %d leaks: %v", seen.HBONE, seen.Count, seen.Leaks)
	}
}

// ask has each client reach its server, and the Service by name.
func ask(t *testing.T, c *cluster.Cluster, pairs []pair) {
	t.Helper()
	for _, p := range pairs {
		testutil.Eventually(t, effect, func() error { return p.reach(c) })
		out, err := c.Exec(p.client.Namespace, p.client.Name, "/app", "load", "-for", "1s", "http://web")
		if err != nil || !strings.Contains(out, p.server.Name) {
			t.Errorf("service from %s: %v\n%s", p.client.Name, err, out)
		}
	}
}

// watch returns what was on the nodes' cables, between the pairs' pods, while f ran.
func watch(t *testing.T, c *cluster.Cluster, pairs []pair, f func()) leak.Report {
	t.Helper()
	var members []netip.Addr
	for _, p := range pairs {
		members = append(members, p.addrs()...)
	}
	return watchMembers(t, c, members, f)
}

func watchMembers(t *testing.T, c *cluster.Cluster, members []netip.Addr, f func()) leak.Report {
	t.Helper()
	var points []leak.Point
	for _, n := range c.Nodes {
		points = append(points, leak.Point{NS: n.NS.Name, Interface: "eth0"})
	}
	w, err := leak.Start(members, points...)
	if err != nil {
		t.Fatal(err)
	}
	f()
	report, err := w.Stop()
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// wantLogged waits for a line with all of parts in the log of a node's ztunnel, which is in a namespace of the mesh's own.
func wantLogged(t *testing.T, c *cluster.Cluster, mesh, node string, parts ...string) {
	t.Helper()
	testutil.Eventually(t, effect, func() error { return isLogged(t, c, mesh, node, parts...) })
}

func isLogged(t *testing.T, c *cluster.Cluster, mesh, node string, parts ...string) error {
	t.Helper()
	pods := c.Pods(t, mesh, "app=ztunnel")[node]
	if len(pods) != 1 {
		t.Fatalf("%d ztunnels on %s", len(pods), node)
	}
	log, err := c.TryKubectl("logs", "--namespace="+mesh, pods[0].Name, "--tail=200")
	if err != nil {
		return err
	}
	for line := range strings.Lines(log) {
		if hasAll(line, parts) {
			return nil
		}
	}
	return fmt.Errorf("no line with %q in the log of %s:\n%s", parts, pods[0].Name, log)
}

func hasAll(line string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(line, p) {
			return false
		}
	}
	return true
}
