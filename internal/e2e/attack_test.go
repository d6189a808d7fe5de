// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// denyAll lets nobody talk to the server, and nobody in clear.
const denyAll = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: mesh}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all, namespace: mesh}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{}]
`

// counted is a server that only counts who gets through to it.
type counted struct {
	at       netip.AddrPort
	accepted atomic.Int64
}

func (m *mesh) counted(p *lab.Pod, family, port int) *counted {
	m.t.Helper()
	c := &counted{at: netip.AddrPortFrom(p.Addr(family), uint16(port))}
	ln := inside(p).Listen(m.t, "tcp", c.at.String())
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			c.accepted.Add(1)
			_ = conn.Close()
		}
	}()
	return c
}

// knock connects and waits until the other end has had its say.
func knock(from *lab.Pod, d *net.Dialer, to netip.AddrPort) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := inside(from).DialWith(ctx, d, "tcp", to.String())
	if err != nil {
		return
	}
	_, _ = conn.Write([]byte("let me in"))
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = conn.Read(make([]byte, 1))
	_ = conn.Close()
}

// TestNoAttackReachesADeniedServer: root in the client's pod tries all ways around its capture. Not one connection
// reaches the app, neither by a way around the mesh nor by one through it.
func TestNoAttackReachesADeniedServer(t *testing.T) {
	w := newWatched(t)
	legacy := w.addPod(0, "legacy", "plain")
	for _, family := range []int{4, 6} {
		app := w.counted(w.server, family, 7100)
		knock(w.client, &net.Dialer{}, app.at)
		knock(legacy, &net.Dialer{}, app.at)
		testutil.Eventually(t, effect, func() error {
			if got := app.accepted.Load(); got != 2 {
				return fmt.Errorf("before the policy: %d connections reached the app, want 2", got)
			}
			return nil
		})
	}
	w.write("deny.yaml", denyAll)
	testutil.Eventually(t, effect, func() error {
		for _, family := range []int{4, 6} {
			for _, from := range []*lab.Pod{w.client, legacy} {
				if reaches(from, w.server, family) == nil {
					return fmt.Errorf("the policy does not hold yet")
				}
			}
		}
		return nil
	})
	stranger := map[int]string{4: "198.51.100.9", 6: "2001:db8::9"}
	for _, family := range []int{4, 6} {
		app := w.counted(w.server, family, 7200)
		ip := map[int]string{4: "ip", 6: "ip6"}[family]
		for _, attack := range []string{
			"true",
			"tc qdisc add dev eth0 clsact",
			"tc filter add dev eth0 egress prio 2 protocol all u32 match u32 0 0 flowid 1:1", // accepts, and ends the chain
			"sysctl -q net.ipv4.ip_forward=1",
			fmt.Sprintf("ip -%d rule add priority 1 fwmark 0x3000/0x3000 lookup main", family),
			fmt.Sprintf("ip -%d rule del priority 1", family),
			fmt.Sprintf("nft add table %s attack", ip),
			fmt.Sprintf("nft add chain %s attack out { type nat hook output priority -100 ; }", ip),
			fmt.Sprintf("nft add rule %s attack out %s daddr %s dnat to %s", ip, ip, stranger[family], w.server.Addr(family)),
			fmt.Sprintf("nft add chain %s attack post { type nat hook postrouting priority 100 ; }", ip),
			fmt.Sprintf("nft add rule %s attack post oifname eth0 masquerade", ip),
			fmt.Sprintf("nft delete table %s attack", ip),
			"tc qdisc del dev eth0 clsact",
		} {
			args := strings.Fields(attack)
			if out, err := inside(w.client).Try(args[0], args[1:]...); err != nil {
				t.Logf("%s: refused: %s", attack, strings.TrimSpace(out))
			}
			knock(w.client, &net.Dialer{}, app.at)
			knock(w.client, &net.Dialer{Control: marked(0x3000)}, app.at)
			if strings.HasPrefix(attack, "nft") {
				knock(w.client, &net.Dialer{}, netip.AddrPortFrom(netip.MustParseAddr(stranger[family]), app.at.Port()))
			}
		}
		for _, mark := range []int{0x1000, 0x539, 0x111} {
			knock(w.client, &net.Dialer{Control: marked(mark)}, app.at)
		}
		knock(legacy, &net.Dialer{}, app.at)
		if got := app.accepted.Load(); got != 0 {
			t.Errorf("IPv%d: %d connections reached the app", family, got)
		}
	}
}

func marked(mark int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) }); e != nil {
			return e
		}
		return err
	}
}
