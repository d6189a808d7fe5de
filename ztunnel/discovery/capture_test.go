// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestCaptureSet(t *testing.T) {
	way := &Gateway{Hostname: ServiceKey{"infra", "waypoint"}, Port: DefaultHBONEPort}
	second, third := ServiceKey{"shop", "second"}, ServiceKey{"shop", "third"}
	for _, test := range []struct {
		name    string
		update  Update
		want    string
		partial bool
	}{
		{name: "nothing", want: ""},
		{name: "HBONE pods of both families", update: Update{Workloads: []*Workload{pod("a", "10.0.0.1"), pod("b", "fd00:1::1")}}, want: "10.0.0.1 fd00:1::1"},
		{name: "plain pods", update: Update{Workloads: []*Workload{pod("a", "10.0.0.1", plain)}}},
		{name: "plain pod behind a waypoint", update: Update{Workloads: []*Workload{pod("a", "10.0.0.1", plain, func(w *Workload) { w.Waypoint = way })}}, want: "10.0.0.1"},
		{name: "host network", update: Update{Workloads: []*Workload{pod("a", "10.0.0.1", func(w *Workload) { w.HostNetwork = true })}}},
		{name: "other network", update: Update{Workloads: []*Workload{pod("a", "10.0.0.1", func(w *Workload) { w.Network = "far" })}}},
		{name: "VIP with a pod", update: Update{
			Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil)), pod("b", "10.0.0.2", plain, inService(web, nil)), pod("c", "10.0.0.3", plain, inService(second, nil))},
			Services:  []*Service{service(web, "10.1.0.1"), service(second, "10.1.0.2"), service(third, "10.1.0.3")},
		}, want: "10.0.0.1 10.1.0.1"},
		{name: "VIP whose only pod is unready", update: Update{
			Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil), unhealthy)}, Services: []*Service{service(web, "10.1.0.1")},
		}, want: "10.0.0.1 10.1.0.1"},
		{name: "VIP with a pod on another network", update: Update{
			Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil), func(w *Workload) { w.Network = "far" })}, Services: []*Service{service(web, "10.1.0.1")},
		}, want: "10.1.0.1"},
		{name: "VIP behind a waypoint", update: Update{Services: []*Service{service(web, "10.1.0.1", func(s *Service) { s.Waypoint = way })}}, want: "10.1.0.1"},
		{name: "range outside the mesh", update: Update{Services: []*Service{service(web, "10.1.0.1", func(s *Service) {
			s.CIDRVIPs = []NetworkPrefix{{Prefix: netip.MustParsePrefix("10.2.0.0/16")}}
		})}}},
		{name: "range in the mesh", update: Update{Services: []*Service{service(web, "10.1.0.1", func(s *Service) {
			s.CIDRVIPs, s.Waypoint = []NetworkPrefix{{Prefix: netip.MustParsePrefix("10.2.0.0/16")}}, way
		})}}, want: "10.1.0.1", partial: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := NewStore()
			s.Apply(test.update)
			got := s.CaptureSet("")
			if list := strings.Trim(fmt.Sprint(got.Addrs), "[]"); list != test.want || got.Complete == test.partial {
				t.Errorf("got %q complete %v, want %q complete %v", list, got.Complete, test.want, !test.partial)
			}
		})
	}
}
