// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/sluice-mesh/sluice/internal/lab"
)

func localCaptured(s *scene) { s.captured("near", s.Nodes[0], 7001) }

func crossNodeCaptured(s *scene) { s.captured("server", s.Nodes[1], 7002) }

// captured: from the client, over both families; counted once by each end, and both ends know each other.
func (s *scene) captured(server string, there *lab.Node, port uint16) {
	s.echo(server, port)
	here := s.Nodes[0]
	for _, family := range []int{4, 6} {
		source, dest := s.opened(here, "source", "client", server, "mutual_tls"), s.opened(there, "destination", "client", server, "mutual_tls")
		to := s.at(server, family, port)
		if from := s.ask("client", server, to); from != s.pods["client"].Addr(family) {
			s.t.Errorf("%s saw %s, want the client's address", server, from)
		}
		source, dest = s.opened(here, "source", "client", server, "mutual_tls")-source, s.opened(there, "destination", "client", server, "mutual_tls")-dest
		if source != 1 || dest != 1 {
			s.t.Errorf("IPv%d: counted by the source %v times, by the destination %v times, want once each", family, source, dest)
		}
		ids := []string{`"src.identity":"` + identityOf(s.pods["client"]), `"dst.identity":"` + identityOf(s.pods[server]), fmt.Sprintf(`"dst.hbone_addr":"%s"`, to)}
		s.wantLine(here, append(ids, `"direction":"outbound"`, "connection complete")...)
		s.wantLine(there, append(ids, `"direction":"inbound"`, "connection complete")...)
	}
}

// serverUncaptured: what goes to a pod outside the mesh stays in the kernel, so no ztunnel counts it. serviceLoadbalancing
// has one that ztunnel carries, as its service has members of the mesh too.
func serverUncaptured(s *scene) {
	s.echo("tcpserver", 7003)
	if from := s.ask("client", "tcpserver", s.at("tcpserver", 4, 7003)); from != s.pods["client"].Addr4 {
		s.t.Errorf("the server saw %s, want the client's address", from)
	}
	for _, n := range s.Nodes {
		if n := s.metric(n, "istio_tcp_connections_opened_total", label("destination_workload", "tcpserver")); n != 0 {
			s.t.Errorf("counted %v times, want never", n)
		}
		if lines := s.Lines(n.Ztunnel.Name, ":7003"); len(lines) > 0 {
			s.t.Errorf("%s carried it: %s", n.Name, lines)
		}
	}
}

func clientUncaptured(s *scene) {
	s.echo("server", 7004)
	if from := s.ask("plain", "server", s.at("server", 4, 7004)); from != s.pods["plain"].Addr4 {
		s.t.Errorf("the server saw %s, want the client's address", from)
	}
	if n := s.opened(s.Nodes[1], "destination", "plain", "server", "unknown"); n != 1 {
		s.t.Errorf("counted by the destination %v times, want once", n)
	}
	if n := s.metric(s.Nodes[0], "istio_tcp_connections_opened_total", label("source_workload", "plain")); n != 0 {
		s.t.Errorf("counted by a source %v times, want never", n)
	}
	s.wantLine(s.Nodes[1], `"direction":"inbound"`, `"verdict":"plaintext"`, ":7004", "connection complete")
	if lines := s.Lines(s.Nodes[1].Ztunnel.Name, ":7004", "src.identity"); len(lines) > 0 {
		s.t.Errorf("a client that proved nothing has an identity: %s", lines)
	}
}

func workloadWaypoint(s *scene) {
	requests := s.waypoint()
	const to = "10.244.2.250:8080"
	s.ask("client", "waypoint", netip.MustParseAddrPort(to))
	s.wantAsked(requests, to)
	s.wantLine(s.Nodes[0], `"direction":"outbound"`, `"verdict":"mtls"`, `"dst.workload":"waypoint"`, `"dst.hbone_addr":"`+to+`"`)
}

func serviceWaypoint(vip string) func(*scene) {
	return func(s *scene) {
		requests := s.waypoint()
		s.ask("client", "waypoint", netip.MustParseAddrPort(vip+":80"))
		s.wantAsked(requests, vip+":80")
		s.wantLine(s.Nodes[0], `"direction":"outbound"`, `"dst.workload":"waypoint"`, `"dst.hbone_addr":"`+vip+`:80"`)
	}
}

func (s *scene) wantAsked(requests <-chan asked, authority string) {
	s.t.Helper()
	if got, want := <-requests, (asked{authority: authority, client: identityOf(s.pods["client"])}); got != want {
		s.t.Errorf("the peer was asked %+v, want %+v", got, want)
	}
}

func sandwichPlain(s *scene) {
	s.echo("sandwich", 80)
	if from := s.ask("client", "sandwich", netip.MustParseAddrPort("10.99.0.4:80")); from != s.pods["client"].Addr4 {
		s.t.Errorf("the waypoint saw %s, want the client's address", from)
	}
	s.wantLine(s.Nodes[1], `"direction":"inbound"`, `"dst.hbone_addr":"10.99.0.4:80"`, `"dst.workload":"sandwich"`)
}

// sandwichProxyProtocol: the header's bytes are held against the specification in ztunnel/proxy; here is what they say.
func sandwichProxyProtocol(s *scene) {
	l := inside(s.pods["proxied"]).Listen(s.t, "tcp", "127.0.0.1:15088")
	introduced := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		fixed := make([]byte, 16)
		if _, err := io.ReadFull(c, fixed); err != nil {
			return
		}
		rest := make([]byte, binary.BigEndian.Uint16(fixed[14:]))
		if _, err := io.ReadFull(c, rest); err != nil {
			return
		}
		introduced <- append(fixed, rest...)
		_, _ = fmt.Fprintf(c, "proxied %s\n", c.RemoteAddr())
		_, _ = io.Copy(c, c)
	}()
	s.ask("client", "proxied", netip.MustParseAddrPort("10.99.0.5:80"))
	h := <-introduced
	id := identityOf(s.pods["client"])
	if want := "\r\n\r\n\x00\r\nQUIT\n\x21\x11"; string(h[:14]) != want {
		s.t.Fatalf("header begins with %q, want %q", h[:14], want)
	}
	src, _ := netip.AddrFromSlice(h[16:20])
	dst, _ := netip.AddrFromSlice(h[20:24])
	if port := binary.BigEndian.Uint16(h[26:]); src != s.pods["client"].Addr4 || dst.String() != "10.99.0.5" || port != 80 {
		s.t.Errorf("the application was told %s to %s:%d", src, dst, port)
	}
	if tlv := string(h[28:]); tlv != "\xd0\x00"+string(rune(len(id)))+id {
		s.t.Errorf("identity is told as %q, want %s", tlv, id)
	}
}

func serviceLoadbalancing(s *scene) {
	const service = "both.mesh.svc.cluster.local"
	for _, pod := range []string{"server", "tcpserver"} {
		s.echo(pod, 7013)
	}
	plain := s.opened(s.Nodes[0], "source", "client", "tcpserver", "unknown")
	total := func(n *lab.Node, reporter string) float64 {
		return s.metric(n, "istio_tcp_connections_opened_total", label("reporter", reporter), label("destination_service", service))
	}
	hits := map[string]float64{}
	for i := range 50 {
		got, err := inside(s.pods["client"]).AskFrom(netip.MustParseAddrPort("10.99.0.6:80"))
		s.must(err)
		hits[got.Name]++
		if n := total(s.Nodes[0], "source"); i == 0 && n != 1 {
			s.t.Errorf("one request is counted %v times", n)
		}
	}
	if len(hits) != 2 || hits["server"]+hits["tcpserver"] != 50 {
		s.t.Errorf("50 requests went to %v, want both endpoints", hits)
	}
	if n := s.opened(s.Nodes[0], "source", "client", "tcpserver", "unknown") - plain; n != hits["tcpserver"] {
		s.t.Errorf("in clear, counted by the source %v times, want %v", n, hits["tcpserver"])
	}
	if source, dest := total(s.Nodes[0], "source"), total(s.Nodes[1], "destination"); source != 50 || dest != hits["server"] {
		s.t.Errorf("with the service's name, counted by the source %v times, want 50, by the destination %v times, want %v", source, dest, hits["server"])
	}
}

// doubleHBONE: the authority is the service's name in both layers, and the far end is who the client says it talked to.
func doubleHBONE(service, vip string) func(*scene) {
	return func(s *scene) {
		requests := s.gateway()
		s.echo("server", 7011)
		s.ask("client", "server", netip.MustParseAddrPort(vip+":8080"))
		authority := service + ".mesh.svc.cluster.local:8080"
		s.wantAsked(requests, authority)
		gateway := net.JoinHostPort(s.pods["gateway"].Addr4.String(), "15008")
		client, server := identityOf(s.pods["client"]), identityOf(s.pods["server"])
		s.wantLine(s.Nodes[0], `"direction":"outbound"`, `"dst.addr":"`+gateway+`"`, `"dst.hbone_addr":"`+authority+`"`, `"dst.identity":"`+server+`"`)
		s.wantLine(s.Nodes[1], `"direction":"inbound"`, `"dst.hbone_addr":"`+authority+`"`, `"src.identity":"`+client+`"`, `"src.workload":"client"`)
	}
}
