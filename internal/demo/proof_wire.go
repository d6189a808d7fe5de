// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
)

// requestMarker is in a header of every request; it must never be seen on the wire in clear.
const requestMarker = "sluice-demo-request-93aa02"

// proveWire ends the capture that began before the first request, and looks for text, ports and TLS in it. What the
// pod outside the mesh sends must be found by the very same search.
func proveWire(s *scene, r *report) error {
	for _, server := range []netip.Addr{s.server.Addr4, s.server.Addr6} {
		if a := s.curl(s.legacy, url(server, httpPort, tag()), requestMarker); !a.ok() {
			return fmt.Errorf("legacy -> server: %v", a)
		}
	}
	trace, err := s.capture.Stop()
	if err != nil {
		return err
	}
	mesh := trace.Between(s.client.Addr4, s.client.Addr6, s.server.Addr4, s.server.Addr6, vip4, vip6)
	legacy := trace.Between(s.legacy.Addr4, s.legacy.Addr6, s.server.Addr4, s.server.Addr6)
	requests, responses := mesh.Count(requestMarker), mesh.Count(responseMarker)
	r.check(requests == 0 && responses == 0 && mesh.PayloadBytes() > 0, "client <-> server: marker text in clear",
		"request's %d times, response's %d times, in %d segments with %d bytes", requests, responses, len(mesh), mesh.PayloadBytes())
	clear := mesh.Clear(hbonePort)
	r.check(len(clear) == 0, fmt.Sprintf("client <-> server: segments off port %d", hbonePort), "%d", len(clear))
	versions, err := mesh.TLSVersions(hbonePort)
	if err != nil {
		return err
	}
	r.check(len(versions) > 0 && all13(versions), "client <-> server: TLS version", "%s", versionNames(versions))
	requests, responses = legacy.Count(requestMarker), legacy.Count(responseMarker)
	r.check(requests > 0 && responses > 0, "legacy <-> server, for comparison: marker text in clear", "request's %d times, response's %d times", requests, responses)
	return nil
}

func all13(versions []uint16) bool {
	for _, v := range versions {
		if v != tls.VersionTLS13 {
			return false
		}
	}
	return true
}

func versionNames(versions []uint16) string {
	count := map[string]int{}
	for _, v := range versions {
		count[tls.VersionName(v)]++
	}
	var names []string
	for name, n := range count {
		names = append(names, fmt.Sprintf("%s in %d of %d connections", name, n, len(versions)))
	}
	return strings.Join(names, ", ")
}

// proveHostilePod has root with every capability in the client's pod try to get its traffic out of the mesh.
func proveHostilePod(s *scene, r *report) error {
	capture, err := s.StartCapture(s.NS("node1"), lab.WireIf)
	if err != nil {
		return err
	}
	before, err := s.podVerdicts(s.Nodes[0], s.client)
	if err != nil {
		return err
	}
	for _, attempt := range [][]string{
		{"nft", "flush", "ruleset"},
		{"iptables", "-t", "nat", "-F"},
		{"tc", "filter", "del", "dev", "eth0", "egress"},
		{"tc", "filter", "del", "dev", "lo", "egress"},
		{"tc", "qdisc", "add", "dev", "eth0", "clsact"},
		{"tc", "qdisc", "del", "dev", "eth0", "clsact"},
		{"ip", "link", "set", "dev", "eth0", "xdp", "off"},
	} {
		// Most of them fail, having nothing to remove; that is not what is measured.
		_, _ = s.command(s.client, attempt...)
		a := s.curl(s.client, url(s.server.Addr4, httpPort, tag()), requestMarker)
		r.check(a.ok(), "after "+strings.Join(attempt, " "), "%v", a)
	}
	for _, server := range []netip.Addr{s.server.Addr4, s.server.Addr6} {
		if err := s.proveMarks(r, server); err != nil {
			return err
		}
	}
	trace, err := capture.Stop()
	if err != nil {
		return err
	}
	after, err := s.podVerdicts(s.Nodes[0], s.client)
	if err != nil {
		return err
	}
	mesh := trace.Between(s.client.Addr4, s.client.Addr6, s.server.Addr4, s.server.Addr6, vip4, vip6)
	clear := mesh.Clear(hbonePort)
	r.check(len(clear) == 0 && mesh.Count(requestMarker) == 0 && mesh.PayloadBytes() > 0, "all the while: clear segments on the wire", "%d of %d, %d clear bytes", len(clear), len(mesh), clear.PayloadBytes())
	r.check(after[bpf.VerdictCaptured] > before[bpf.VerdictCaptured], "all the while: connections captured", "%d, leaks stopped by guard %d",
		after[bpf.VerdictCaptured]-before[bpf.VerdictCaptured], after[bpf.VerdictDropLeak]-before[bpf.VerdictDropLeak])
	return nil
}

// proveMarks has connections made with every mark that anything here uses. All are captured but those with our own
// mark of bounced packets: these loop back to where nobody listens.
func (s *scene) proveMarks(r *report, server netip.Addr) error {
	ours := fmt.Sprintf("%#x", bpf.SteeringMark)
	marks := []string{"0x1", "0x111", "0x539", "0xffffffff", ours}
	argv := append([]string{s.python(), s.program("mark.py"), server.String(), fmt.Sprint(httpPort), requestMarker}, marks...)
	out, err := s.command(s.client, argv...)
	if err != nil {
		return fmt.Errorf("mark.py: %w: %s", err, out)
	}
	for line := range strings.Lines(out) {
		mark, got, _ := strings.Cut(strings.TrimSpace(line), " ")
		answered := strings.Contains(got, " 200 ")
		r.check(answered != (mark == ours), fmt.Sprintf("SO_MARK %s, %s", mark, family(server)), "%s", got)
	}
	return nil
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// within measures how long it takes until check holds.
func within(limit time.Duration, check func() error) (time.Duration, error) {
	began := time.Now()
	err := lab.Poll(limit, check)
	return time.Since(began), err
}
