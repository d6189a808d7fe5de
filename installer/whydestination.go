// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
)

func (w *inquiry) decideWorkload(d *meshWorkload) {
	w.step("ztunnel knows %v as workload %s/%s on node %s", w.Destination.Addr(), d.Namespace, d.Name, or(d.Node, "unknown"))
	if d.Waypoint != nil {
		w.end("yes", "it goes in mutual TLS to the workload's waypoint %s, which connects on", d.Waypoint.Destination)
		return
	}
	if d.Protocol == "HBONE" {
		w.end("yes", "it goes in mutual TLS (HBONE) to %s", d.identity())
		w.policiesOf(d)
		return
	}
	w.end("no", "workload %s/%s speaks no HBONE: it is not enrolled, so ztunnel connects in clear", d.Namespace, d.Name)
}

func (w *inquiry) decideService(s *meshService) {
	w.step("ztunnel knows %v as service %s/%s with %d endpoints", w.Destination.Addr(), s.Namespace, s.Hostname, len(s.Endpoints))
	if s.Waypoint != nil {
		w.end("yes", "it goes in mutual TLS to the service's waypoint %s, which connects on", s.Waypoint.Destination)
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
		w.end("yes", "it goes in mutual TLS (HBONE) to one of its %d endpoints: %s", len(hbone), strings.Join(slices.Compact(slices.Clone(hbone)), ", "))
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
