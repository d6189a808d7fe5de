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
)

// answer is what why says of a connection.
type answer struct {
	Pod         string         `json:"pod"`
	Destination netip.AddrPort `json:"destination"`
	// Encrypted is "yes", "no", "depends" if some endpoints of a service speak mutual TLS and some do not, or "unknown".
	Encrypted string `json:"encrypted"`
	Because   string `json:"because"`
	// Refused says who refuses the connection, and why. Empty: nobody does, as far as this node knows.
	Refused string `json:"refused,omitempty"`
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
	var format string
	fs := newFlagSet("why", stdout)
	fs.operands = "POD DST[:PORT]"
	p.declare(fs.FlagSet)
	ztunnel := ztunnelAdmin{paths: &p}
	ztunnel.declare(fs.FlagSet)
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
	w := &inquiry{node: node, pod: pod, info: pod.Info()}
	w.Pod = w.info.Namespace + "/" + w.info.Name
	w.viewErr = ztunnel.get(ctx, "/config_dump", &w.view)
	if w.Destination, err = w.resolve(fs.given[1]); err != nil {
		return err
	}
	if w.viewErr == nil {
		w.askZtunnel(ctx, &ztunnel)
	} else {
		w.note("%v", w.viewErr)
	}
	if err := w.decide(); err != nil {
		return err
	}
	w.past(ctx, p.agentSocket(), &ztunnel)
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
	node    *bpf.Node
	pod     *bpf.Pod
	info    bpf.PodInfo
	view    meshView
	viewErr error        // why view is not known
	would   *explanation // nil if ztunnel does not tell
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
func (w *inquiry) resolve(typed string) (to netip.AddrPort, err error) {
	if ap, err := netip.ParseAddrPort(typed); err == nil {
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
	}
	if a, err := netip.ParseAddr(strings.Trim(typed, "[]")); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 0), nil
	}
	host, portText, hasPort := strings.Cut(typed, ":")
	port := uint64(0)
	if hasPort {
		if port, err = strconv.ParseUint(portText, 10, 16); err != nil {
			return to, usageError{fmt.Errorf("DST: %q is neither an address nor HOST:PORT", typed)}
		}
	}
	if w.viewErr != nil {
		return to, fmt.Errorf("DST: who %q is, only ztunnel knows; give an address: %w", host, w.viewErr)
	}
	svc := w.serviceNamed(strings.TrimSuffix(host, "."))
	if svc == nil {
		return to, usageError{fmt.Errorf("DST: %q is neither an address nor a service that ztunnel knows", typed)}
	}
	addrs := svc.addrs()
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return w.lacks(a) - w.lacks(b) })
	if len(addrs) == 0 {
		return to, usageError{fmt.Errorf("DST: service %s has no address of its own; give the address of one of its pods", host)}
	}
	w.note("%s is %v, service %s/%s", host, addrs[0], svc.Namespace, svc.Hostname)
	return netip.AddrPortFrom(addrs[0], uint16(port)), nil
}

// lacks is 1 for an address of a family that the pod does not have.
func (w *inquiry) lacks(a netip.Addr) int {
	if slices.ContainsFunc(w.info.Addresses, func(own netip.Addr) bool { return own.Is4() == a.Is4() }) {
		return 0
	}
	return 1
}

// serviceNamed finds a service as the pod would call it.
func (w *inquiry) serviceNamed(host string) *meshService {
	for i := range w.view.Services {
		s := &w.view.Services[i]
		if host == s.Hostname || host == s.Name+"."+s.Namespace || host == s.Name+"."+s.Namespace+".svc" || host == s.Name && s.Namespace == w.info.Namespace {
			return s
		}
	}
	return nil
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
		w.end("no", "a query: it goes to ztunnel's resolver in the pod, which answers for names of the mesh itself, and asks %v for all others in clear", to)
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
	slot := bpf.SlotOutbound4
	if !to.Addr().Is4() {
		slot = bpf.SlotOutbound6
	}
	if _, ok, err := w.pod.ListenerCookie(slot); err != nil {
		return err
	} else if !ok {
		w.Refused = fmt.Sprintf("by the datapath: the pod has no listener in slot %v (verify says more)", slot)
		w.end("no", "nothing is sent: the connection is refused")
		return nil
	}
	w.decideByZtunnel()
	if err := w.pod.Check(); err != nil && (w.Encrypted == "yes" || w.Encrypted == "depends") {
		w.end("unknown", "the pod's datapath is not as it was attached, so this may not hold (verify says more): %s", strings.Join(strings.Fields(err.Error()), " "))
	}
	return nil
}
