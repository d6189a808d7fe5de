// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/bpf"
)

func TestVerifyTable(t *testing.T) {
	var v verifier
	v.addParts(mismatches(fmt.Errorf("pod %q: %w", "x", errors.Join(
		errors.Join(errors.New("no IPv4 rule 500: fwmark 0x1/0x1 lookup 1"), errors.New("link capture-2: attached to 0, want 2 (0 means detached)")),
		errors.New("slot outbound4 is empty")))))
	v.skipped("live IPv6", "the pod has no IPv6 address")
	var out bytes.Buffer
	if err := v.print(&out, "table"); err != nil {
		t.Fatal(err)
	}
	golden(t, "verify.txt", out.Bytes())
}

// TestGoneNamespace: what was not looked at is not called ok.
func TestGoneNamespace(t *testing.T) {
	var v verifier
	v.addParts(mismatches(fmt.Errorf("pod: %w", errors.Join(errors.New("open netns \"/run/netns/x\": no such file")))))
	for _, c := range v.checks {
		want := "skipped"
		if c.What == "namespace" {
			want = "FAILED"
		}
		if c.Result != want {
			t.Errorf("%s: %s, want %s", c.What, c.Result, want)
		}
	}
}

func TestVerifyNumbersTheLeaksOfItsOwnTime(t *testing.T) {
	a := map[bpf.Verdict]uint64{bpf.VerdictDropLeak: 3, bpf.VerdictCaptured: 9}
	b := map[bpf.Verdict]uint64{bpf.VerdictDropLeak: 5, bpf.VerdictDropLeakTagged: 1, bpf.VerdictCaptured: 20}
	if ever, now := leaks(a, b); ever != 6 || now != 3 {
		t.Errorf("got %d ever, %d now", ever, now)
	}
}

func TestTargetsOfTheLiveConnection(t *testing.T) {
	addr := netip.MustParseAddr
	hbone := func(a, status string, waypoint *meshGateway) meshWorkload {
		return meshWorkload{Addresses: []netip.Addr{addr(a)}, Protocol: "HBONE", Status: status, Waypoint: waypoint}
	}
	view := &meshView{Workloads: []meshWorkload{
		hbone("10.0.0.1", "Healthy", nil), // itself
		{Addresses: []netip.Addr{addr("10.0.0.2")}, Protocol: "TCP"},
		hbone("10.0.0.3", "Unhealthy", nil), hbone("10.0.0.4", "Healthy", &meshGateway{}), hbone("10.9.0.1", "Healthy", nil),
		hbone("10.0.0.5", "Healthy", nil), hbone("fd00::1", "Healthy", nil),
	}}
	info := bpf.PodInfo{
		Addresses: []netip.Addr{addr("10.0.0.1")}, Exclude: bpf.Exclusions{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}},
	}
	got, err := targets(view, &info, true)
	if want := "[10.0.0.5:15008 10.0.0.3:15008 10.0.0.4:15008]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
	if got, err := targets(&meshView{}, &info, false); err == nil {
		t.Errorf("without a peer: got %v", got)
	}
}
