// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/installer/flows"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// past looks up what became of earlier connections like this one.
func (w *inquiry) past(ctx context.Context, agentSocket string, ztunnel *ztunnelAdmin) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	like := func(to netip.AddrPort) bool {
		return to.Addr().Unmap() == w.Destination.Addr() && (w.Destination.Port() == 0 || to.Port() == w.Destination.Port())
	}
	client := nodeapi.Client{Socket: agentSocket}
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
	if err := ztunnel.get(ctx, "/debug/connections", &ended); err != nil {
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

// target is the destination in words.
func (w *inquiry) target() string {
	if w.Destination.Port() == 0 {
		return w.Destination.Addr().String() + ", any port"
	}
	return w.Destination.String()
}

func (w *inquiry) print(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "from       pod %s\nto         %s\nencrypted  %s, because %s\n", w.Pod, w.target(), w.Encrypted, w.Because)
	if w.Refused != "" {
		fmt.Fprintf(&b, "refused    %s\n", w.Refused)
	}
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
