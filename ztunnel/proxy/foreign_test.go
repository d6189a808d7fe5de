// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
)

// foreignRules are what a foreign agent puts into a pod: ambient section 1.3, without DNS.
func foreignRules(iptables, loopback, family string) []string {
	return []string{
		iptables + " -t mangle -A PREROUTING -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff",
		iptables + " -t mangle -A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
		iptables + " -t nat -A PREROUTING ! -d " + loopback + " -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006",
		iptables + " -t nat -A OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT",
		iptables + " -t nat -A OUTPUT ! -d " + loopback + " -o lo -j ACCEPT",
		iptables + " -t nat -A OUTPUT ! -d " + loopback + " -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001",
		"ip " + family + " rule add fwmark 0x111/0xfff lookup 100 pref 32764",
		"ip " + family + " route add local default dev lo table 100",
	}
}

// newForeignWorld is newWorld as a foreign agent makes it: redirection by its rules, listeners made by ztunnel, no maps.
func newForeignWorld(t *testing.T) *world {
	t.Helper()
	testutil.RequireRoot(t)
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Fatalf("%v: install iptables", err)
	}
	w := &world{t: t, host: testutil.NewNode(t), ca: testCA{testutil.NewCA(t)}, store: discovery.NewStore()}
	w.proxy = w.newProxy(nil)
	w.proxy.Redirected, w.proxy.router.redirected = true, true
	w.proxy.sockets = inpod.NewSockets(t.Context(), inpod.SetMark)
	w.client, w.server = w.enrolForeign(w.proxy, "client"), w.enrolForeign(w.proxy, "server")
	w.legacy = w.host.Pod(t, "legacy")
	return w
}

func (w *world) enrolForeign(p *testProxy, name string) *enrolled {
	w.t.Helper()
	e := &enrolled{Pod: w.host.Pod(w.t, name)}
	for _, rule := range append(foreignRules("iptables", "127.0.0.1/32", "-4"), foreignRules("ip6tables", "::1/128", "-6")...) {
		argv := strings.Fields(rule)
		e.Run(w.t, argv[0], argv[1:]...)
	}
	e.workload = pod(name, e.Addr4.String(), withAddr(e.Addr6.String()))
	w.store.Apply(discovery.Update{Workloads: []*discovery.Workload{e.workload}})
	e.served = w.serveForeign(p, e, name)
	w.t.Cleanup(e.served.Stop)
	return e
}

func (w *world) serveForeign(p *testProxy, e *enrolled, name string) inpod.Proxy {
	w.t.Helper()
	pod := w.network(p, e).(*inpod.Pod)
	pod.Info = inpod.Info{UID: e.Name, Name: name, Namespace: "default", ServiceAccount: name}
	l, err := inpod.ListenInPod(context.Background(), pod, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return p.Serve(pod, l)
}

func TestForeignAgentsRulesWork(t *testing.T) {
	w := newForeignWorld(t)
	for _, family := range []string{"4", "6"} {
		echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr(family), 8080).String())
		for _, from := range []*testutil.Pod{w.client.Pod, w.legacy} {
			answer, err := from.AskFrom(echo.Addr)
			if err != nil || answer.Name != "server" || answer.From.Addr() != from.Addr(family) {
				t.Errorf("IPv%s from %s: got %+v, %v, want server seeing %s", family, from.Name, answer, err, from.Addr(family))
			}
		}
		out := w.legacy.Echo(t, "legacy", netip.AddrPortFrom(w.legacy.Addr(family), 0).String())
		if answer, err := w.client.AskFrom(out.Addr); err != nil || answer.From.Addr() != w.client.Addr(family) {
			t.Errorf("IPv%s passthrough: got %+v, %v, want legacy seeing %s", family, answer, err, w.client.Addr(family))
		}
		w.wantLine(`direction="outbound"`, `verdict="mtls"`, fmt.Sprintf("dst.addr=%s", netip.AddrPortFrom(w.server.Addr(family), 15008)))
		w.wantLine(`direction="inbound"`, `verdict="plaintext"`, fmt.Sprintf("dst.addr=%s", echo.Addr))
		w.wantLine(`direction="outbound"`, `verdict="passthrough"`, fmt.Sprintf("dst.addr=%s", out.Addr))
	}
}

func TestPortsOfZtunnelAreRefused(t *testing.T) {
	w := newForeignWorld(t)
	for _, port := range []uint16{15001, 15006} {
		if err := w.mustFail(w.legacy, netip.AddrPortFrom(w.server.Addr4, port)); err == nil {
			t.Errorf("plaintext to port %d: connected", port)
		}
		if err := w.mustFail(w.client.Pod, netip.AddrPortFrom(w.server.Addr4, port)); err == nil {
			t.Errorf("mesh to port %d: connected", port)
		}
	}
	w.wantLine(`verdict="refused-reserved-port"`)
}

// The rules let what a pod sends to itself through, and so to ztunnel's own ports, where it would go round in circles.
func TestForeignPodCannotCallZtunnelsOwnPorts(t *testing.T) {
	w := newForeignWorld(t)
	for _, family := range []string{"4", "6"} {
		for _, port := range []uint16{15001, 15006} {
			to := netip.AddrPortFrom(w.client.Addr(family), port)
			w.mustFail(w.client.Pod, to)
			w.wantLine(fmt.Sprintf("dst.addr=%s", to), `verdict="refused-reserved-port"`)
		}
	}
	if n := len(w.proxy.log.lines("refused-reserved-port")); n != 4 {
		t.Errorf("%d connections refused, want the 4 that were made", n)
	}
}

func TestForeignListenersAreSharedWithTheNextZtunnel(t *testing.T) {
	w := newForeignWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 8080).String())
	next := w.newProxy(nil)
	next.Redirected, next.router.redirected = true, true
	next.sockets = inpod.NewSockets(t.Context(), inpod.SetMark)
	for name, e := range map[string]*enrolled{"client": w.client, "server": w.server} {
		t.Cleanup(w.serveForeign(next, e, name).Stop)
		e.served.Drain(t.Context())
	}
	if _, err := w.client.AskFrom(echo.Addr); err != nil {
		t.Errorf("after the first ztunnel is gone: %v", err)
	}
}

func TestForeignListenersCarryTheMark(t *testing.T) {
	w := newForeignWorld(t)
	pod := w.network(w.proxy, w.client).(*inpod.Pod)
	l, err := inpod.ListenInPod(t.Context(), pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := pod.Dial(t.Context(), netip.Addr{}, w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 0).String()).Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sockets := []syscall.Conn{conn}
	for _, ln := range l.All() {
		sockets = append(sockets, ln)
	}
	for _, s := range sockets {
		if mark, err := markOf(s); err != nil || mark != inpod.Mark {
			t.Errorf("%T: mark %#x, %v, want %#x", s, mark, err, inpod.Mark)
		}
	}
}

func markOf(s syscall.Conn) (mark int, err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return 0, err
	}
	var merr error
	err = raw.Control(func(fd uintptr) { mark, merr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) })
	return mark, errors.Join(err, merr)
}
