// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// serialOf is the serial number of the certificate that a node's ztunnel has for an identity, nil for none.
func (s *scene) serialOf(node int, id string) *big.Int {
	s.t.Helper()
	text, err := s.Get(s.Nodes[node].NS, "http://127.0.0.1:15000/config_dump")
	s.must(err)
	var dump struct {
		Certificates []struct {
			Identity  string
			CertChain []struct{ SerialNumber string }
		}
	}
	s.must(json.Unmarshal([]byte(text), &dump))
	for _, c := range dump.Certificates {
		if c.Identity != id || len(c.CertChain) == 0 {
			continue
		}
		if serial, ok := new(big.Int).SetString(c.CertChain[0].SerialNumber, 10); ok {
			return serial
		}
		s.t.Fatalf("serial number %q", c.CertChain[0].SerialNumber)
	}
	return nil
}

// prefetchForgetCerts: two pods with one identity, of which none ever has a connection.
func prefetchForgetCerts(s *scene) {
	const id = "spiffe://cluster.local/ns/mesh/sa/visitor"
	node := s.Nodes[1]
	holds := func(what string, want bool) {
		s.t.Helper()
		testutil.Eventually(s.t, effect, func() error {
			if got := s.serialOf(1, id) != nil; got != want {
				return fmt.Errorf("%s: certificate there: %v, want %v", what, got, want)
			}
			return nil
		})
	}
	holds("before", false)
	s.must(s.Write("visitor.yaml", podManifest("visitor", "ambient")))
	p, err := node.AddPod(lab.PodSpec{Name: "visitor", Namespace: "mesh"})
	s.must(err)
	holds("pod added", true)
	s.must(node.DelPod(p))
	s.must(s.Remove("visitor.yaml"))
	holds("pod deleted", false)
}

// crlInbound and crlOutbound: the peer's certificate is revoked, in the eyes of the one node alone.
func crlInbound(s *scene) {
	s.revoked(1, 7030, s.serialOf(0, identityOf(s.pods["client"])), "destination", "inbound")
}

func crlOutbound(s *scene) {
	s.revoked(0, 7031, s.serialOf(1, identityOf(s.pods["server"])), "source", "outbound")
}

// revoked: an open connection is cut, new ones are refused, those of other peers go on.
func (s *scene) revoked(node int, port uint16, serial *big.Int, reporter, direction string) {
	s.t.Helper()
	if serial == nil {
		s.t.Fatal("no certificate to revoke")
	}
	defer s.revoke(node)
	s.echo("server", port)
	s.echo("near", port)
	to, other := s.at("server", 4, port), [2]string{"client", "near"}
	if node == 1 {
		other = [2]string{"near", "server"}
	}
	held := s.open("client", to)
	unrelated := s.open(other[0], s.at(other[1], 4, port))
	n := s.Nodes[node]
	flagged := func() float64 {
		return s.metric(n, "istio_tcp_connections_failed_total", label("reporter", reporter), label("response_flags", "CERT_REVOKED"))
	}
	rejections, failures := s.metric(n, "istio_crl_policy_rejections_total", label("reporter", reporter)), flagged()
	s.revoke(node, serial)
	s.must(ends(held))
	s.must(testutil.Ping(unrelated))
	s.wantLine(n, `"direction":"`+direction+`"`, `"verdict":"refused-revoked"`, "was revoked at", "connection complete")
	if r, f := s.metric(n, "istio_crl_policy_rejections_total", label("reporter", reporter))-rejections, flagged()-failures; r != 1 || f != 1 {
		s.t.Errorf("counted %v rejections and %v failures as CERT_REVOKED, want 1 each", r, f)
	}
	if _, err := inside(s.pods["client"]).AskFrom(to); err == nil {
		s.t.Error("a new connection is carried")
	}
	s.wantLine(n, `"direction":"`+direction+`"`, `"verdict":"refused-revoked"`, "tls handshake", "was revoked at")
	s.revoke(node)
	testutil.Eventually(s.t, effect, func() error {
		_, err := inside(s.pods["client"]).AskFrom(to)
		return err
	})
}

// ends waits until the other end has cut a connection.
func ends(c net.Conn) error {
	return lab.Poll(effect, func() error {
		if testutil.Ping(c) == nil {
			return errors.New("the open connection goes on")
		}
		return nil
	})
}
