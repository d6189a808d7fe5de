// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/flows"
)

// shop is a mesh with a pod inside it, one outside, and a service of both.
func shop() *inquiry {
	w := &inquiry{info: bpf.PodInfo{Namespace: "shop", Name: "cart", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}
	w.Pod = "shop/cart"
	w.view = meshView{
		Workloads: []meshWorkload{
			{UID: "a", Name: "pay-1", Namespace: "shop", ServiceAccount: "pay", TrustDomain: "cluster.local", Protocol: "HBONE", Node: "node2",
				Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Policies: []string{"shop/deny-cart"}},
			{UID: "b", Name: "old-1", Namespace: "plain", Protocol: "TCP", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.3")}},
		},
		Services: []meshService{{
			Name: "pay", Namespace: "shop", Hostname: "pay.shop.svc.cluster.local", VIPs: []string{"/fd00::9", "/10.96.0.9"},
			CIDRVIPs: []string{"/10.97.0.0/16"}, Ports: map[uint16]uint16{443: 8443, 80: 8080}, Endpoints: map[string]any{"a": nil},
		}},
		Policies: []meshPolicy{
			{Name: "deny-cart", Namespace: "shop", Scope: "WorkloadSelector", Action: "Deny"},
			{Name: "other", Namespace: "plain", Scope: "Namespace", Action: "Allow"},
		},
	}
	return w
}

func TestWhyResolves(t *testing.T) {
	for typed, want := range map[string]string{
		"10.1.2.3": "10.1.2.3:0", "10.1.2.3:80": "10.1.2.3:80", "[fd00::1]:80": "[fd00::1]:80", "[fd00::1]": "[fd00::1]:0", "fd00::1": "[fd00::1]:0",
		"::ffff:10.1.2.3": "10.1.2.3:0", "pay": "10.96.0.9:0", "pay.shop:443": "10.96.0.9:443", "pay.shop.svc.cluster.local.:80": "10.96.0.9:80",
	} {
		if got, err := shop().resolve(typed); err != nil || got.String() != want {
			t.Errorf("%s: got %v, %v, want %s", typed, got, err, want)
		}
	}
	var mistake usageError
	for _, typed := range []string{"", "nobody", "pay:", "pay:x", "pay:99999", "10.1.2.3:x"} {
		if got, err := shop().resolve(typed); !errors.As(err, &mistake) {
			t.Errorf("%q: got %v, %v, want a usage error", typed, got, err)
		}
	}
	w := shop()
	w.viewErr = errors.New("gone")
	if _, err := w.resolve("pay"); err == nil || errors.As(err, &mistake) || !strings.Contains(err.Error(), "gone") {
		t.Errorf("without ztunnel: %v", err)
	}
}

func TestWhyByZtunnel(t *testing.T) {
	for name, c := range map[string]struct {
		to                          string
		change                      func(*inquiry)
		encrypted, because, refused string
	}{
		"workload in the mesh": {"10.0.0.2:80", nil, "yes", "spiffe://cluster.local/ns/shop/sa/pay", ""},
		"workload outside":     {"10.0.0.3:80", nil, "no", "speaks no HBONE", ""},
		"service":              {"10.96.0.9:80", nil, "yes", "one of its 1 endpoints", ""},
		"range of a service":   {"10.97.3.4:80", nil, "yes", "one of its 1 endpoints", ""},
		"mixed service":        {"10.96.0.9:80", func(w *inquiry) { w.view.Services[0].Endpoints["b"] = nil }, "depends", "plain/old-1", ""},
		"invisible service":    {"10.96.0.9:80", func(w *inquiry) { w.view.Services[0].Visibility, w.view.Services[0].Namespace = "Namespace", "x" }, "no", "neither workload nor service", ""},
		"nobody":               {"192.0.2.1:80", nil, "no", "neither workload nor service", ""},
		"no ztunnel":           {"10.0.0.2:80", func(w *inquiry) { w.viewErr = errors.New("gone") }, "unknown", "does not leave in clear", ""},
		"pod unknown":          {"10.0.0.2:80", func(w *inquiry) { w.would = &explanation{Problem: "not known over xDS"} }, "no", "not known over xDS", "not known"},
		"refused by ztunnel": {"10.96.0.9:81", func(w *inquiry) {
			w.would = &explanation{Routes: []explained{{Verdict: "refused-no-healthy-upstream", Error: "no port 81"}}}
		}, "no", "no port 81", "this node's ztunnel"},
		"refused by policy": {"10.0.0.2:80", func(w *inquiry) {
			w.would = &explanation{Routes: []explained{{Verdict: "mtls", Workload: "shop/pay-1", Reason: "explicitly denied by: shop/deny-cart"}}}
		}, "yes", "mutual TLS", "by the ztunnel of shop/pay-1: explicitly denied by: shop/deny-cart"},
	} {
		w := shop()
		w.Destination = netip.MustParseAddrPort(c.to)
		if c.change != nil {
			c.change(w)
		}
		w.decideByZtunnel()
		if w.Encrypted != c.encrypted || !strings.Contains(w.Because, c.because) || !strings.Contains(w.Refused, c.refused) || (c.refused == "") != (w.Refused == "") {
			t.Errorf("%s: encrypted %q, because %q, refused %q", name, w.Encrypted, w.Because, w.Refused)
		}
	}
}

func TestWhyTellsWhereItGoes(t *testing.T) {
	for _, tt := range []struct {
		route explained
		want  string
	}{
		{explained{Verdict: "mtls", Workload: "istio-system/east-west", Gateway: "istio-system/east-west", Allowed: true}, "through the gateway istio-system/east-west"},
		{explained{Verdict: "mtls", Workload: "shop/pay", Hostname: "pay.example.com", Allowed: true}, "shop/pay answers at pay.example.com"},
		{explained{Verdict: "plaintext", Workload: "shop/pay", Hostname: "pay.example.com", Allowed: true}, "shop/pay answers at pay.example.com"},
		{explained{Verdict: "refused-no-healthy-upstream", Hostname: "pay.example.com"}, "refused"},
	} {
		w := &inquiry{would: &explanation{Routes: []explained{tt.route}}}
		w.Encrypted = "yes"
		w.refusal()
		if steps := strings.Join(w.Steps, "\n"); !strings.Contains(steps, tt.want) || tt.want == "refused" && strings.Contains(steps, "answers") {
			t.Errorf("%+v: got steps\n%s\nwant %q", tt.route, steps, tt.want)
		}
	}
}

func TestWhyTable(t *testing.T) {
	w := shop()
	w.Destination = netip.MustParseAddrPort("10.96.0.9:80")
	w.would = &explanation{SourceIdentity: "spiffe://cluster.local/ns/shop/sa/cart", Routes: []explained{{Verdict: "mtls", Workload: "shop/pay-1", Reason: "explicitly denied by: shop/deny-cart"}}}
	w.step("not excluded by the pod's settings")
	w.step("captured: %v is in the mesh", w.Destination.Addr())
	w.decideByZtunnel()
	at := time.Date(2024, 1, 2, 3, 4, 5, 678e6, time.UTC)
	from := netip.MustParseAddrPort("10.0.0.1:40000")
	w.Flows = []flows.Flow{{Kind: "close", At: at, Local: from, Remote: w.Destination, Path: "captured", Sent: 7, Received: 9, State: "fin-wait-2"}}
	w.Ended = []endedConn{{At: at, Direction: "outbound", Src: from, Dst: netip.MustParseAddrPort("10.0.0.2:15008"), Verdict: "refused-by-peer", Error: "401"}}
	var out bytes.Buffer
	if err := w.print(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "why.txt", out.Bytes())
}

// TestZtunnelsOwnWordCounts: what its router says overrules what its dump lets one think.
func TestZtunnelsOwnWordCounts(t *testing.T) {
	for _, tt := range []struct{ dump, verdict, want string }{
		{"yes", "passthrough", "no"}, {"yes", "plaintext", "no"}, {"yes", "local", "no"}, {"yes", "mtls", "yes"},
		{"no", "mtls", "yes"}, {"depends", "plaintext", "depends"}, {"yes", "refused-no-healthy-upstream", "no"},
	} {
		w := &inquiry{would: &explanation{Routes: []explained{{Verdict: tt.verdict, Allowed: true, Identity: "spiffe://x"}}}}
		w.Encrypted = tt.dump
		w.refusal()
		if w.Encrypted != tt.want {
			t.Errorf("%s, and ztunnel says %s: got %q, want %q", tt.dump, tt.verdict, w.Encrypted, tt.want)
		}
	}
}
