// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/internal/zds"
)

const redirectedMesh = `--local-xds=
workloads: [{name: asker, namespace: shop, serviceAccount: asker, workloadIps: [10.0.0.1], services: {}}]
services: [{name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [/10.1.0.1], ports: {80: 8080}}]
`

// addPod has a foreign agent name a pod with a network namespace of its own.
func (p *process) addPod(conn *zds.Conn, name string) *testutil.NS {
	p.t.Helper()
	ns := testutil.NetNS(p.t, name)
	fd, err := unix.Open(ns.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	add := &zds.AddWorkload{Uid: name, WorkloadInfo: &zds.WorkloadInfo{Name: name, Namespace: "shop", ServiceAccount: name}}
	if err := conn.Send(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: add}}, fd); err != nil {
		p.t.Fatal(err)
	}
	var answer zds.WorkloadResponse
	if _, err := conn.Receive(&answer); err != nil || answer.GetAck().GetError() != "" {
		p.t.Fatalf("add: got %v, %v", &answer, err)
	}
	return ns
}

func TestForeignAgentsPodsAreAnsweredOnTheirLoopback(t *testing.T) {
	p := start(t, false, "--xds-address=", "--ca-address=unix:///nowhere/ca.sock", redirectedMesh)
	ns := p.addPod(p.snapshot(), "asker")
	for _, at := range [][2]string{{"udp", "127.0.0.1"}, {"tcp", "127.0.0.1"}, {"udp", "::1"}, {"tcp", "::1"}} {
		m, err := askForWeb(t, ns, at[0], net.JoinHostPort(at[1], "15053"))
		if err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "10.1.0.1" {
			t.Errorf("%v: got %v, %v, want 10.1.0.1", at, m, err)
		}
	}
	p.quit()
}

func askForWeb(t *testing.T, ns *testutil.NS, network, at string) (*dns.Msg, error) {
	t.Helper()
	conn, err := ns.Dial(t.Context(), network, at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	c := &dns.Conn{Conn: conn}
	if err := c.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	return c.ReadMsg()
}

func TestNoSocketsForQueriesWithoutCapture(t *testing.T) {
	p := start(t, false, "--xds-address=", "--ca-address=unix:///nowhere/ca.sock", "--dns-capture=false", redirectedMesh)
	ns := p.addPod(p.snapshot(), "asker")
	if conn, err := ns.Dial(t.Context(), "tcp4", "127.0.0.1:15053"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, %v, want connection refused", conn, err)
	}
	p.quit()
}

func (p *process) quit() {
	p.t.Helper()
	if _, err := fetch("POST", "http://"+p.admin+"/quitquitquit"); err != nil {
		p.t.Fatal(err)
	}
	p.wantExit(exitOK)
}
