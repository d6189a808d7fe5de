// SPDX-License-Identifier: Apache-2.0

//lint:file-ignore SA1019 these tests want x/net's HTTP/2 as it is, without net/http around it

package hbone

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"testing"

	"golang.org/x/net/http2"
)

// TestInteropGoServer is our client against Go's HTTP/2 server, which has windows and frame sizes of its own.
func TestInteropGoServer(t *testing.T) {
	e := newEnv(t, echo)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", tlsConfig(e.ca.server(t)))
	must(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	wg.Add(1)
	go func() {
		defer wg.Done()
		serveGo(ln, &wg)
	}()
	e.key.Addr = netip.MustParseAddrPort(ln.Addr().String())
	t.Cleanup(func() { closePool(t, e.pool) })
	s, resp, err := e.connect(t.Context(), Header{"baggage", "a=b"})
	must(t, err)
	if got := resp.Header("authority-was"); got != "10.0.0.1:80" {
		t.Errorf("authority: got %q, want 10.0.0.1:80", got)
	}
	echoesBack(t, s, 8<<20)
	t.Run("half close", func(t *testing.T) {
		s := e.mustConnect(t)
		_, err := s.Write([]byte("all"))
		must(t, err)
		must(t, s.CloseWrite())
		got, err := io.ReadAll(s)
		if err != nil || string(got) != "all" {
			t.Errorf("got %q, %v, want all", got, err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		_, _, err := e.connect(t.Context(), Header{"refuse", "1"})
		if se, ok := err.(*StatusError); !ok || se.Code != 401 {
			t.Errorf("got %v, want status 401", err)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 50 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				s, _, err := e.connect(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				echoesBack(t, s, 100_000)
			}()
		}
		wg.Wait()
	})
}

func serveGo(ln net.Listener, wg *sync.WaitGroup) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			if conn.(*tls.Conn).Handshake() == nil {
				new(http2.Server).ServeConn(conn, &http2.ServeConnOpts{Handler: http.HandlerFunc(goEcho)})
			}
			_ = conn.Close()
		}()
	}
}

// goEcho is a CONNECT handler as one writes it for Go's server.
func goEcho(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect || r.Header.Get("refuse") != "" {
		w.WriteHeader(401)
		return
	}
	w.Header().Set("authority-was", r.Host)
	w.WriteHeader(200)
	flush := w.(http.Flusher)
	flush.Flush()
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			_, _ = w.Write(buf[:n])
			flush.Flush()
		}
		if err != nil {
			return
		}
	}
}

func echoesBack(t *testing.T, s *Stream, size int64) {
	t.Helper()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = s.ReadFrom(source64(size, 5))
		_ = s.CloseWrite()
	}()
	if got, want := digest(t, s), digest(t, source64(size, 5)); got != want {
		t.Error("digests differ")
	}
	<-sent
	_ = s.Close()
}

// TestInteropGoClient is Go's HTTP/2 transport against our server.
func TestInteropGoClient(t *testing.T) {
	e := newEnv(t, func(ctx context.Context, r *ServerStream) {
		if r.Header("refuse") != "" {
			_ = r.Reject(503)
			return
		}
		if r.Authority() != "10.0.0.1:80" {
			t.Errorf("authority: got %q, want 10.0.0.1:80", r.Authority())
		}
		echo(ctx, r)
	})
	tr := &http2.Transport{DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
		conn, err := e.dial(ctx)
		if err != nil {
			return nil, err
		}
		tc := tls.Client(conn, tlsConfig(e.clientTLS))
		return tc, tc.HandshakeContext(ctx)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	connect := func(body io.Reader, header http.Header) (*http.Response, error) {
		return tr.RoundTrip((&http.Request{
			Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: e.key.Addr.String()}, Host: "10.0.0.1:80",
			Header: header, Body: io.NopCloser(body), ContentLength: -1,
		}).WithContext(t.Context()))
	}
	t.Run("bulk", func(t *testing.T) {
		resp, err := connect(source64(8<<20, 5), http.Header{})
		must(t, err)
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Fatalf("status %d, want 200", resp.StatusCode)
		}
		if got, want := digest(t, resp.Body), digest(t, source64(8<<20, 5)); got != want {
			t.Error("digests differ")
		}
	})
	t.Run("duplex", func(t *testing.T) {
		r, w := io.Pipe()
		resp, err := connect(r, http.Header{})
		must(t, err)
		defer resp.Body.Close()
		for _, word := range []string{"one", "two", "three"} {
			_, err := io.WriteString(w, word)
			must(t, err)
			got := make([]byte, len(word))
			_, err = io.ReadFull(resp.Body, got)
			if err != nil || string(got) != word {
				t.Fatalf("got %q, %v, want %s", got, err, word)
			}
		}
		_ = w.Close()
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Errorf("end: %v", err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		resp, err := connect(new(neverReader), http.Header{"Refuse": {"1"}})
		must(t, err)
		defer resp.Body.Close()
		if resp.StatusCode != 503 {
			t.Errorf("status %d, want 503", resp.StatusCode)
		}
	})
	t.Run("shutdown", func(t *testing.T) {
		go func() { _ = e.srv.Shutdown(context.Background()) }()
		must(t, e.srv.waitServeErr(t))
	})
}

// neverReader is a request body that ends at once.
type neverReader struct{}

func (*neverReader) Read([]byte) (int, error) { return 0, io.EOF }
