// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
)

// repairLimit is how soon the agent must have put right what a pod broke: it compares every 5 s.
const repairLimit = 15 * time.Second

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
	s.proveTools(r)
	for _, server := range []netip.Addr{s.server.Addr4, s.server.Addr6} {
		if err := s.proveMarks(r, server); err != nil {
			return err
		}
	}
	if err := s.proveGuard(r); err != nil {
		return err
	}
	if err := s.proveSteeringGone(r); err != nil {
		return err
	}
	trace, err := capture.Stop()
	if err != nil {
		return err
	}
	after, err := s.podVerdicts(s.Nodes[0], s.client)
	if err != nil {
		return err
	}
	mesh := s.meshOf(trace)
	clear := mesh.Clear(hbonePort)
	r.check(len(clear) == 0 && mesh.Count(requestMarker) == 0 && mesh.PayloadBytes() > 0, "all the while: clear segments on the wire",
		"%d of %d, with %d bytes", len(clear), len(mesh), clear.PayloadBytes())
	captured := after[bpf.VerdictCaptured] - before[bpf.VerdictCaptured]
	r.check(captured > 0, "all the while: connections captured", "%d", captured)
	return nil
}

// meshOf keeps what passed between client and server.
func (s *scene) meshOf(t lab.Trace) lab.Trace {
	return t.Between(s.client.Addr4, s.client.Addr6, s.server.Addr4, s.server.Addr6, vip4, vip6)
}

// proveTools runs what an administrator has at hand. Most of it fails, having nothing to remove; that is not what is
// measured.
func (s *scene) proveTools(r *report) {
	for _, attempt := range []string{
		"nft flush ruleset",
		"iptables -t nat -F",
		"tc filter del dev eth0 egress",
		"tc filter del dev lo egress",
		"tc qdisc add dev eth0 clsact",
		"tc qdisc del dev eth0 clsact",
		"ip link set dev eth0 xdp off",
	} {
		_, _ = s.command(s.client, strings.Fields(attempt)...)
		a := s.curl(s.client, url(s.server.Addr4, httpPort, tag()), requestMarker)
		r.check(a.ok(), "after "+attempt, "%v", a)
	}
}

// proveMarks has connections made with every mark that anything here uses. All are captured. The exception are marks
// that carry our own bits for bounced packets: such packets may also loop back to where nobody listens.
func (s *scene) proveMarks(r *report, server netip.Addr) error {
	marks := []string{"0x1", "0x111", "0x539", fmt.Sprintf("%#x", bpf.SteeringMark), "0xffffffff"}
	argv := append([]string{s.python(), s.program("mark.py"), server.String(), fmt.Sprint(httpPort), requestMarker}, marks...)
	out, err := s.command(s.client, argv...)
	if err != nil {
		return fmt.Errorf("mark.py: %w: %s", err, out)
	}
	for line := range strings.Lines(out) {
		mark, got, _ := strings.Cut(strings.TrimSpace(line), " ")
		value, err := strconv.ParseUint(mark, 0, 32)
		if err != nil {
			return fmt.Errorf("mark.py: %w", err)
		}
		ours := uint32(value)&bpf.SteeringMask == bpf.SteeringMark
		r.check(strings.Contains(got, " 200 ") || ours, fmt.Sprintf("SO_MARK %s, %s", mark, family(server)), "%s", got)
	}
	return nil
}

// proveGuard sends SYNs past every hook that the pod itself has. What they met on the host's end of its link is counted
// there, and the wire must not see them.
func (s *scene) proveGuard(r *report) error {
	for _, fam := range []int{4, 6} {
		for tags, verdict := range []bpf.Verdict{0: bpf.VerdictDropLeak, 1: bpf.VerdictDropLeak, 2: bpf.VerdictDropLeakTagged} {
			stopped, err := s.stoppedByGuard(s.client.Addr(fam), s.server.Addr(fam), tags, verdict)
			if err != nil {
				return err
			}
			what := fmt.Sprintf("raw SYN with PACKET_QDISC_BYPASS, %d VLAN tags, %s", tags, family(s.client.Addr(fam)))
			r.check(stopped == 1, what, "verdict %v +%d", verdict, stopped)
		}
	}
	return nil
}

// stoppedByGuard is how often guard gave the verdict while one SYN was sent.
func (s *scene) stoppedByGuard(src, dst netip.Addr, tags int, verdict bpf.Verdict) (uint64, error) {
	before, err := s.podVerdicts(s.Nodes[0], s.client)
	if err != nil {
		return 0, err
	}
	if err := s.sendPastHooks(src, dst, tags); err != nil {
		return 0, err
	}
	after, err := s.podVerdicts(s.Nodes[0], s.client)
	return after[verdict] - before[verdict], err
}

// sendPastHooks sends one SYN as a frame, addressed to the gateway as the pod's own traffic is.
func (s *scene) sendPastHooks(src, dst netip.Addr, tags int) error {
	mac, err := s.gatewayMAC(dst)
	if err != nil {
		return err
	}
	if out, err := s.command(s.client, s.python(), s.program("leak.py"), src.String(), dst.String(), fmt.Sprint(httpPort), mac, fmt.Sprint(tags)); err != nil {
		return fmt.Errorf("leak.py: %w: %s", err, out)
	}
	return nil
}

// gatewayMAC is where the pod's frames to an address go: the neighbour that "ip route get" names.
func (s *scene) gatewayMAC(dst netip.Addr) (string, error) {
	out, err := s.command(s.client, "ip", "route", "get", dst.String())
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	via := wordAfter(strings.Fields(out), "via")
	if out, err = s.command(s.client, "ip", "neigh", "show", via, "dev", "eth0"); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	mac := wordAfter(strings.Fields(out), "lladdr")
	if mac == "" {
		return "", fmt.Errorf("no neighbour entry for %q: %q", via, out)
	}
	return mac, nil
}

// wordAfter returns the word that follows another.
func wordAfter(words []string, word string) string {
	for i := range len(words) - 1 {
		if words[i] == word {
			return words[i+1]
		}
	}
	return ""
}

// proveSteeringGone deletes what brings captured packets to ztunnel. Nothing may pass then; the agent puts it back.
func (s *scene) proveSteeringGone(r *report) error {
	table := fmt.Sprint(bpf.SteeringTable)
	for _, attempt := range []string{
		"ip -4 rule del table " + table, "ip -6 rule del table " + table,
		"ip -4 route flush table " + table, "ip -6 route flush table " + table,
		"sysctl -qw net.ipv4.conf.lo.accept_local=0",
	} {
		if out, err := s.command(s.client, strings.Fields(attempt)...); err != nil {
			return fmt.Errorf("%s: %w: %s", attempt, err, out)
		}
	}
	for _, fam := range []int{4, 6} {
		took, err := within(repairLimit, func() error {
			if a := s.curl(s.client, url(s.server.Addr(fam), httpPort, tag()), requestMarker); !a.ok() {
				return fmt.Errorf("got %v", a)
			}
			return nil
		})
		claim := fmt.Sprintf("after ip rule del, ip route flush, sysctl, IPv%d", fam)
		r.check(err == nil, claim, "%s", okOr(err, fmt.Sprintf("200 after %.1f s, when the agent had put them back", took.Seconds())))
	}
	return nil
}
