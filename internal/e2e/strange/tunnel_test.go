// SPDX-License-Identifier: Apache-2.0

package strange

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const (
	tunnelPort = 51820
	tunnelMTU  = 1420 // WireGuard's own choice
)

// tunnel is one end of a tunnel in user space: what is routed to its device goes to the other end over UDP.
type tunnel struct {
	device *os.File
	udp    *net.UDPConn
	far    net.Addr // learned from what comes, as WireGuard does; set where the tunnel is begun
	mu     sync.Mutex
}

func startTunnel(t *testing.T, ns *testutil.NS, local string, far net.Addr) {
	t.Helper()
	tun := &tunnel{far: far}
	ns.MustDo(t, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("/dev/net/tun: %w", err)
		}
		request, err := unix.NewIfreq("vpn0")
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return fmt.Errorf("TUNSETIFF: %w", err)
		}
		tun.device = os.NewFile(uintptr(fd), "tun")
		tun.udp, err = net.ListenUDP("udp4", &net.UDPAddr{Port: tunnelPort})
		return err
	})
	ip(t, ns, "addr add "+local+" dev vpn0", fmt.Sprintf("link set vpn0 mtu %d up", tunnelMTU))
	var wg sync.WaitGroup
	wg.Go(tun.send)
	wg.Go(tun.receive)
	t.Cleanup(func() { _ = tun.device.Close(); _ = tun.udp.Close(); wg.Wait() })
}

func (tun *tunnel) send() {
	for buf := make([]byte, 2048); ; {
		n, err := tun.device.Read(buf)
		if err != nil {
			return
		}
		tun.mu.Lock()
		far := tun.far
		tun.mu.Unlock()
		if far != nil {
			_, _ = tun.udp.WriteTo(buf[:n], far)
		}
	}
}

func (tun *tunnel) receive() {
	for buf := make([]byte, 2048); ; {
		n, from, err := tun.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			continue
		}
		tun.mu.Lock()
		tun.far = from
		tun.mu.Unlock()
		_, _ = tun.device.Write(buf[:n])
	}
}

// TestPodWithATunnel has its default route in a tunnel, and the cluster's addresses outside it. What is routed into the
// tunnel has left the mesh by the pod's own making, mesh addresses included.
func TestPodWithATunnel(t *testing.T) {
	s := newStrange(t, "tunnel")
	outside := namespaceOf(s.w.NS("outside"))
	ip(t, s.NS, "route add 10.240.0.0/12 via "+s.gateway("-4")) // pods, nodes and the far end of the tunnel
	startTunnel(t, outside, "10.99.0.1/24", nil)
	startTunnel(t, s.NS, "10.99.0.2/24", net.UDPAddrFromAddrPort(netip.AddrPortFrom(lab.OutsideAddr4, tunnelPort)))
	ip(t, s.NS, "route replace default dev vpn0")
	captured := s.count(bpf.VerdictCaptured)
	if err := carry(plain(s.NS), netip.MustParseAddrPort("10.99.0.1:7000"), "outside", netip.MustParseAddr("10.99.0.2")); err != nil {
		t.Errorf("through the tunnel: %v", err)
	}
	if n := s.count(bpf.VerdictCaptured) - captured; n != 0 {
		t.Errorf("%d connections through the tunnel were captured", n)
	}
	s.everyWay("beside the tunnel")

	// The far end hands what it gets to the peer, as a gateway does.
	outside.Sysctl(t, "net.ipv4.ip_forward", "1")
	outside.Run(t, "nft", `add table ip tunnelled; add chain ip tunnelled post { type nat hook postrouting priority 100; }; add rule ip tunnelled post ip saddr 10.99.0.0/24 masquerade`)
	t.Cleanup(func() { _, _ = outside.Try("nft", "delete", "table", "ip", "tunnelled") })
	ip(t, s.NS, "route add "+s.w.peer.Addr4.String()+" dev vpn0")
	if err := carry(plain(s.NS), at(s.w.peer, 4), "peer", lab.OutsideAddr4); err != nil {
		t.Errorf("to the peer through the tunnel: %v", err)
	}
	ip(t, s.NS, "route del "+s.w.peer.Addr4.String()+" dev vpn0")
	s.everyWay("after the route into the tunnel is gone")
}
