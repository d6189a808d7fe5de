// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// metric is the sum of the series of a node's ztunnel that have all of labels.
func (s *scene) metric(n *lab.Node, name string, labels ...string) (sum float64) {
	s.t.Helper()
	text, err := n.Metrics()
	s.must(err)
lines:
	for line := range strings.Lines(text) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if series == line || !strings.Contains(line, "}") {
			series, value, _ = strings.Cut(strings.TrimSpace(line), " ")
		}
		if series != name && !strings.HasPrefix(series, name+"{") {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(series+"}", label) {
				continue lines
			}
		}
		number, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
		s.must(err)
		sum += number
	}
	return sum
}

// opened counts connections from one workload to another by what their reporter calls itself, "source" or "destination".
func (s *scene) opened(n *lab.Node, reporter, from, to, security string) float64 {
	s.t.Helper()
	return s.metric(n, "istio_tcp_connections_opened_total", label("reporter", reporter), label("source_workload", from),
		label("destination_workload", to), label("connection_security_policy", security))
}

func label(key, value string) string { return fmt.Sprintf("%s=%q", key, value) }

// wantLine waits for a line of a node's ztunnel with all of parts.
func (s *scene) wantLine(n *lab.Node, parts ...string) {
	s.t.Helper()
	testutil.Eventually(s.t, effect, func() error {
		if len(s.Lines(n.Ztunnel.Name, parts...)) > 0 {
			return nil
		}
		return fmt.Errorf("no line with %q in the log of %s", parts, n.Ztunnel.Name)
	})
}

// echo starts a server in a pod that says the pod's name.
func (s *scene) echo(pod string, port uint16) {
	s.t.Helper()
	inside(s.pods[pod]).Echo(s.t, pod, fmt.Sprintf("[::]:%d", port))
}

// ask fails the test unless an echo server of the given name answers, and returns whom it saw.
func (s *scene) ask(from, name string, to netip.AddrPort) netip.Addr {
	s.t.Helper()
	got, err := inside(s.pods[from]).AskFrom(to)
	if err != nil || got.Name != name {
		s.t.Fatalf("%s to %s: got %+v, %v, want an answer of %s", from, to, got, err, name)
	}
	return got.From.Addr()
}

// at is a port of a pod.
func (s *scene) at(pod string, family int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(s.pods[pod].Addr(family), port)
}

// open makes a connection to an echo server, which stays.
func (s *scene) open(from string, to netip.AddrPort) net.Conn {
	s.t.Helper()
	c, err := inside(s.pods[from]).Dial(short(s.t), "tcp", to.String())
	s.must(err)
	s.t.Cleanup(func() { c.Close() })
	_, err = testutil.Ask(c)
	s.must(err)
	return c
}
