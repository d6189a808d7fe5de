// SPDX-License-Identifier: Apache-2.0

package strange

import (
	"net"
	"net/netip"
	"slices"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/leak"
)

// watch looks at the wire and at the host's end of the pod's link until the test ends. Once the members are set, nothing
// new goes to the ordinary peer, or between it and the pod, but mTLS.
func (s *strange) watch() *leak.Watch {
	s.t.Helper()
	node := s.w.Nodes[0].NS
	w, err := leak.Start(nil, leak.Point{NS: node, Interface: lab.WireIf}, leak.Point{NS: node, Interface: s.hostEnd(), FromPod: true})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		report, err := w.Stop()
		if err != nil {
			s.t.Errorf("leak watch: %v", err)
		}
		if report.HBONE == 0 {
			s.t.Errorf("leak watch saw no mutual TLS in %d frames", report.Frames)
		}
		for _, l := range report.Leaks {
			s.t.Errorf("leaked: %v", l)
		}
	})
	return w
}

func (s *strange) members() []netip.Addr {
	all := []netip.Addr{s.Addr4, s.Addr6, s.w.peer.Addr4, s.w.peer.Addr6}
	return slices.DeleteFunc(all, func(a netip.Addr) bool { return !a.IsValid() })
}

// hostEnd is the name of the host's end of the pod's link.
func (s *strange) hostEnd() (name string) {
	s.t.Helper()
	err := s.pinned(func(p *bpf.Pod) error {
		return lab.In(s.w.Nodes[0].NS, func() error {
			link, err := net.InterfaceByIndex(p.Info().HostIfindexes[0])
			if err == nil {
				name = link.Name
			}
			return err
		})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return name
}
