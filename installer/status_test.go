// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/enroll"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestStatusIsPrinted(t *testing.T) {
	well := enroll.PodStatus{
		UID: "u1", Namespace: "shop", Name: "cart", Phase: "served", ServiceAccount: "cart",
		Addresses:  []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00::2")},
		Interfaces: []string{"eth0"}, Guarded: 1, Listeners: map[string]string{"outbound4": "held", "outbound6": "held"},
		Verdicts: map[string]uint64{"captured": 12, "hbone": 3},
	}
	ill := enroll.PodStatus{
		UID: "u2", Namespace: "shop", Name: "evil", Phase: "served", ServiceAccount: "default", Interfaces: []string{"eth0", "net1"}, Guarded: 1,
		Settings:  enroll.Settings{CaptureAll: true, CaptureDNS: true, ExcludePorts: []uint16{25, 26}},
		Listeners: map[string]string{"outbound4": "held", "outbound6": "empty"},
		Verdicts:  map[string]uint64{"captured": 1, "drop-leak": 7, "drop-leak-tagged": 1},
		Drift:     []string{"slot outbound6 is empty"}, Problem: "no ztunnel acked it",
	}
	cgroup := func(path string) bpf.HookStatus {
		return bpf.HookStatus{Attached: true, Kind: bpf.HookCgroup, Cgroup: path}
	}
	kubelet := cgroup("/sys/fs/cgroup/kubelet")
	root := cgroup("/sys/fs/cgroup")
	root.TrustsAll = true
	for name, r := range map[string]report{
		"status.well.txt": {Status: enroll.Status{
			Node: "node1", Ready: true, Ztunnels: 1, AttachMode: "tcx", Complete: true, Pods: []enroll.PodStatus{well},
			Host: bpf.HostStatus{Probe: kubelet, Bind: cgroup("/sys/fs/cgroup"), Flows: cgroup("/sys/fs/cgroup")},
		}},
		"status.ill.txt": {Status: enroll.Status{
			Node: "node1", Refusing: true, AttachMode: "clsact", Pods: []enroll.PodStatus{ill, {Namespace: "plain", Name: "p", Phase: "known"}},
			Host:        bpf.HostStatus{Probe: root, Bind: bpf.HookStatus{Problem: "needs Linux 6.1"}},
			HostProblem: "attach host: no such file",
		}},
		"status.noagent.txt": {AgentError: "ask agent at /run/sluice/agent.sock: permission denied"},
	} {
		var out strings.Builder
		if err := r.print(&out); err != nil {
			t.Fatal(err)
		}
		golden(t, name, out.String())
	}
}
