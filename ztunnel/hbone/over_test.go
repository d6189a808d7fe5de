// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"testing"
)

// newOuter is a server that passes each stream to the inner one, and says when it has ended.
func newOuter(t *testing.T, inner *Server) (*env, chan error) {
	ended := make(chan error, 8)
	e := newEnv(t, func(ctx context.Context, r *ServerStream) {
		s, err := r.Accept(nil)
		if err == nil {
			err = inner.ServeConn(ctx, s)
		}
		ended <- err
	})
	return e, ended
}

func TestConnectionOverAStreamEndsWithItsStream(t *testing.T) {
	ca := newCA(t)
	e, ended := newOuter(t, &Server{TLS: ca.server(t), Handler: echo})
	for range 2 {
		outer, _, err := e.connect(t.Context())
		must(t, err)
		s, resp, err := e.pool.ConnectOver(t.Context(), outer, ca.client(t), ConnectRequest{Authority: "svc.demo:80"})
		must(t, err)
		if resp.Status != 200 {
			t.Errorf("got %d, want 200", resp.Status)
		}
		echoesBack(t, s, 1<<20)
		must(t, <-ended)
	}
	eventually(t, func() bool { return e.pool.Stats().Conns == 1 }) // the outer one
	if n := e.pool.Stats().ConnsTotal; n != 3 {
		t.Errorf("got %d connections in all, want one outer and two inner ones", n)
	}
}

func TestConnectOverFails(t *testing.T) {
	ca := newCA(t)
	refusing := func(_ context.Context, r *ServerStream) { _ = r.Reject(401) }
	e, ended := newOuter(t, &Server{TLS: ca.server(t), Handler: refusing})
	over := func(cfg *tls.Config) error {
		outer, _, err := e.connect(t.Context())
		must(t, err)
		_, _, err = e.pool.ConnectOver(t.Context(), outer, cfg, ConnectRequest{Authority: "svc.demo:80"})
		return err
	}
	var status *StatusError
	if err := over(ca.client(t)); !errors.As(err, &status) || status.Code != 401 {
		t.Errorf("got %v, want 401", err)
	}
	<-ended
	if err := over(newCA(t).client(t)); !errors.Is(err, ErrTLS) {
		t.Errorf("another authority: got %v, want a TLS error", err)
	}
	if err := <-ended; !errors.Is(err, ErrTLS) {
		t.Errorf("the inner server got %v, want a TLS error", err)
	}
	eventually(t, func() bool { return e.pool.Stats().Streams == 0 })
	outer, _, err := e.connect(t.Context())
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = e.pool.Close(ctx)
	if _, _, err := e.pool.ConnectOver(t.Context(), outer, ca.client(t), ConnectRequest{Authority: "a:1"}); !errors.Is(err, ErrPoolClosed) {
		t.Errorf("closed pool: got %v, want %v", err, ErrPoolClosed)
	}
}

func TestClosingThePoolCutsConnectionsOverStreams(t *testing.T) {
	ca := newCA(t)
	e, _ := newOuter(t, &Server{TLS: ca.server(t), Handler: echo})
	outer, _, err := e.connect(t.Context())
	must(t, err)
	s, _, err := e.pool.ConnectOver(t.Context(), outer, ca.client(t), ConnectRequest{Authority: "svc.demo:80"})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = e.pool.Close(ctx)
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("the stream outlives its pool")
	}
	_ = s.Close()
}

func TestCutReachesConnectionsOverStreams(t *testing.T) {
	ca := newCA(t)
	e, _ := newOuter(t, &Server{TLS: ca.server(t), Handler: echo})
	outer, _, err := e.connect(t.Context())
	must(t, err)
	s, _, err := e.pool.ConnectOver(t.Context(), outer, ca.client(t), ConnectRequest{Authority: "svc.demo:80"})
	must(t, err)
	far, why := s.ConnState().PeerCertificates[0], errors.New("cut")
	e.pool.Cut(func(state tls.ConnectionState) error {
		if state.PeerCertificates[0].Equal(far) {
			return why
		}
		return nil
	})
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
	_ = s.Close()
	eventually(t, func() bool { return e.pool.Stats().Conns == 1 })
}
