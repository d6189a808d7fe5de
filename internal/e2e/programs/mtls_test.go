// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// logged bounds how long a connection's line in the access log may take once it has ended.
const logged = 10 * time.Second

// What ends a connection's line in the access log of the server's node.
const (
	complete = `"connection complete"`
	mtls     = `"verdict":"mtls"`
)

var families = []int{4, 6}

func at(p *lab.Pod, family int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(p.Addr(family), port)
}

// inbound are the lines of the access log about connections that came to an address of the server.
func (w *world) inbound(to netip.AddrPort, parts ...string) []string {
	return w.Lines("ztunnel-node2", append(parts, complete, `"direction":"inbound"`, `"`+to.String()+`"`)...)
}

// overBoth runs f against a port of the server over IPv4 and IPv6. Afterwards the server's node must have seen at least
// so many connections to it, each in mutual TLS with the client's identity, and none otherwise.
func (p *place) overBoth(port uint16, connections int, f func(t *testing.T, to netip.AddrPort)) {
	p.t.Helper()
	for _, family := range families {
		p.t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			to := at(p.server, family, port)
			t.Cleanup(func() {
				if t.Failed() {
					p.explain(t, to)
				}
			})
			f(t, to)
			if !t.Failed() {
				p.wantMTLS(t, to, connections)
			}
		})
	}
}

// wantMTLS waits for the lines of so many connections. They come when a connection ends.
func (p *place) wantMTLS(t *testing.T, to netip.AddrPort, connections int) {
	t.Helper()
	const identity = `"src.identity":"spiffe://cluster.local/ns/mesh/sa/client"`
	var all []string
	err := lab.Poll(logged, func() error {
		all = p.inbound(to)
		if len(all) < connections {
			return fmt.Errorf("%d connections to %v in the access log, want %d", len(all), to, connections)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if good := p.inbound(to, mtls, identity); len(good) != len(all) {
		t.Errorf("of %d connections to %v, %d were in mutual TLS from the client; one of all: %s", len(all), to, len(good), all[len(all)-1])
	}
}

// explain shows the last that both ztunnels said about an address.
func (w *world) explain(t *testing.T, to netip.AddrPort) {
	for _, n := range w.Nodes {
		lines := w.Lines("ztunnel-"+n.Name, to.String()+`"`)
		for _, line := range lines[max(0, len(lines)-5):] {
			t.Logf("%s: %s", n.Name, line)
		}
	}
}
