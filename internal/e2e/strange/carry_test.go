// SPDX-License-Identifier: Apache-2.0

package strange

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// logged bounds how long a connection's line in the access log may take once it has ended.
const logged = 5 * time.Second

// blockBytes go each way in every transfer.
const blockBytes = 1<<20 + 7

// serve says who it is, as testutil's Echo, and echoes.
func serve(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
			if _, err := io.Copy(c, c); err == nil {
				_ = c.(interface{ CloseWrite() error }).CloseWrite()
			}
		}()
	}
}

// echo serves on an address of the pod.
func (s *strange) echo(t *testing.T, addr string) {
	t.Helper()
	s.serve(t, s.Listen(t, "tcp", addr))
}

func (s *strange) serve(t *testing.T, l net.Listener) {
	go serve(l, s.Pod.Name)
	t.Cleanup(func() { _ = l.Close() })
}

// transfer sends random bytes through an echo server and wants the same back, then an end on both sides. It writes before
// it reads: some ways to connect do so with the first bytes.
func transfer(c net.Conn) (from netip.Addr, name string, err error) {
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(effect))
	block := make([]byte, blockBytes)
	_, _ = rand.Read(block)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(block)
		if err == nil {
			err = c.(interface{ CloseWrite() error }).CloseWrite()
		}
		sent <- err
	}()
	r := bufio.NewReader(c)
	if name, from, err = greeting(r); err != nil {
		return from, name, err
	}
	got, err := io.ReadAll(r)
	if serr := <-sent; serr != nil {
		return from, name, fmt.Errorf("write: %w", serr)
	}
	if err != nil {
		return from, name, fmt.Errorf("after %d of %d bytes: %w", len(got), len(block), err)
	}
	if !bytes.Equal(got, block) {
		return from, name, fmt.Errorf("the echo of %d bytes has %d, or differs", len(block), len(got))
	}
	return from, name, nil
}

// greeting is who the server is, and from where it saw the client.
func greeting(r *bufio.Reader) (name string, from netip.Addr, err error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", from, fmt.Errorf("read greeting: %w", err)
	}
	name, client, _ := strings.Cut(strings.TrimSpace(line), " ")
	peer, err := netip.ParseAddrPort(client)
	return name, peer.Addr().Unmap(), err
}

// dialer connects in a way of its own.
type dialer func(ctx context.Context, to netip.AddrPort) (net.Conn, error)

// plain connects as most programs do.
func plain(from *testutil.NS) dialer {
	return func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		return from.Dial(ctx, "tcp", to.String())
	}
}

// carry dials, transfers, and checks who answered and, where source is valid, from which address it saw the client.
func carry(dial dialer, to netip.AddrPort, name string, source netip.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), effect)
	defer cancel()
	c, err := dial(ctx, to)
	if err != nil {
		return err
	}
	from, who, err := transfer(c)
	if err != nil {
		return err
	}
	if who != name || source.IsValid() && from != source {
		return fmt.Errorf("%s answered and saw %v, want %s to see %v", who, from, name, source)
	}
	return nil
}

// viaMTLS runs f, which has a pod of the mesh connect to to on a node, and wants that node's ztunnel to have seen the
// pod's identity.
func (s *strange) viaMTLS(what string, client string, node *lab.Node, to netip.AddrPort, f func() error) {
	s.t.Helper()
	parts := []string{
		`"connection complete"`, `"direction":"inbound"`, `"dst.hbone_addr":"` + to.String() + `"`,
		`"src.identity":"spiffe://cluster.local/ns/mesh/sa/` + client + `"`, `"verdict":"mtls"`,
	}
	before := len(s.w.lines(node, parts...))
	if err := f(); err != nil {
		s.t.Errorf("%s to %v: %v", what, to, err)
		return
	}
	err := lab.Poll(logged, func() error {
		if len(s.w.lines(node, parts...)) > before {
			return nil
		}
		return fmt.Errorf("no new line with %q in the log of %s", parts, node.Name)
	})
	if err != nil {
		s.t.Errorf("%s to %v: %v", what, to, err)
	}
}

// outbound has the pod reach the ordinary peer over both families, captured and in mTLS.
func (s *strange) outbound(what string, dial dialer) {
	s.t.Helper()
	for _, family := range s.families() {
		before := s.count(bpf.VerdictCaptured)
		s.viaMTLS(what, s.Pod.Name, s.w.Nodes[1], at(s.w.peer, family), func() error {
			return carry(dial, at(s.w.peer, family), "peer", netip.Addr{})
		})
		if s.count(bpf.VerdictCaptured) == before {
			s.t.Errorf("%s over IPv%d: nothing was captured", what, family)
		}
	}
}

// inbound has the ordinary peer reach the pod in mTLS on a port, and then somebody outside the mesh in clear. The app
// sees the client's own address.
func (s *strange) inbound(what string, port uint16) {
	s.t.Helper()
	for _, family := range s.families() {
		to := netip.AddrPortFrom(s.Addr(family), port)
		s.viaMTLS(what, "peer", s.w.Nodes[0], to, func() error {
			return carry(plain(inside(s.w.peer)), to, s.Pod.Name, s.w.peer.Addr(family))
		})
		if err := carry(plain(inside(s.w.legacy)), to, s.Pod.Name, s.w.legacy.Addr(family)); err != nil {
			s.t.Errorf("%s: in clear to %v: %v", what, to, err)
		}
	}
}

// passthrough has the pod reach what is not in the mesh.
func (s *strange) passthrough(what string, dial dialer) {
	s.t.Helper()
	for _, family := range s.families() {
		outside := map[int]netip.Addr{4: lab.OutsideAddr4, 6: lab.OutsideAddr6}[family]
		if err := carry(dial, netip.AddrPortFrom(outside, echoPort), "outside", netip.Addr{}); err != nil {
			s.t.Errorf("%s: to the host outside over IPv%d: %v", what, family, err)
		}
		if err := carry(dial, at(s.w.legacy, family), "legacy", netip.Addr{}); err != nil {
			s.t.Errorf("%s: to the pod outside the mesh over IPv%d: %v", what, family, err)
		}
	}
}

// everyWay is all that an ordinary pod can do.
func (s *strange) everyWay(what string) {
	s.t.Helper()
	s.outbound(what, plain(s.NS))
	s.passthrough(what, plain(s.NS))
	s.inbound(what, echoPort)
}

func (s *strange) families() []int {
	if s.w.IPv6Only {
		return []int{6}
	}
	return []int{4, 6}
}
