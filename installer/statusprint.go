// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/enroll"
)

// print shows the node, a row per pod, and what is wrong or counted.
func (r *report) print(w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	r.printAgent(out)
	r.printHost(out)
	fmt.Fprintf(out, "\nNAMESPACE\tPOD\tSTATE\tSERVICE ACCOUNT\tADDRESSES\tCAPTURE\tSETTINGS\tGUARD\tLISTENERS\n")
	for _, p := range r.Pods {
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", dash(p.Namespace), dash(p.Name), p.Phase, dash(p.ServiceAccount),
			dash(join(p.Addresses)), dash(strings.Join(p.Interfaces, ",")), settings(&p), guard(&p), dash(listenersOf(&p)))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return r.printDetails(w)
}

func (r *report) printAgent(out io.Writer) {
	switch {
	case r.AgentError != "":
		fmt.Fprintf(out, "agent\tno answer: %s\n", r.AgentError)
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
}

// printHost shows what serves the node as a whole; without maps there is nothing.
func (r *report) printHost(out io.Writer) {
	if r.AttachMode == "" {
		return
	}
	fmt.Fprintf(out, "attached by\t%s\n", r.AttachMode)
	if r.Complete {
		fmt.Fprintf(out, "destinations\tcomplete: what is not in the mesh passes, guard acts\n")
	} else {
		fmt.Fprintf(out, "destinations\tincomplete: all TCP of enrolled pods is captured, guard does not act, until ztunnel has heard from the control plane\n")
	}
	fmt.Fprintf(out, "probes\t%s\n", probes(&r.Host.Probe))
	fmt.Fprintf(out, "bind\t%s\n", hook(&r.Host.Bind))
	fmt.Fprintf(out, "flows\t%s\n", hook(&r.Host.Flows))
	if r.HostProblem != "" {
		fmt.Fprintf(out, "host\tproblem: %s\n", r.HostProblem)
	}
}

func hook(h *bpf.HookStatus) string {
	switch {
	case h.Attached && h.Problem != "":
		return "problem: " + h.Problem
	case h.Attached && h.Kind == bpf.HookHostEnd:
		return "on, at the host's ends of the pods' links"
	case h.Attached:
		return "on, at cgroup " + h.Cgroup
	case h.Problem != "":
		return "off: " + h.Problem
	}
	return "off"
}

// probes says above all who is trusted.
func probes(h *bpf.HookStatus) string {
	switch {
	case !h.Attached:
		return hook(h) + "; probes of the host meet the pods' policies"
	case h.TrustsAll:
		return hook(h) + "; trusted: every process of the host"
	}
	return hook(h) + "; trusted: processes of that cgroup alone"
}

// settings names what differs from capturing the mesh alone.
func settings(p *enroll.PodStatus) string {
	if len(p.Interfaces) == 0 {
		return "-"
	}
	words := []string{"mesh"}
	s := &p.Settings
	if s.CaptureAll {
		words[0] = "all"
	}
	if s.CaptureDNS {
		words = append(words, "dns")
	}
	if s.BypassInbound {
		words = append(words, "bypass-inbound")
	}
	if n := len(s.ExcludeCIDRs) + len(s.ExcludePorts); n > 0 {
		words = append(words, fmt.Sprintf("%d excluded", n))
	}
	return strings.Join(words, ",")
}

// leakVerdicts are guard's: on a pod that plays no tricks they are 0 forever.
var leakVerdicts = []bpf.Verdict{
	bpf.VerdictDropLeak, bpf.VerdictDropLeakFragment, bpf.VerdictDropLeakHeaders, bpf.VerdictDropLeakTagged,
}

// leaks lists the alarms of a pod, "drop-leak 3".
func leaks(verdicts map[string]uint64) (alarms []string) {
	for _, v := range leakVerdicts {
		if n := verdicts[v.String()]; n > 0 {
			alarms = append(alarms, fmt.Sprintf("%v %d", v, n))
		}
	}
	return alarms
}

// printDetails shows what does not fit into a row: what is wrong first, then the counters.
func (r *report) printDetails(w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range r.Pods {
		name := p.Namespace + "/" + p.Name
		if alarms := leaks(p.Verdicts); len(alarms) > 0 {
			fmt.Fprintf(out, "\n%s\tLEAK ALARM\t%s: the pod sends past capture; guard stopped it", name, strings.Join(alarms, ", "))
		}
		if p.Problem != "" {
			fmt.Fprintf(out, "\n%s\tproblem\t%s", name, p.Problem)
		}
		for _, d := range p.Drift {
			fmt.Fprintf(out, "\n%s\tdrift\t%s", name, d)
		}
	}
	for _, p := range r.Pods {
		var counters []string
		for _, reason := range sortedKeys(p.Verdicts) {
			counters = append(counters, fmt.Sprintf("%s %d", reason, p.Verdicts[reason]))
		}
		if len(counters) > 0 {
			fmt.Fprintf(out, "\n%s/%s\tverdicts\t%s", p.Namespace, p.Name, strings.Join(counters, ", "))
		}
	}
	fmt.Fprintln(out)
	return out.Flush()
}
