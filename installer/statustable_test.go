// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/enroll"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// golden compares what is printed with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s (go test -update writes it): %v\ngot:\n%s\nwant:\n%s", path, err, got, want)
	}
}

func aReport() *report {
	return &report{Status: enroll.Status{
		Node: "node1", Ready: true, Ztunnels: 1, AttachMode: bpf.AttachClsact,
		Host: bpf.HostStatus{
			Probe: bpf.HookStatus{Attached: true, Kind: bpf.HookCgroup, Cgroup: "/sys/fs/cgroup/kubelet"},
			Flows: bpf.HookStatus{Problem: "no cgroup2 is mounted"},
		},
		Pods: []enroll.PodStatus{{
			Namespace: "shop", Name: "cart", Phase: "served", ServiceAccount: "cart", Interfaces: []string{"eth0"}, Guarded: 1,
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")},
			Listeners: map[string]string{"outbound4": "held", "outbound6": "empty"},
			Settings: enroll.Settings{
				CaptureAll: true, CaptureDNS: true, ExcludeCIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}, ExcludePorts: []uint16{25},
			},
			Verdicts: map[string]uint64{"captured": 7, "drop-leak": 3},
		}, {
			Namespace: "shop", Name: "till", Phase: "attached", Problem: "ztunnel refused it", Drift: []string{"slot hbone4 is empty"},
		}},
	}}
}

func TestStatusTable(t *testing.T) {
	var out bytes.Buffer
	r := aReport()
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "status.txt", out.Bytes())
	out.Reset()
	r = &report{AgentError: "ask agent at /run/sluice/agent.sock: permission denied; only root and the user that the agent runs as may ask it"}
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "status-forbidden.txt", out.Bytes())
}

func TestWhatIsHealthy(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*report)
		want  bool
	}{
		"all well, flows not to be had": {func(*report) {}, true},
		"agent away":                    {func(r *report) { r.AgentError = "gone" }, false},
		"no ztunnel":                    {func(r *report) { r.Ztunnels = 0 }, false},
		"probe wanted and not there":    {func(r *report) { r.Host.Probe = bpf.HookStatus{Problem: "x"} }, false},
		"host unknown":                  {func(r *report) { r.HostProblem = "x" }, false},
		"pod with problem":              {func(r *report) { r.Pods[0].Problem = "x" }, false},
		"pod with drift":                {func(r *report) { r.Pods[0].Drift = []string{"x"} }, false},
	} {
		r := aReport()
		r.Pods = r.Pods[:1]
		if c.spoil(r); r.healthy() != c.want {
			t.Errorf("%s: healthy is %t", name, !c.want)
		}
	}
}
