// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/proxy"
)

// serveOwn opens HBONE's port on ztunnel's own pod, if it was told which pod that is. It sets own.
func (z *ztunnel) serveOwn(carrier *proxy.Proxy) error {
	c := z.config
	if c.PodName == "" || c.Namespace == "" || c.ServiceAccount == "" {
		return nil
	}
	var ports []uint16
	for _, page := range []string{c.StatsAddress, c.ReadinessAddress} {
		at, err := net.ResolveTCPAddr("tcp", page)
		if err != nil {
			return err
		}
		ports = append(ports, uint16(at.Port))
	}
	network := "tcp"
	if !c.IPv6 {
		network = "tcp4"
	}
	// Shared, so that the next ztunnel begins before this one has ended.
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); e != nil {
			return e
		}
		return err
	}}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), network, fmt.Sprintf(":%d", inpod.PortHBONE))
	if err != nil {
		return fmt.Errorf("HBONE on ztunnel's own pod: %w", err)
	}
	info := inpod.Info{UID: "ztunnel", Name: c.PodName, Namespace: c.Namespace, ServiceAccount: c.ServiceAccount}
	z.log.Info("ztunnel's own pages are served over HBONE", "address", l.Addr().String(), "pod", info.String(), "ports", ports)
	z.own = carrier.ServeOwn(info, &inpod.Listeners{HBONE: []*net.TCPListener{l.(*net.TCPListener)}}, ports)
	return nil
}
