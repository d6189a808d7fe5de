// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

const (
	addPods  = 200 // per side
	addBlock = 20  // ADDs before the sides change
	manyPods = 250
)

// addNote says what an ADD waits for.
const addNote = "What stands in the way: each of the three attachments by tcx waits for a grace period of RCU while it holds the rtnl lock, " +
	"7 to 16 ms on this machine (`strace -f -T -e bpf` of the plugin: BPF_LINK_CREATE), one after another whatever the number of threads; " +
	"starting the plugin takes 8 ms, loading and verifying about 10 ms, the agent's and ztunnel's part about 15 ms. " +
	"With filters in place of links (`SLUICE_ATTACH_MODE=clsact go test ./bpf -run '^$' -bench AttachPod`) attaching takes about 22 ms in place of 50 to 80, " +
	"but root in the pod can take filters off, so that is for kernels without tcx only."

// add measures CNI ADD and DEL with us in the chain and without.
func (b *bench) add() error {
	s := b.report.begin("CNI ADD and DEL", fmt.Sprintf("%d pods each, one after another, in blocks of %d in turns: the chain bridge, host-local, portmap, and the same with sluice-cni and an enrolled pod at its end.\n\n"+addNote, addPods, addBlock),
		"what", "unit", "with", "without", "added", "goal")
	took := map[bool]*[2][]time.Duration{true: {}, false: {}}
	node := b.Nodes[0]
	defer func() { _ = node.Install() }()
	for done := 0; done < addPods; done += addBlock {
		for _, with := range []bool{true, false} {
			change := node.Uninstall
			if with {
				change = node.Install
			}
			if err := change(); err != nil {
				return err
			}
			if err := b.addAndDelete(node, took[with]); err != nil {
				return err
			}
		}
	}
	for i, verb := range []string{"ADD", "DEL"} {
		for _, q := range []struct {
			name  string
			q     float64
			goal  string
			limit float64
		}{{"p50", 0.5, "≤ 30 ms", 30}, {"p99", 0.99, "≤ 80 ms", 80}} {
			with := milliseconds(quantile(took[true][i], q.q))
			without := milliseconds(quantile(took[false][i], q.q))
			goal := ""
			if verb == "ADD" {
				goal = verdict(with-without, q.goal, q.limit, false)
			}
			b.report.add(s, verb+" "+q.name, "ms", number(with), number(without), number(with-without), goal)
		}
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// addAndDelete makes a block of pods and removes them.
func (b *bench) addAndDelete(node *lab.Node, took *[2][]time.Duration) error {
	for i := range addBlock {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		pod, err := node.AddPod(lab.PodSpec{Name: fmt.Sprintf("add%d", i), Namespace: "mesh"})
		if err != nil {
			return err
		}
		took[0] = append(took[0], pod.AddTook)
		began := time.Now()
		if err := node.Del(pod); err != nil {
			return err
		}
		took[1] = append(took[1], time.Since(began))
		if err := node.DelPod(pod); err != nil {
			return err
		}
	}
	return nil
}

// pods measures what each enrolled pod costs the nodes.
func (b *bench) pods() error {
	s := b.report.begin("Memory per enrolled pod", fmt.Sprintf("%d enrolled pods on two nodes; the difference to none, divided by their number. Kernel: what bpftool reports for all maps and programs.", manyPods),
		"what", "unit", "per pod")
	figures := []struct {
		what  string
		procs []string
	}{
		{"agent, resident", []string{"agent-node1", "agent-node2"}},
		{"ztunnel, resident", []string{"ztunnel-node1", "ztunnel-node2"}},
		{"kernel, maps and programs", nil},
	}
	read := func() (all []int, err error) {
		for _, f := range figures {
			n, err := b.memory(f.procs)
			if err != nil {
				return nil, err
			}
			all = append(all, n)
		}
		return all, nil
	}
	before, err := read()
	if err != nil {
		return err
	}
	var pods [2][]*lab.Pod
	for i := range manyPods {
		n := i % 2
		pod, err := b.Nodes[n].AddPod(lab.PodSpec{Name: fmt.Sprintf("many%d", i), Namespace: "mesh"})
		if err != nil {
			return err
		}
		pods[n] = append(pods[n], pod)
	}
	with, err := read()
	if err != nil {
		return err
	}
	for i, f := range figures {
		b.report.add(s, f.what, "KiB", number(float64(with[i]-before[i])/manyPods/1024))
	}
	for n, list := range pods {
		for _, pod := range list {
			if err := b.Nodes[n].DelPod(pod); err != nil {
				return err
			}
		}
	}
	return nil
}

// memory is the resident memory of processes, or of all BPF maps and programs on the machine, in bytes.
func (b *bench) memory(procs []string) (int, error) {
	if procs != nil {
		return b.resident(procs)
	}
	sum := 0
	for _, kind := range []string{"map", "prog"} {
		out, err := exec.CommandContext(b.ctx, sbin("bpftool"), "-j", kind, "show").Output()
		if err != nil {
			return 0, fmt.Errorf("bpftool %s show: %w", kind, err)
		}
		var list []struct {
			Bytes int `json:"bytes_memlock"`
		}
		if err := json.Unmarshal(out, &list); err != nil {
			return 0, fmt.Errorf("bpftool %s show: %w", kind, err)
		}
		for _, each := range list {
			sum += each.Bytes
		}
	}
	return sum, nil
}
