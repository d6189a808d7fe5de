// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// world is a node with the real datapath and one proxy; the store is filled by the test.
//
//	client ──┐
//	server ──┼── node (forwards)     client and server are enrolled: attached, listeners in their slots, served
//	legacy ──┘
type world struct {
	t     testing.TB
	host  *testutil.Node
	node  *bpf.Node
	ca    testCA
	store *discovery.Store
	proxy *testProxy

	client, server *enrolled
	legacy         *testutil.Pod
}

// testProxy is what a ztunnel process has.
type testProxy struct {
	*Proxy
	log     *logBuffer
	metrics *telemetry.Metrics
	sockets *inpod.Sockets
	certs   *identity.Manager
}

// enrolled is a pod of the mesh with the sockets that an agent would hold.
type enrolled struct {
	*testutil.Pod
	workload *discovery.Workload
	fds      map[bpf.Slot]int
	served   inpod.Proxy
}

// newWorld returns a world whose proxy has the settings that set makes, before any pod is served.
func newWorld(t testing.TB, set ...func(*Config)) *world {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	node, err := bpf.LoadNode(filepath.Join(testutil.BPFFS(t), "sluice", "v1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = node.Close() })
	w := &world{t: t, host: testutil.NewNode(t), node: node, ca: testCA{testutil.NewCA(t)}, store: discovery.NewStore()}
	w.proxy = w.newProxy(nil)
	for _, set := range set {
		set(&w.proxy.Config)
	}
	w.client, w.server = w.enrol("client"), w.enrol("server")
	w.legacy = w.host.Pod(t, "legacy")
	d := node.Destinations()
	if err := d.Add(w.store.CaptureAddrs("")...); err != nil {
		t.Fatal(err)
	}
	if err := d.SetComplete(true); err != nil {
		t.Fatal(err)
	}
	return w
}

// newProxy: crl may be nil.
func (w *world) newProxy(crl *identity.CRL) *testProxy { return w.newProxyOn("", w.store, crl) }

func (w *world) newProxyOn(network string, store *discovery.Store, crl *identity.CRL) *testProxy {
	log := &logBuffer{t: w.t}
	levels, err := telemetry.ParseLevels("debug")
	if err != nil {
		w.t.Fatal(err)
	}
	logger := telemetry.NewLogger(log, telemetry.Text, levels)
	certs := identity.NewManager(identity.Config{CA: w.ca, CRL: crl})
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(func() { cancel(); certs.Close() })
	metrics := telemetry.NewMetrics("test")
	return &testProxy{
		log: log, metrics: metrics, certs: certs,
		sockets: inpod.NewSockets(ctx, w.tag),
		Proxy: New(ctx, Config{
			Store: store, Network: network,
			ServerTLS: func(id identity.Identity) *tls.Config { return identity.ServerTLS(certs, id) },
			ClientTLS: func(id identity.Identity, expected []string) *tls.Config {
				return identity.ClientTLS(certs, id, expected)
			},
			Hold: certs.Hold, Release: certs.Release, CRL: crl,
			Metrics: metrics, Access: telemetry.NewAccessLog(logger), Log: logger.With("scope", "proxy"), ClusterID: "Kubernetes",
		}),
	}
}

func (w *world) tag(fd int) error { return w.node.TagSocket(fd, bpf.TagProxy) }

// enrol attaches a new pod, publishes its workload and has the proxy serve it.
func (w *world) enrol(name string) *enrolled {
	w.t.Helper()
	e := &enrolled{Pod: w.host.Pod(w.t, name)}
	e.fds = w.listeners(e.Pod)
	err := w.host.Do(func() error {
		p, err := w.node.AttachPod(bpf.PodConfig{
			ID: e.Name, UID: e.Name, Namespace: "default", Name: name, ContainerID: e.Name, NetnsPath: e.Path,
			Interfaces: []string{"eth0"}, HostIfindexes: []int{e.HostIfindex}, Listeners: e.fds,
		})
		if err == nil {
			_ = p.Close()
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	e.workload = pod(name, e.Addr4.String(), withAddr(e.Addr6.String()))
	w.store.Apply(discovery.Update{Workloads: []*discovery.Workload{e.workload}})
	e.served = w.serve(w.proxy, e, name)
	w.t.Cleanup(e.served.Stop)
	return e
}

// serve has p accept on copies of the pod's listeners.
func (w *world) serve(p *testProxy, e *enrolled, name string) inpod.Proxy {
	w.t.Helper()
	var l inpod.Listeners
	l.Shared = true
	for slot, fd := range e.fds {
		set := &l.Outbound
		switch {
		case strings.HasPrefix(slot.String(), "inbound"):
			set = &l.Inbound
		case strings.HasPrefix(slot.String(), "hbone"):
			set = &l.HBONE
		}
		*set = append(*set, fileListener(w.t, fd))
	}
	return p.serve(inpod.Info{UID: e.Name, Name: name, Namespace: "default", ServiceAccount: name}, w.network(p, e), &l)
}

// network opens sockets in the pod, as inpod does for a pod that an agent named.
func (w *world) network(p *testProxy, e *enrolled) network {
	w.t.Helper()
	fd, err := unix.Open(e.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	pod, err := inpod.NewPod(inpod.Info{}, fd, p.sockets)
	if err != nil {
		w.t.Fatal(err)
	}
	return pod
}

func fileListener(t testing.TB, fd int) *net.TCPListener {
	t.Helper()
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(copied), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	return l.(*net.TCPListener)
}

// listeners makes what the agent makes: hidden, transparent, tagged.
func (w *world) listeners(p *testutil.Pod) map[bpf.Slot]int {
	w.t.Helper()
	fds := map[bpf.Slot]int{}
	for slot, port := range map[bpf.Slot]uint16{
		bpf.SlotOutbound4: 15001, bpf.SlotOutbound6: 15001, bpf.SlotInbound4: 15006,
		bpf.SlotInbound6: 15006, bpf.SlotHBONE4: 15008, bpf.SlotHBONE6: 15008,
	} {
		at := netip.AddrPortFrom(hidden4, port)
		if strings.HasSuffix(slot.String(), "6") {
			at = netip.AddrPortFrom(hidden6, port)
		}
		p.MustDo(w.t, func() (err error) {
			fds[slot], err = w.listenHidden(at)
			return err
		})
	}
	w.t.Cleanup(func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	})
	return fds
}

func (w *world) listenHidden(at netip.AddrPort) (int, error) {
	family, level, transparent, freebind := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT, unix.IP_FREEBIND
	var addr unix.Sockaddr
	if at.Addr().Is4() {
		addr = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	} else {
		family, level, transparent, freebind = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, unix.IPV6_FREEBIND
		addr = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	for _, step := range []func() error{
		func() error { return w.tag(fd) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) },
		func() error { return unix.SetsockoptInt(fd, level, transparent, 1) },
		func() error { return unix.SetsockoptInt(fd, level, freebind, 1) },
		func() error { return unix.Bind(fd, addr) },
		func() error { return unix.Listen(fd, 128) },
	} {
		if err := step(); err != nil {
			return -1, err
		}
	}
	return fd, nil
}
