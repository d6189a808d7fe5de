// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/enroll"
)

func (r *report) healthy() bool {
	return r.AgentError == "" && r.Ready && r.Ztunnels > 0 && !r.Refusing && r.HostProblem == "" && !r.lacksProbe() &&
		!slices.ContainsFunc(r.Pods, func(p enroll.PodStatus) bool { return p.Problem != "" || len(p.Drift) > 0 })
}

// lacksProbe reports that kubelet's probes do not pass though they should. That bind or flows cannot be had on this node is
// shown, but connections do without them.
func (r *report) lacksProbe() bool { return r.Host.Probe.Problem != "" && !r.Host.Probe.Attached }

func (r *report) print(w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	r.printNode(out)
	fmt.Fprintf(out, "\nNAMESPACE\tPOD\tSTATE\tSERVICE ACCOUNT\tADDRESSES\tCAPTURE\tGUARD\tLISTENERS\tSETTINGS\n")
	for _, p := range r.Pods {
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", dash(p.Namespace), dash(p.Name), p.Phase, dash(p.ServiceAccount),
			dash(join(p.Addresses)), dash(strings.Join(p.Interfaces, ",")), guard(&p), dash(listenersOf(&p)), settingsOf(&p))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return r.printDetails(w)
}

// printNode shows what is true of all pods.
func (r *report) printNode(out io.Writer) {
	switch {
	case r.AgentError != "":
		fmt.Fprintf(out, "agent\tdoes not answer: %s\n", r.AgentError)
	case r.Ready:
		fmt.Fprintf(out, "agent\tready on node %s\n", r.Node)
	default:
		fmt.Fprintf(out, "agent\tstarting on node %s\n", r.Node)
	}
	if r.AgentError == "" {
		fmt.Fprintf(out, "ztunnel\t%d connected\n", r.Ztunnels)
	}
	if r.Refusing {
		fmt.Fprintf(out, "listeners\tclosed: no ztunnel for too long, connections of enrolled pods are refused\n")
	}
	if r.AttachMode == "" { // nothing is loaded, or it cannot be told
		return
	}
	fmt.Fprintf(out, "attached\tby %s\n", r.AttachMode)
	fmt.Fprintf(out, "probe\t%s\n", hookOf(&r.Host.Probe, trusted(&r.Host.Probe)))
	fmt.Fprintf(out, "bind\t%s\n", hookOf(&r.Host.Bind, "listeners of pods share ports with ztunnel's"))
	fmt.Fprintf(out, "flows\t%s\n", hookOf(&r.Host.Flows, "connections are told of"))
	if r.HostProblem != "" {
		fmt.Fprintf(out, "host\tproblem: %s\n", r.HostProblem)
	}
}

// hookOf is on, with what that means, or why it is not.
func hookOf(h *bpf.HookStatus, meaning string) string {
	switch {
	case !h.Attached && h.Problem == "":
		return "off"
	case !h.Attached:
		return "NOT ATTACHED: " + h.Problem
	}
	text := "on: " + meaning
	if h.Kind == bpf.HookCgroup && h.Cgroup != "" {
		text += ", cgroup " + h.Cgroup
	}
	if h.Problem != "" {
		text += "; " + h.Problem
	}
	return text
}

// trusted says whose connections to pods pass without mutual TLS.
func trusted(h *bpf.HookStatus) string {
	who := "connections of kubelet's cgroup pass to pods"
	if h.TrustsAll {
		who = "connections of ALL processes of the host pass to pods"
	}
	if h.Kind == bpf.HookHostEnd {
		who += ", seen at the pods' links"
	}
	return who
}

// settingsOf names what differs from capturing the mesh alone.
func settingsOf(p *enroll.PodStatus) string {
	var parts []string
	for _, s := range []struct {
		on   bool
		name string
	}{
		{p.Settings.CaptureAll, "all"}, {p.Settings.CaptureDNS, "dns"}, {p.Settings.BypassInbound, "bypass-inbound"},
	} {
		if s.on {
			parts = append(parts, s.name)
		}
	}
	for _, c := range p.Settings.ExcludeCIDRs {
		parts = append(parts, "not "+c.String())
	}
	for _, port := range p.Settings.ExcludePorts {
		parts = append(parts, fmt.Sprintf("not :%d", port))
	}
	return dash(strings.Join(parts, ","))
}

// leakVerdicts count what guard stopped: packets that were about to leave a pod in clear.
var leakVerdicts = []bpf.Verdict{bpf.VerdictDropLeak, bpf.VerdictDropLeakFragment, bpf.VerdictDropLeakHeaders, bpf.VerdictDropLeakTagged}

// printDetails shows what does not fit into a row: what is wrong, and the counters, leaks first.
func (r *report) printDetails(w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range r.Pods {
		name := p.Namespace + "/" + p.Name
		if p.Problem != "" {
			fmt.Fprintf(out, "\n%s\tPROBLEM\t%s", name, p.Problem)
		}
		for _, d := range p.Drift {
			fmt.Fprintf(out, "\n%s\tDRIFT\t%s", name, d)
		}
		leaks := map[string]bool{}
		for _, v := range leakVerdicts {
			leaks[v.String()] = true
			if n := p.Verdicts[v.String()]; n > 0 {
				fmt.Fprintf(out, "\n%s\tLEAK STOPPED\t%d packets, %s: guard dropped what came out of the pod in clear", name, n, v)
			}
		}
		for _, reason := range sortedKeys(p.Verdicts) {
			if !leaks[reason] {
				fmt.Fprintf(out, "\n%s\t%s\t%d", name, reason, p.Verdicts[reason])
			}
		}
	}
	fmt.Fprintln(out)
	return out.Flush()
}
