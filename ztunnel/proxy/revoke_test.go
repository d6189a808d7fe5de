// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
)

// revocable is a world with one more pod, on another node's ztunnel, which alone follows a list of revoked certificates.
type revocable struct {
	*world
	before  *testProxy // of client and server; it follows no list
	guarded *enrolled
	crl     *identity.CRL
	path    string
}

func newRevocable(t *testing.T) *revocable {
	w := newWorld(t)
	r := &revocable{world: w, before: w.proxy, path: filepath.Join(t.TempDir(), "ca-crl.pem")}
	r.revoke()
	crl, err := identity.OpenCRL(r.path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r.crl = crl
	w.proxy = w.newProxy(crl)
	r.guarded = w.enrol("guarded")
	w.capture(r.guarded.Addr4)
	return r
}

// revoke writes a list of exactly the present certificates of some pods.
func (r *revocable) revoke(pods ...*enrolled) {
	r.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, p := range pods {
		b, err := r.before.certs.Get(r.t.Context(), p.workload.Identity())
		if err != nil {
			r.t.Fatal(err)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: b.Cert.Leaf.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, r.ca.Cert, r.ca.Key)
	if err != nil {
		r.t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	if err := os.WriteFile(r.path, text, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *revocable) reload() {
	r.t.Helper()
	if err := r.crl.Reload(); err != nil {
		r.t.Fatal(err)
	}
}

// TestCRL: the scenarios crl_* of ambient section 11.1, by their names.
func TestCRL(t *testing.T) {
	r := newRevocable(t)
	at := func(e *enrolled) netip.AddrPort {
		return e.Echo(t, e.Name, netip.AddrPortFrom(e.Addr4, 8080).String()).Addr
	}
	guarded, server := at(r.guarded), at(r.server)
	for _, tc := range []struct {
		name      string // of the direction
		from      *enrolled
		to        netip.AddrPort
		peer      *enrolled
		reporter  string
		unrelated func() net.Conn
	}{
		{"inbound", r.client, guarded, r.client, "destination", func() net.Conn { return r.open(r.guarded.Pod, server) }},
		{"outbound", r.guarded, server, r.server, "source", func() net.Conn { return r.open(r.client.Pod, guarded) }},
	} {
		direction := `direction="` + tc.name + `"`
		rejections := func() float64 {
			return r.proxy.metric("istio_crl_policy_rejections_total", `reporter="`+tc.reporter+`"`)
		}
		flagged := func() float64 {
			return r.proxy.metric("istio_tcp_connections_failed_total", `reporter="`+tc.reporter+`"`, `response_flags="CERT_REVOKED"`)
		}
		t.Run("crl_"+tc.name+"_terminates_existing", func(t *testing.T) {
			live, other := r.open(tc.from.Pod, tc.to), tc.unrelated()
			r.revoke(tc.peer)
			r.reload()
			wantReset(t, live)
			if err := testutil.Ping(other); err != nil {
				t.Errorf("connection with a peer that is not revoked: %v", err)
			}
			_ = other.Close()
			r.wantLine("connection complete", direction, `verdict="refused-revoked"`, "was revoked at")
			if rejections() != 1 || flagged() != 1 {
				t.Errorf("counted %v rejections and %v failures as CERT_REVOKED, want 1 each", rejections(), flagged())
			}
		})
		t.Run("crl_"+tc.name+"_rejects_revoked_cert", func(t *testing.T) {
			before := rejections()
			r.mustFail(tc.from.Pod, tc.to)
			r.wantLine(direction, `verdict="refused-revoked"`, "tls handshake", "was revoked at")
			if rejections() == before {
				t.Error("the refusal is not counted")
			}
		})
		t.Run("crl_"+tc.name+"_accepts_again", func(t *testing.T) {
			r.revoke()
			r.reload()
			r.open(tc.from.Pod, tc.to)
		})
	}
}

// TestRevocationCutsIdleConnections: those without streams are gone too, on both sides.
func TestRevocationCutsIdleConnections(t *testing.T) {
	r := newRevocable(t)
	out := r.server.Echo(t, "server", netip.AddrPortFrom(r.server.Addr4, 8080).String())
	in := r.guarded.Echo(t, "guarded", netip.AddrPortFrom(r.guarded.Addr4, 8080).String())
	for _, conn := range []net.Conn{r.open(r.guarded.Pod, out.Addr), r.open(r.client.Pod, in.Addr)} {
		_ = conn.Close()
	}
	pp := r.guarded.served.(*podProxy)
	idle := func(streams, conns int64) error {
		out, in := pp.pool.Stats(), pp.server.Stats()
		if out.Streams+in.Streams != streams || out.Conns != conns || in.Conns != conns {
			return fmt.Errorf("pool %+v, server %+v, want %d connections each", out, in, conns)
		}
		return nil
	}
	testutil.Eventually(t, 20*time.Second, func() error { return idle(0, 1) })
	r.revoke(r.client, r.server)
	r.reload()
	testutil.Eventually(t, 20*time.Second, func() error { return idle(0, 0) })
}

// TestRevocationDuringTheHandshakeIsNotMissed: a connection that is in nobody's list yet when the lists change is refused
// with its first stream. The change is made invisible to what cuts, as if it came too early for it.
func TestRevocationDuringTheHandshakeIsNotMissed(t *testing.T) {
	r := newRevocable(t)
	pp := r.guarded.served.(*podProxy)
	pp.stopRevocations()
	out := r.server.Echo(t, "server", netip.AddrPortFrom(r.server.Addr4, 8080).String())
	in := r.guarded.Echo(t, "guarded", netip.AddrPortFrom(r.guarded.Addr4, 8080).String())
	r.open(r.guarded.Pod, out.Addr)
	r.open(r.client.Pod, in.Addr)
	r.revoke(r.client, r.server)
	r.reload()
	r.mustFail(r.guarded.Pod, out.Addr)
	r.mustFail(r.client.Pod, in.Addr)
	for _, direction := range []string{"inbound", "outbound"} {
		r.wantLine("connection complete", `direction="`+direction+`"`, `verdict="refused-revoked"`)
	}
}

// A connection that was missed when a list changed, since its handshake was under way, is not kept for further streams: the
// peer's next certificate gets through.
func TestConnectionThatTheCutMissedIsNotKept(t *testing.T) {
	r := newRevocable(t)
	at := func(e *enrolled) netip.AddrPort {
		return e.Echo(t, e.Name, netip.AddrPortFrom(e.Addr4, 8080).String()).Addr
	}
	guarded, server := at(r.guarded), at(r.server)
	renew := func(e *enrolled) {
		r.before.certs.Release(e.workload.Identity())
		testutil.Eventually(t, 10*time.Second, func() error {
			b, err := r.before.certs.Get(t.Context(), e.workload.Identity())
			if err == nil {
				err = r.crl.Check([]*x509.Certificate{b.Cert.Leaf})
			}
			return err
		})
	}
	r.guarded.served.(*podProxy).stopRevocations() // as good as to have missed it
	for _, tc := range []struct {
		name string
		from *enrolled
		to   netip.AddrPort
		peer *enrolled
	}{
		{"outbound", r.guarded, server, r.server},
		{"inbound", r.client, guarded, r.client},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_ = r.open(tc.from.Pod, tc.to).Close()
			r.revoke(tc.peer)
			r.reload()
			r.mustFail(tc.from.Pod, tc.to)
			renew(tc.peer)
			_ = r.open(tc.from.Pod, tc.to).Close()
		})
	}
}
