// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"syscall"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

func policy(s *scene) {
	s.echo("walled", 7020)
	authority := s.at("walled", 4, 7020).String()
	_, err := s.connect("plain", "walled", identityOf(s.pods["client"]), authority)
	s.wantStatus(err, 401)
	s.wantLine(s.Nodes[1], `"direction":"inbound"`, authority, `"verdict":"refused-policy"`, "allow policies exist, but none allowed")
	stream, err := s.connect("plain", "walled", "spiffe://cluster.local/ns/mesh/sa/somebody-else", authority)
	s.wantGreeting(stream, err, "walled")
}

func ipMismatch(s *scene) {
	authority := s.at("sandwich", 4, 80).String()
	_, err := s.connect("plain", "server", identityOf(s.pods["client"]), authority)
	s.wantStatus(err, 400)
	s.wantLine(s.Nodes[1], `"direction":"inbound"`, `"dst.hbone_addr":"`+authority+`"`, "ip mismatch")
}

// serviceHostname: the authority is a service's name, and port is what the pod itself has behind port 80 of it.
func serviceHostname(service string, port uint16) func(*scene) {
	return func(s *scene) {
		s.echo("server", port)
		stream, err := s.connect("plain", "server", identityOf(s.pods["client"]), service+".mesh.svc.cluster.local:80")
		s.wantGreeting(stream, err, "server")
		_, err = s.connect("plain", "server", identityOf(s.pods["client"]), service+".mesh.svc.cluster.local:81")
		s.wantStatus(err, 503)
	}
}

func (s *scene) wantStatus(err error, code int) {
	s.t.Helper()
	var status *hbone.StatusError
	if !errors.As(err, &status) || status.Code != code {
		s.t.Errorf("got %v, want status %d", err, code)
	}
}

// wantGreeting wants an echo server at the other end of a tunnel.
func (s *scene) wantGreeting(stream *hbone.Stream, err error, name string) {
	s.t.Helper()
	s.must(err)
	got := make([]byte, len(name)+1)
	if _, err := io.ReadFull(stream, got); err != nil || string(got) != name+" " {
		s.t.Errorf("got %q, %v, want a greeting of %s", got, err, name)
	}
}

// knocked is what becomes of a connection that sends "GET /nothing".
type knocked string

const (
	refused  knocked = "refused"             // by the host: nobody listens
	closed   knocked = "accepted and closed" // without an answer
	answered knocked = "answered"
)

func (s *scene) knock(from string, to netip.AddrPort) knocked {
	s.t.Helper()
	c, err := inside(s.pods[from]).Dial(short(s.t), "tcp", to.String())
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	case errors.Is(err, syscall.ECONNRESET):
		return closed // before connect() came back
	}
	s.must(err)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(effect))
	_, _ = io.WriteString(c, "GET /nothing HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(c)
	switch {
	case len(answer) > 5 && string(answer[:5]) == "HTTP/":
		return answered
	case errors.Is(err, syscall.ETIMEDOUT), c.SetDeadline(time.Time{}) != nil:
		s.t.Errorf("%s to %s: %v", from, to, err)
	}
	return closed
}

// wantReset wants a connection to be accepted and then reset, which may be before connect() comes back.
func (s *scene) wantReset(from string, to netip.AddrPort) {
	s.t.Helper()
	c, err := inside(s.pods[from]).Dial(short(s.t), "tcp", to.String())
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(effect))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		s.t.Errorf("%s to %s: got %v, want a reset", from, to, err)
	}
}

// maliciousCalls: none of ztunnel's sockets are at a port of the pod's, so there is nothing to call at its own addresses.
func maliciousCalls(s *scene) {
	ports := []uint16{15000, 15001, 15006, 15008, 15020, 15021, 15053, 15080}
	own, loopback := s.pods["client"].Addr4, netip.MustParseAddr("127.0.0.1")
	// The other node's ztunnel is in the mesh, of which a peer may reach the pages; its own node's is the same.
	page := map[uint16]knocked{15020: answered, 15021: answered}
	for _, port := range ports {
		ztunnel := closed
		if page[port] != "" {
			ztunnel = page[port]
		}
		tunnelled := closed
		outsider := refused
		switch port {
		case hbonePort:
			outsider = closed
		case 15020, 15021:
			outsider = answered
		}
		for _, tc := range []struct {
			from, to string
			addr     netip.Addr
			want     knocked
		}{
			{"client", "itself", own, refused},
			{"client", "localhost", loopback, refused},
			{"client", "its ztunnel", s.Nodes[0].Wire4, ztunnel},
			{"client", "another ztunnel", s.Nodes[1].Wire4, ztunnel},
			{"client", "another pod", s.pods["near"].Addr4, tunnelled},
			{"plain", "a captured pod", own, closed},
			{"plain", "a ztunnel", s.Nodes[0].Wire4, outsider},
		} {
			if got := s.knock(tc.from, netip.AddrPortFrom(tc.addr, port)); got != tc.want {
				s.t.Errorf("%s to %s, port %d: %s, want %s", tc.from, tc.to, port, got, tc.want)
			}
		}
	}
	s.echo("server", 7022)
	s.ask("client", "server", s.at("server", 4, 7022))
}

func metricsAccess(s *scene) {
	for _, n := range s.Nodes {
		page, err := s.Get(s.pods["client"].NS, fmt.Sprintf("http://%s:15020/metrics", n.Wire4))
		s.must(err)
		if len(page) == 0 {
			s.t.Errorf("%s: empty page", n.Name)
		}
		s.wantLine(n, `"direction":"inbound"`, `"verdict":"mtls"`, fmt.Sprintf(`"dst.hbone_addr":"%s:15020"`, n.Wire4),
			`"src.identity":"`+identityOf(s.pods["client"]), `"dst.identity":"spiffe://cluster.local/ns/sluice-system/sa/ztunnel"`)
		s.knock("client", netip.AddrPortFrom(n.Wire4, 15000))
		s.wantLine(n, `"direction":"inbound"`, `"verdict":"refused-reserved-port"`, "port 15000 of ztunnel's own pod is not for peers")
	}
}

// trustDomainMismatch: the client's certificate is good, and of another trust domain.
func trustDomainMismatch(s *scene) {
	s.echo("server", 7023)
	s.wantReset("client", s.at("server", 4, 7023))
	s.wantLine(s.Nodes[1], `"direction":"inbound"`, `"verdict":"refused-tls"`, "elsewhere.example")
	s.ask("sandwich", "server", s.at("server", 4, 7023)) // which is in the domain
}

// serverShutdown: the server leaves the mesh, and its application stays; the client's side still knows it as a member.
func serverShutdown(s *scene) {
	s.echo("leaver", 7024)
	to := s.at("leaver", 4, 7024)
	testutil.Eventually(s.t, effect, func() error { // it may have left before, and be on its way back
		_, err := inside(s.pods["client"]).AskFrom(to)
		return err
	})
	held := s.open("client", to)
	s.t.Cleanup(func() { s.must(s.Write("leaver.yaml", podManifest("leaver", "ambient"))) })
	s.must(s.Write("leaver.yaml", podManifest("leaver", "none")))
	s.must(ends(held))
	s.wantReset("client", to) // by its own ztunnel, to which it is connected
	s.wantLine(s.Nodes[0], `"direction":"outbound"`, `"verdict":"refused-connect"`, ":7024")
}

// ztunnelShutdown: what is open goes on until it ends; what comes then waits for the next ztunnel, on sockets of the
// agent's.
func ztunnelShutdown(s *scene) {
	s.echo("server", 7025)
	node, to := s.Nodes[0], s.at("server", 4, 7025)
	held := s.open("client", to)
	s.must(node.Ztunnel.Signal(syscall.SIGTERM))
	s.wantLine(node, "draining", `"limit"`)
	for range 3 {
		s.must(testutil.Ping(held))
	}
	if !node.Ztunnel.Alive() {
		s.t.Error("ztunnel ended under an open connection")
	}
	s.must(held.Close())
	s.must(node.Ztunnel.Wait(effect))
	waiting, err := inside(s.pods["client"]).Dial(short(s.t), "tcp", to.String())
	s.must(err)
	defer waiting.Close()
	s.must(node.RestartZtunnel(s.flags(onOneNetwork, 0)...))
	if _, err := testutil.Ask(waiting); err != nil {
		s.t.Errorf("the connection that waited: %v", err)
	}
	s.must(node.WaitReady())
}
