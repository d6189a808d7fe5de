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
	"strconv"
	"strings"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/flows"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// answer is what why says of a connection.
type answer struct {
	Pod         string         `json:"pod"`
	Destination netip.AddrPort `json:"destination"`
	// Encrypted is "yes", "no", or "depends": some endpoints of a service speak mutual TLS and some do not.
	Encrypted string `json:"encrypted"`
	Because   string `json:"because"`
	// Steps are the rules in the order in which they were asked, up to the one that decides.
	Steps    []string     `json:"steps"`
	Policies []string     `json:"policies,omitempty"`
	Flows    []flows.Flow `json:"lastFlows,omitempty"`
	Ended    []endedConn  `json:"lastConnections,omitempty"`
	Notes    []string     `json:"notes,omitempty"`
}

// maxLast is how many past connections are shown.
const maxLast = 5

func whyCommand(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var p paths
	var format, adminAddress string
	fs := newFlagSet("why", stdout)
	fs.operands = "POD DST[:PORT]"
	p.declare(fs.FlagSet)
	fs.StringVar(&adminAddress, "ztunnel-admin", "127.0.0.1:15000", "address of ztunnel's admin page")
	fs.StringVar(&format, "o", "table", "output: table or json")
	err := fs.parse(args, func() error {
		if format != "table" && format != "json" {
			return errors.Join(p.validate(), fmt.Errorf("-o: %q is neither table nor json", format))
		}
		return p.validate()
	})
	if err != nil {
		return err
	}
	node, pod, err := findPod(p.PinRoot, fs.given[0])
	if err != nil {
		return err
	}
	defer func() { _, _ = pod.Close(), node.Close() }()
	w := &inquiry{node: node, info: pod.Info()}
	w.Pod = w.info.Namespace + "/" + w.info.Name
	if err := admin(ctx, adminAddress, "/config_dump", &w.view); err != nil {
		w.note("%v: what the mesh knows of the destination is left out", err)
	}
	if w.Destination, err = w.resolve(fs.given[1]); err != nil {
		return usageError{err}
	}
	if err := w.decide(); err != nil {
		return err
	}
	w.past(ctx, &p, adminAddress)
	if format == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(w.answer)
	}
	return w.print(stdout)
}

// inquiry is one question of why on its way to an answer.
type inquiry struct {
	answer
	node *bpf.Node
	info bpf.PodInfo
	view meshView
}

func (w *inquiry) note(format string, args ...any) {
	w.Notes = append(w.Notes, fmt.Sprintf(format, args...))
}
func (w *inquiry) step(format string, args ...any) {
	w.Steps = append(w.Steps, fmt.Sprintf(format, args...))
}

// end is the rule that decides.
func (w *inquiry) end(encrypted, format string, args ...any) {
	w.Encrypted, w.Because = encrypted, fmt.Sprintf(format, args...)
	w.step("%s", w.Because)
}

// resolve reads ADDRESS, ADDRESS:PORT, [ADDRESS]:PORT or a service's name with or without a port. Port 0: any.
func (w *inquiry) resolve(typed string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(typed); err == nil {
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
	}
	if a, err := netip.ParseAddr(strings.Trim(typed, "[]")); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 0), nil
	}
	host, portText, _ := strings.Cut(typed, ":")
	port := uint64(0)
	if portText != "" {
		var err error
		if port, err = strconv.ParseUint(portText, 10, 16); err != nil {
			return netip.AddrPort{}, fmt.Errorf("DST: %q is not a port", portText)
		}
	}
	for _, s := range w.view.Services {
		if host == s.Hostname || host == s.Name+"."+s.Namespace || host == s.Name && s.Namespace == w.info.Namespace {
			for _, vip := range s.VIPs {
				_, text, _ := strings.Cut(vip, "/")
				if a, err := netip.ParseAddr(text); err == nil {
					w.note("%s is %v, service %s/%s", host, a, s.Namespace, s.Hostname)
					return netip.AddrPortFrom(a, uint16(port)), nil
				}
			}
		}
	}
	return netip.AddrPort{}, fmt.Errorf("DST: %q is neither an address nor a service that ztunnel knows", typed)
}

// decide goes through capture's rules in their order (bpf/capture.bpf.c), then through ztunnel's.
func (w *inquiry) decide() error {
	to, set := w.Destination, w.node.Destinations()
	complete, err := set.Complete()
	if err != nil {
		return err
	}
	member, err := set.Contains(to.Addr())
	if err != nil {
		return err
	}
	switch {
	case to.Addr().IsLoopback() || slices.Contains(w.info.Addresses, to.Addr()):
		w.end("no", "the destination is the pod itself: the connection stays inside it")
		return nil
	case w.info.Exclude.Covers(to):
		w.end("no", "the pod's settings exclude this destination from capture (annotations sluice.dev/exclude-outbound-*, or the agent's --exclude-*)")
		return nil
	}
	w.step("not excluded by the pod's settings")
	if w.info.CaptureDNS && to.Port() == 53 {
		w.end("no", "a query: it goes to ztunnel's resolver, which answers for the mesh and asks %v for all else", to)
		return nil
	}
	switch {
	case w.info.CaptureAll:
		w.step("captured: the pod's settings capture everything")
	case !complete:
		w.step("captured: ztunnel has not yet said which addresses are in the mesh, so all are treated as if they were")
	case !member:
		w.end("no", "%v is not in the mesh: no workload or service that speaks mutual TLS has it, so the connection leaves as it is", to.Addr())
		return nil
	default:
		w.step("captured: %v is in the mesh", to.Addr())
	}
	w.decideByZtunnel()
	return nil
}

// decideByZtunnel says what ztunnel does with a captured connection.
func (w *inquiry) decideByZtunnel() {
	addr := w.Destination.Addr()
	for i := range w.view.Services {
		if s := &w.view.Services[i]; s.has(addr) {
			w.decideService(s)
			return
		}
	}
	for i := range w.view.Workloads {
		if d := &w.view.Workloads[i]; slices.Contains(d.Addresses, addr) {
			w.decideWorkload(d)
			return
		}
	}
	w.end("no", "ztunnel knows neither workload nor service at %v: it passes the connection on as it is", addr)
}

func (w *inquiry) decideWorkload(d *meshWorkload) {
	w.step("ztunnel knows %v as workload %s/%s on node %s", w.Destination.Addr(), d.Namespace, d.Name, or(d.Node, "unknown"))
	if d.Waypoint != nil {
		w.step("its connections go through the waypoint %s", d.Waypoint.Destination)
	}
	if d.Protocol == "HBONE" {
		w.end("yes", "mutual TLS (HBONE) to %s", d.identity())
		w.policiesOf(d)
		return
	}
	w.end("no", "workload %s/%s speaks no HBONE: it is not enrolled, so ztunnel connects in clear", d.Namespace, d.Name)
}

func (w *inquiry) decideService(s *meshService) {
	w.step("ztunnel knows %v as service %s/%s with %d endpoints", w.Destination.Addr(), s.Namespace, s.Hostname, len(s.Endpoints))
	if s.Waypoint != nil {
		w.end("yes", "mutual TLS to the service's waypoint %s, which connects on", s.Waypoint.Destination)
		return
	}
	hbone, clear := []string{}, []string{}
	for i := range w.view.Workloads {
		d := &w.view.Workloads[i]
		if _, ok := s.Endpoints[d.UID]; !ok {
			continue
		}
		if d.Protocol == "HBONE" {
			hbone = append(hbone, d.identity())
			w.policiesOf(d)
		} else {
			clear = append(clear, d.Namespace+"/"+d.Name)
		}
	}
	slices.Sort(hbone)
	switch {
	case len(hbone)+len(clear) == 0:
		w.end("no", "the service has no endpoint: ztunnel refuses the connection")
	case len(clear) == 0:
		w.end("yes", "mutual TLS (HBONE) to one of its endpoints: %s", strings.Join(slices.Compact(hbone), ", "))
	case len(hbone) == 0:
		w.end("no", "no endpoint of the service speaks HBONE: %s", strings.Join(clear, ", "))
	default:
		w.end("depends", "of the service's endpoints these speak no HBONE: %s", strings.Join(clear, ", "))
	}
}

// policiesOf lists the policies that the destination's ztunnel asks.
func (w *inquiry) policiesOf(d *meshWorkload) {
	for _, p := range w.view.Policies {
		name := p.Namespace + "/" + p.Name
		if p.Scope == "Global" || p.Scope == "Namespace" && p.Namespace == d.Namespace || slices.Contains(d.Policies, name) {
			text := fmt.Sprintf("%s %s (%s)", strings.ToUpper(p.Action), name, p.Scope)
			if p.DryRun {
				text += ", dry run: only logged"
			}
			if !slices.Contains(w.Policies, text) {
				w.Policies = append(w.Policies, text)
			}
		}
	}
}

// past looks up what became of earlier connections like this one.
func (w *inquiry) past(ctx context.Context, p *paths, adminAddress string) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	like := func(to netip.AddrPort) bool {
		return to.Addr().Unmap() == w.Destination.Addr() && (w.Destination.Port() == 0 || to.Port() == w.Destination.Port())
	}
	client := nodeapi.Client{Socket: p.agentSocket()}
	err := client.Stream(ctx, &nodeapi.Request{Verb: nodeapi.VerbFlows}, func(packet json.RawMessage) error {
		var f flows.Flow
		if err := json.Unmarshal(packet, &f); err != nil {
			return err
		}
		if f.UID == w.info.UID && f.Outbound && like(f.Remote) {
			w.Flows = append(w.Flows, f)
		}
		return nil
	})
	if err != nil {
		w.note("%v: past flows are left out", err)
	}
	w.Flows = w.Flows[max(0, len(w.Flows)-maxLast):]
	var ended []endedConn
	if err := admin(ctx, adminAddress, "/debug/connections", &ended); err != nil {
		return // said before
	}
	for _, c := range ended {
		own := slices.Contains(w.info.Addresses, c.Src.Addr().Unmap()) && c.Direction == "outbound"
		wentTo, _ := netip.ParseAddrPort(c.HBONEAddr)
		fromFlow := slices.ContainsFunc(w.Flows, func(f flows.Flow) bool { return f.Local == c.Src })
		if own && (like(c.Dst) || like(wentTo) || fromFlow) {
			w.Ended = append(w.Ended, c)
		}
	}
	w.Ended = w.Ended[max(0, len(w.Ended)-maxLast):]
}

func (w *inquiry) print(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "from       pod %s\nto         %v\nencrypted  %s, because %s\n", w.Pod, w.Destination, w.Encrypted, w.Because)
	list := func(title string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(&b, "\n%s\n  %s\n", title, strings.Join(lines, "\n  "))
		}
	}
	list("decided by, in this order", w.Steps)
	list("policies that the destination's ztunnel asks", w.Policies)
	var lines []string
	for _, f := range w.Flows {
		event := f.Kind
		if f.Refused {
			event = "refused"
		}
		lines = append(lines, fmt.Sprintf("%s  %s  %v -> %v  %s, %d bytes sent, %d received, %s", f.At.Format("15:04:05.000"), event, f.Local, f.Remote, f.Path, f.Sent, f.Received, f.State))
	}
	list("last flows like it, as the pod's sockets saw them", lines)
	lines = nil
	for _, c := range w.Ended {
		line := fmt.Sprintf("%s  %s  %v -> %v", c.At.Format("15:04:05.000"), c.Verdict, c.Src, c.Dst)
		for _, each := range [][2]string{{"to ", c.DstIdentity}, {"policy ", c.Policy}, {"", c.Error}} {
			if each[1] != "" {
				line += "  " + each[0] + each[1]
			}
		}
		lines = append(lines, line)
	}
	list("last connections like it that ended, as ztunnel saw them", lines)
	list("notes", w.Notes)
	_, err := io.WriteString(out, b.String())
	return err
}
