// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"text/tabwriter"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/enroll"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// errNotVerified is what verify ends with after it has printed what failed.
var errNotVerified = errors.New("not all checks passed")

// check is one line of verify.
type check struct {
	What   string `json:"what"`
	Result string `json:"result"` // ok, FAILED or skipped
	Detail string `json:"detail,omitempty"`
}

// verifier checks one pod.
type verifier struct {
	paths
	ztunnel  ztunnelAdmin
	node     *bpf.Node
	pod      *bpf.Pod
	view     *meshView              // nil if ztunnel does not answer
	identity string                 // the pod's, as ztunnel knows it
	verdicts map[bpf.Verdict]uint64 // as they were at the beginning
	checks   []check
}

func (v *verifier) ok(what, format string, args ...any) {
	v.checks = append(v.checks, check{what, "ok", fmt.Sprintf(format, args...)})
}

func (v *verifier) failed(what, format string, args ...any) {
	v.checks = append(v.checks, check{what, "FAILED", fmt.Sprintf(format, args...)})
}

func (v *verifier) skipped(what, format string, args ...any) {
	v.checks = append(v.checks, check{what, "skipped", fmt.Sprintf(format, args...)})
}

// verifyCommand checks a pod from links to a live connection.
func verifyCommand(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var v verifier
	var format string
	fs := newFlagSet("verify", stdout)
	fs.operands = "POD"
	v.declare(fs.FlagSet)
	v.ztunnel.paths = &v.paths
	v.ztunnel.declare(fs.FlagSet)
	fs.StringVar(&format, "o", "table", "output: table or json")
	err := fs.parse(args, func() error {
		if format != "table" && format != "json" {
			return errors.Join(v.validate(), fmt.Errorf("-o: %q is neither table nor json", format))
		}
		return v.validate()
	})
	if err != nil {
		return err
	}
	if v.node, v.pod, err = findPod(v.PinRoot, fs.given[0]); err != nil {
		return err
	}
	defer func() { _, _ = v.pod.Close(), v.node.Close() }()
	v.run(ctx)
	if err := v.print(stdout, format); err != nil {
		return err
	}
	for _, c := range v.checks {
		if c.Result == "FAILED" {
			return errNotVerified
		}
	}
	return nil
}

func (v *verifier) run(ctx context.Context) {
	var err error
	if v.verdicts, err = v.pod.Verdicts(); err != nil {
		v.failed("counters", "%v", err)
	}
	v.checkAgent(ctx)
	v.checkDatapath()
	v.checkDestinations()
	v.checkZtunnel(ctx)
	v.checkHost()
	v.checkCapture(ctx)
	v.checkLive(ctx)
	v.checkProven()
	v.checkInbound(ctx)
	v.checkLeaks()
}

// checkProven fails where no connection proved that the pod is captured: links alone prove nothing.
func (v *verifier) checkProven() {
	for _, family := range []string{"IPv4", "IPv6"} {
		has := slices.ContainsFunc(v.pod.Info().Addresses, func(a netip.Addr) bool { return a.Is4() == (family == "IPv4") })
		proven := slices.ContainsFunc(v.checks, func(c check) bool {
			return c.Result == "ok" && (c.What == "capture "+family || c.What == "live "+family)
		})
		if has && !proven {
			v.failed("proof "+family, "no live connection could be made, so nothing is proven (the lines above say why)")
		}
	}
}

// checkAgent asks what the agent thinks of the pod.
func (v *verifier) checkAgent(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	status, err := askStatus(ctx, nodeapi.Client{Socket: v.agentSocket()})
	if err != nil {
		v.failed("agent", "%v: nobody repairs this pod or enrols others; start sluice-installer agent", err)
		return
	}
	v.ok("agent", "runs on node %s", status.Node)
	if status.Ztunnels == 0 {
		v.failed("ztunnel", "none is connected to the agent: connections wait, and are refused after its --proxy-down-limit; start ztunnel on this node")
	} else {
		v.ok("ztunnel", "%d connected", status.Ztunnels)
	}
	for _, p := range status.Pods {
		if p.ContainerID == v.pod.Info().ContainerID {
			v.checkStatus(&p)
			return
		}
	}
	v.failed("enrolment", "the agent does not know the pod, whose programs are attached: restart the agent, or delete the pod")
}

func (v *verifier) checkStatus(p *enroll.PodStatus) {
	switch {
	case p.Problem != "":
		v.failed("enrolment", "%s: %s", p.Phase, p.Problem)
	case p.Phase != "served":
		v.failed("enrolment", "phase is %q, want served: see the agent's log for this pod", p.Phase)
	default:
		v.ok("enrolment", "served, service account %s", p.ServiceAccount)
	}
}

func (v *verifier) checkDestinations() {
	const what = "destinations"
	complete, err := v.node.Destinations().Complete()
	switch {
	case err != nil:
		v.failed(what, "%v", err)
	case !complete:
		v.failed(what, "the set is not complete: everything is captured until ztunnel has heard all from the control plane; see its log, scope xds")
	default:
		v.ok(what, "the set of mesh addresses is complete")
	}
}

func (v *verifier) checkZtunnel(ctx context.Context) {
	var view meshView
	if err := v.ztunnel.get(ctx, "/config_dump", &view); err != nil {
		v.failed("mesh state", "%v", err)
		return
	}
	v.view = &view
	for _, w := range view.Workloads {
		if !slices.ContainsFunc(v.pod.Info().Addresses, func(a netip.Addr) bool { return slices.Contains(w.Addresses, a) }) {
			continue
		}
		if w.Protocol != "HBONE" {
			v.failed("mesh state", "ztunnel takes the pod for one outside the mesh (%s, %s): others connect to it in clear; see the agent's log for why it did not publish the pod", w.identity(), w.Protocol)
			return
		}
		v.identity = w.identity()
		v.ok("mesh state", "ztunnel knows the pod as %s, %s", w.identity(), w.Protocol)
		return
	}
	v.failed("mesh state", "ztunnel knows no workload with the pod's address: the control plane has not told it of the pod (is the workload folder shared by all nodes, and the pod in a manifest?)")
}

func (v *verifier) print(w io.Writer, format string) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v.checks)
	}
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range v.checks {
		fmt.Fprintf(out, "%-7s\t%s\t%s\n", c.Result, c.What, c.Detail)
	}
	return out.Flush()
}
