// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// explanation is what is used of ztunnel's /debug/explain: what its own router and policies say.
type explanation struct {
	SourceIdentity string      `json:"sourceIdentity"`
	Problem        string      `json:"problem"`
	Routes         []explained `json:"routes"`
}

type explained struct {
	Verdict  string         `json:"verdict"`
	Error    string         `json:"error"`
	Workload string         `json:"workload"`
	Identity string         `json:"identity"`
	Node     string         `json:"node"`
	Waypoint string         `json:"waypoint"`
	Gateway  string         `json:"gateway"`
	Hostname string         `json:"hostname"`
	Dial     netip.AddrPort `json:"dial"`
	Allowed  bool           `json:"allowed"`
	Policy   string         `json:"policy"`
	Reason   string         `json:"reason"`
}

// askZtunnel has ztunnel say what it would do. A ztunnel that is not ours does not, and then its config dump has to do.
func (w *inquiry) askZtunnel(ctx context.Context, ztunnel *ztunnelAdmin) {
	to := w.Destination
	if to.Port() == 0 {
		to = netip.AddrPortFrom(to.Addr(), w.somePort())
		w.note("no port was given: ztunnel was asked about port %d", to.Port())
	}
	var e explanation
	query := url.Values{"pod": {w.info.UID}, "dst": {to.String()}}
	if err := ztunnel.get(ctx, "/debug/explain?"+query.Encode(), &e); err != nil {
		w.note("ztunnel does not say what it would do (%v): its config dump is gone by", err)
		return
	}
	w.would = &e
}

// somePort is the first port of the service that is asked about, else HTTP's.
func (w *inquiry) somePort() uint16 {
	if s := w.serviceAt(w.Destination.Addr()); s != nil {
		if ports := sortedPorts(s.Ports); len(ports) > 0 {
			return ports[0]
		}
	}
	return 80
}

// decideByZtunnel says what ztunnel does with a captured connection.
func (w *inquiry) decideByZtunnel() {
	if w.viewErr != nil {
		w.end("unknown", "ztunnel does not answer: a captured connection waits for it, and is then refused; it does not leave in clear")
		return
	}
	addr := w.Destination.Addr()
	if s := w.serviceAt(addr); s != nil {
		w.decideService(s)
	} else if d := w.workloadAt(addr); d != nil {
		w.decideWorkload(d)
	} else {
		w.end("no", "ztunnel knows neither workload nor service at %v: it passes the connection on as it is", addr)
	}
	w.refusal()
}

// refusal is what ztunnel itself says, which overrules: nothing is sent of what it refuses.
func (w *inquiry) refusal() {
	switch {
	case w.would == nil:
	case w.would.Problem != "":
		w.refusedBy("by this node's ztunnel: " + w.would.Problem)
	case len(w.would.Routes) == 0:
	default:
		r := &w.would.Routes[0]
		if r.Verdict == "mtls" && w.Encrypted == "no" {
			w.end("yes", "mutual TLS (HBONE) to %s", or(r.Identity, r.Workload))
		}
		if r.Hostname != "" && !strings.HasPrefix(r.Verdict, "refused") {
			w.step("%s answers at %s, which ztunnel resolves for each connection", r.Workload, r.Hostname)
		}
		switch {
		case strings.HasPrefix(r.Verdict, "refused"):
			w.refusedBy(fmt.Sprintf("by this node's ztunnel, %s: %s", r.Verdict, r.Error))
		case r.Verdict != "mtls":
			if w.Encrypted != "depends" {
				w.end("no", "ztunnel would carry it as %q: %s", r.Verdict, inClear(r.Verdict))
			}
		case r.Gateway != "":
			w.step("it leaves this network through the gateway %s, in mutual TLS with it and, inside, with the pod that answers, which asks policies of its own", r.Gateway)
		case !r.Allowed:
			// Still "encrypted: yes": the question whether is asked in mutual TLS.
			w.Refused = fmt.Sprintf("by the ztunnel of %s: %s", r.Workload, r.Reason)
			w.step("%s is asked as %s, and refuses: %s", r.Workload, w.would.SourceIdentity, r.Reason)
		case r.Policy != "":
			w.step("%s is asked as %s, and allows it by policy %s", r.Workload, w.would.SourceIdentity, r.Policy)
		default:
			w.step("%s is asked as %s, and no policy of its restricts who connects", r.Workload, w.would.SourceIdentity)
		}
	}
}

// inClear says what ztunnel's words for connections in clear mean.
func inClear(verdict string) string {
	switch verdict {
	case "plaintext":
		return "in clear, because the other end speaks no HBONE"
	case "passthrough":
		return "in clear and as it is, because no workload of the mesh answers there"
	case "local":
		return "in clear, to the pod itself"
	}
	return "not in mutual TLS"
}

// refusedBy ends the inquiry: nothing leaves the pod.
func (w *inquiry) refusedBy(why string) {
	w.Refused, w.Policies = why, nil
	w.end("no", "nothing is sent: the connection is refused %s", why)
}

func (w *inquiry) serviceAt(addr netip.Addr) *meshService {
	var found *meshService
	for i := range w.view.Services {
		s := &w.view.Services[i]
		visible := s.Visibility != "Namespace" || s.Namespace == w.info.Namespace
		// One of the pod's own namespace goes before others, as in ztunnel.
		if visible && s.has(addr) && (found == nil || s.Namespace == w.info.Namespace) {
			found = s
		}
	}
	return found
}

func (w *inquiry) workloadAt(addr netip.Addr) *meshWorkload {
	i := slices.IndexFunc(w.view.Workloads, func(d meshWorkload) bool { return slices.Contains(d.Addresses, addr) })
	if i < 0 {
		return nil
	}
	return &w.view.Workloads[i]
}
