// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

const (
	clientID = `"spiffe://cluster.local/ns/default/sa/client"`
	serverID = `"spiffe://cluster.local/ns/default/sa/server"`
)

func TestCapturedToCapturedIsMTLSAndShowsTheClientsAddress(t *testing.T) {
	w := newWorld(t)
	for _, family := range []string{"4", "6"} {
		echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr(family), 8080).String())
		answer, err := w.client.AskFrom(echo.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if answer.Name != "server" || answer.From.Addr() != w.client.Addr(family) {
			t.Errorf("IPv%s: got %+v, want server seeing %s", family, answer, w.client.Addr(family))
		}
	}
	out := w.wantLine("connection complete", `direction="outbound"`, `verdict="mtls"`, "src.identity="+clientID, "dst.identity="+serverID)
	in := w.wantLine("connection complete", `direction="inbound"`, `verdict="mtls"`, "src.identity="+clientID, "dst.identity="+serverID)
	t.Logf("%s\n%s", out, in)
	for _, reporter := range []string{"source", "destination"} {
		labels := []string{`reporter="` + reporter + `"`, `connection_security_policy="mutual_tls"`, `destination_workload="server"`, `source_principal=` + clientID}
		testutil.Eventually(t, 20*time.Second, func() error {
			if opened, closed := w.proxy.metric("istio_tcp_connections_opened_total", labels...), w.proxy.metric("istio_tcp_connections_closed_total", labels...); opened != 2 || closed != 2 {
				return fmt.Errorf("%s: opened %v, closed %v, want 2 and 2", reporter, opened, closed)
			}
			return nil
		})
	}
	sent, received := w.proxy.metric("istio_tcp_sent_bytes_total", `reporter="source"`), w.proxy.metric("istio_tcp_sent_bytes_total", `reporter="destination"`)
	if sent == 0 || sent != received {
		t.Errorf("bytes back to the client: %v by the source, %v by the destination, want the same", sent, received)
	}
}

func TestServiceReachesItsEndpoint(t *testing.T) {
	w := newWorld(t)
	vip := netip.MustParseAddr("10.99.0.1")

	w.store.Apply(discovery.Update{Services: []*discovery.Service{service("web", vip.String(), []uint16{80, 8080}), service("empty", "10.99.0.2", []uint16{80, 80})}})
	w.republish(w.server, func(c *discovery.Workload) { serving("web", 80, 8080)(c) })
	w.capture(vip, netip.MustParseAddr("10.99.0.2"))
	w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())

	answer, err := w.client.AskFrom(netip.AddrPortFrom(vip, 80))
	if err != nil || answer.From.Addr() != w.client.Addr4 {
		t.Errorf("got %+v, %v, want an answer that saw %s", answer, err, w.client.Addr4)
	}
	w.wantLine(`direction="outbound"`, `dst.service="web.default.svc.cluster.local"`, `verdict="mtls"`)
	w.wantLine(`direction="inbound"`, `dst.service="web.default.svc.cluster.local"`, `verdict="mtls"`)

	for _, to := range []netip.AddrPort{netip.AddrPortFrom(vip, 81), netip.MustParseAddrPort("10.99.0.2:80")} {
		if err := w.mustFail(w.client.Pod, to); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: got %v, want a reset", to, err)
		}
	}
	w.wantLine("no healthy upstream", `verdict="refused-no-healthy-upstream"`)
}

func TestPlaintextClientIsDeliveredWithItsAddress(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	answer, err := w.legacy.AskFrom(echo.Addr)
	if err != nil || answer.Name != "server" || answer.From.Addr() != w.legacy.Addr4 {
		t.Fatalf("got %+v, %v, want server seeing %s", answer, err, w.legacy.Addr4)
	}
	line := w.wantLine("connection complete", `direction="inbound"`, `verdict="plaintext"`)
	t.Log(line)
	if got := w.proxy.metric("istio_tcp_connections_opened_total", `reporter="destination"`, `connection_security_policy="unknown"`, `source_principal="unknown"`); got != 1 {
		t.Errorf("opened: got %v, want 1", got)
	}
}

func TestUncapturedServerIsReachedInClear(t *testing.T) {
	w := newWorld(t)
	w.legacy.Echo(t, "legacy", netip.AddrPortFrom(w.legacy.Addr4, 8080).String())
	vip := netip.MustParseAddr("10.99.0.3")
	w.store.Apply(discovery.Update{
		Workloads: []*discovery.Workload{pod("legacy", w.legacy.Addr4.String(), plainTCP, serving("old", 80, 8080))},
		Services:  []*discovery.Service{service("old", vip.String(), []uint16{80, 8080})},
	})
	// Only the VIP, as if another endpoint spoke HBONE: guard would stop clear text to an address of the set.
	w.capture(vip)
	answer, err := w.client.AskFrom(netip.AddrPortFrom(vip, 80))
	if err != nil || answer.From.Addr() != w.client.Addr4 {
		t.Fatalf("got %+v, %v, want an answer that saw %s", answer, err, w.client.Addr4)
	}
	w.wantLine(`direction="outbound"`, `verdict="plaintext"`, `dst.workload="legacy"`)
}

func TestNobodyListensReachesTheClientAsReset(t *testing.T) {
	w := newWorld(t)
	for name, from := range map[string]*testutil.Pod{"mTLS": w.client.Pod, "plaintext": w.legacy} {
		if err := w.mustFail(from, netip.AddrPortFrom(w.server.Addr4, 9)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: got %v, want a reset", name, err)
		}
	}
	w.wantLine(`direction="outbound"`, `verdict="refused-by-peer"`, "503")
	w.wantLine(`direction="inbound"`, `verdict="refused-connect"`, "connection refused")
}

func TestHalfCloseBothWays(t *testing.T) {
	w := newWorld(t)
	for name, from := range map[string]*testutil.Pod{"mTLS": w.client.Pod, "plaintext": w.legacy} {
		t.Run(name, func(t *testing.T) {
			l := w.server.Listen(t, "tcp4", netip.AddrPortFrom(w.server.Addr4, 0).String())
			served := make(chan error, 1)
			go func() { served <- answerAfterFIN(l) }()
			conn := w.dial(from, addrPort(l.Addr()))
			if _, err := io.WriteString(conn, "question"); err != nil {
				t.Fatal(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			if string(got) != "got question" || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, "got question")
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

func answerAfterFIN(l net.Listener) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	question, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(conn, "got %s", question)
	return err
}

func TestResetOfTheServerReachesTheClient(t *testing.T) {
	w := newWorld(t)
	for name, from := range map[string]*testutil.Pod{"mTLS": w.client.Pod, "plaintext": w.legacy} {
		l := w.server.Listen(t, "tcp4", netip.AddrPortFrom(w.server.Addr4, 0).String())
		go func() {
			if conn, err := l.Accept(); err == nil {
				_, _ = io.ReadFull(conn, make([]byte, 1))
				abort(conn.(*net.TCPConn))
			}
		}()
		conn := w.dial(from, addrPort(l.Addr()))
		_, _ = conn.Write([]byte("x"))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: got %v, want a reset", name, err)
		}
	}
	// Peers do that every day: it is an end, and no failure.
	w.wantLine("connection complete", `direction="outbound"`, `verdict="mtls"`)
	w.wantLine("connection complete", `direction="inbound"`, `verdict="mtls"`)
	w.wantLine("connection complete", `direction="inbound"`, `verdict="plaintext"`)
	if failed := w.proxy.log.lines("error="); len(failed) > 0 {
		t.Errorf("logged as failed: %q", failed)
	}
	if n := w.proxy.metric("istio_tcp_connections_failed_total"); n != 0 {
		t.Errorf("%v connections counted as failed, want none", n)
	}
}

func TestUnknownPodIsRefusedAfterAWait(t *testing.T) {
	w := newWorld(t)
	w.store.Apply(discovery.Update{RemoveAddresses: []string{w.client.workload.UID}})
	began := time.Now()
	if err := w.mustFail(w.client.Pod, netip.AddrPortFrom(w.server.Addr4, 8080)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	if waited := time.Since(began); waited < selfTimeout-time.Second {
		t.Errorf("refused after %s, want about %s", waited, selfTimeout)
	}
	w.wantLine("connection failed", `verdict="refused-unknown-workload"`)
}

func TestFirstPacketWaitsForTheWorkload(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	w.store.Apply(discovery.Update{RemoveAddresses: []string{w.client.workload.UID}})
	asked := make(chan error, 1)
	go func() {
		_, err := w.client.AskFrom(echo.Addr)
		asked <- err
	}()
	testutil.Eventually(t, 20*time.Second, func() error {
		if len(w.proxy.live.all()) == 0 {
			return errors.New("no connection yet")
		}
		return nil
	})
	w.store.Apply(discovery.Update{Workloads: []*discovery.Workload{w.client.workload}})
	if err := <-asked; err != nil {
		t.Error(err)
	}
}

func TestBytesAreCountedWhileTheyFlow(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	for name, from := range map[string]*testutil.Pod{"mutual_tls": w.client.Pod, "unknown": w.legacy} {
		conn := w.open(from, echo.Addr)
		testutil.Eventually(t, 20*time.Second, func() error {
			if err := testutil.Ping(conn); err != nil {
				return err
			}
			if w.proxy.metric("istio_tcp_received_bytes_total", `reporter="destination"`, `connection_security_policy="`+name+`"`) == 0 {
				return errors.New("no bytes counted for the open " + name + " connection")
			}
			return nil
		})
	}
}

func TestServiceMayPickTheClientItself(t *testing.T) {
	w := newWorld(t)
	vip := netip.MustParseAddr("10.99.0.4")
	w.store.Apply(discovery.Update{Services: []*discovery.Service{service("self", vip.String(), []uint16{80, 8080})}})
	w.republish(w.client, func(c *discovery.Workload) { serving("self", 80, 8080)(c) })
	w.capture(vip)
	w.client.Echo(t, "client", netip.AddrPortFrom(w.client.Addr4, 8080).String())
	answer, err := w.client.AskFrom(netip.AddrPortFrom(vip, 80))
	if err != nil || answer.Name != "client" || answer.From.Addr() != w.client.Addr4 {
		t.Fatalf("got %+v, %v, want client seeing %s", answer, err, w.client.Addr4)
	}
}
