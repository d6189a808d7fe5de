// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// BenchmarkConnect is a connection that passes by ztunnel, from connect to both ends closed, without the programs of the
// host and with them.
func BenchmarkConnect(b *testing.B) {
	testutil.RequireRoot(b)
	n, err := LoadNode(filepath.Join(testutil.BPFFS(b), "sluice", "v1"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	w := &world{Node: n, host: testutil.NewNode(b)}
	pod, peer := w.host.Pod(b, "pod"), w.host.Pod(b, "peer")
	cfg := w.config(pod)
	withAddresses(pod)(&cfg)
	w.host.MustDo(b, func() error {
		p, err := n.AttachPod(cfg)
		if err == nil {
			err = p.Close()
		}
		return err
	})
	if err := n.Destinations().SetComplete(true); err != nil {
		b.Fatal(err)
	}
	for _, each := range []struct {
		name string
		cfg  HostConfig
	}{
		{"alone", HostConfig{}},
		{"probe and bind", HostConfig{Probe: true, Bind: true}},
		{"probe, bind and flows", HostConfig{Probe: true, Bind: true, Flows: true}},
	} {
		b.Run(each.name, func(b *testing.B) {
			w.attachHost(b, each.cfg)
			connectAndClose(b, pod.NS, peer)
		})
	}
}

func connectAndClose(b *testing.B, from *testutil.NS, to *testutil.Pod) {
	addr := netip.AddrPortFrom(to.Addr4, 9000)
	listener := -1
	to.MustDo(b, func() (err error) {
		if listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err = unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err = unix.Bind(listener, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}); err != nil {
			return err
		}
		return unix.Listen(listener, 128)
	})
	defer func() { _ = unix.Close(listener) }()
	from.MustDo(b, func() error {
		for b.Loop() {
			if err := connectOnce(listener, addr); err != nil {
				return err
			}
		}
		return nil
	})
}

// connectOnce leaves no TIME_WAIT behind, of which there would soon be too many.
func connectOnce(listener int, addr netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}); err != nil {
		return err
	}
	accepted, _, err := unix.Accept(listener)
	if err != nil {
		return err
	}
	return unix.Close(accepted)
}
