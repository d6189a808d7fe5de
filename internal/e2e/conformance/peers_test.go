// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

const hbonePort = 15008

// identityOf is the name of a pod's service account.
func identityOf(p *lab.Pod) string {
	return "spiffe://cluster.local/ns/" + p.Namespace + "/sa/" + p.Name
}

// tlsOf is a peer that asks for a certificate and believes any.
func (s *scene) tlsOf(id string) *tls.Config {
	s.t.Helper()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true,
		VerifyConnection: func(tls.ConnectionState) error { return nil },
		Certificates:     []tls.Certificate{s.ca.Issue(s.t, id)},
	}
}

// serveHBONE plays a peer in a pod outside the mesh: whatever is asked of it goes to handle. It ends with the test.
func (s *scene) serveHBONE(pod string, handle func(context.Context, *hbone.ServerStream)) {
	s.t.Helper()
	p := s.pods[pod]
	server := &hbone.Server{TLS: s.tlsOf(identityOf(p)), Handler: handle}
	l := inside(p).Listen(s.t, "tcp", fmt.Sprintf("[::]:%d", hbonePort))
	ctx := s.t.Context()
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { _ = server.ServeConn(ctx, conn) })
		}
	})
	s.t.Cleanup(func() { // else the next test's requests come to this one's connections
		_ = l.Close()
		serving.Wait()
	})
}

// asked is a request that a peer got.
type asked struct {
	authority, client, network string
}

func requestOf(r *hbone.ServerStream) asked {
	var client string
	if state := r.ConnState(); len(state.PeerCertificates) > 0 && len(state.PeerCertificates[0].URIs) > 0 {
		client = state.PeerCertificates[0].URIs[0].String()
	}
	return asked{r.Authority(), client, r.Header("x-forwarded-network")}
}

// waypoint answers, in place of what is behind it, as an echo server does.
func (s *scene) waypoint() <-chan asked {
	s.t.Helper()
	requests := make(chan asked, 16)
	s.serveHBONE("waypoint", func(_ context.Context, r *hbone.ServerStream) {
		requests <- requestOf(r)
		stream, err := r.Accept(nil)
		if err != nil {
			return
		}
		_, _ = fmt.Fprintf(stream, "waypoint %s\n", r.RemoteAddr())
		_, _ = io.Copy(stream, stream)
		_ = stream.CloseWrite()
	})
	return requests
}

// gateway ends the outer layer, and passes what is inside on to the server's ztunnel.
func (s *scene) gateway() <-chan asked {
	s.t.Helper()
	requests := make(chan asked, 16)
	p, to := s.pods["gateway"], netip.AddrPortFrom(s.pods["server"].Addr4, hbonePort)
	s.serveHBONE("gateway", func(ctx context.Context, r *hbone.ServerStream) {
		requests <- requestOf(r)
		conn, err := inside(p).Dial(ctx, "tcp", to.String())
		if err != nil {
			_ = r.Reject(503)
			return
		}
		defer conn.Close()
		stream, err := r.Accept(nil)
		if err != nil {
			return
		}
		_ = hbone.Splice(conn.(*net.TCPConn), stream, nil, nil)
	})
	return requests
}

// connect sends a CONNECT of the test's own from a pod outside the mesh, with a certificate for id.
func (s *scene) connect(from, to, id, authority string) (*hbone.Stream, error) {
	s.t.Helper()
	pool := hbone.NewPool(hbone.PoolConfig{})
	s.t.Cleanup(func() { pool.CloseIdle() })
	at := netip.AddrPortFrom(s.pods[to].Addr4, hbonePort)
	dial := func(ctx context.Context) (net.Conn, error) {
		return inside(s.pods[from]).Dial(ctx, "tcp", at.String())
	}
	stream, _, err := pool.Connect(short(s.t), hbone.Key{Addr: at, Source: id}, dial, s.tlsOf(id), hbone.ConnectRequest{Authority: authority})
	if err == nil {
		s.t.Cleanup(func() { _ = stream.Close() })
	}
	return stream, err
}
