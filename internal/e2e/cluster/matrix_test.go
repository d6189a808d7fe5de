// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
	"github.com/sluice-mesh/sluice/internal/leak"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// extras are what the matrix asks for besides web: services that lead to the asker itself, to pods without an address of
// their own, and to nobody.
const extras = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: solo}
spec:
  selector: {matchLabels: {app: solo}}
  template:
    metadata: {labels: {app: solo}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: solo, image: sluice.test/app:1, imagePullPolicy: Never, args: [serve, -http, ":8080"]}]
---
apiVersion: v1
kind: Service
metadata: {name: solo}
spec: {selector: {app: solo}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: by-node}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

// hosts is a server and client in the host's network of each node.
const hosts = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: host}
spec:
  selector: {matchLabels: {app: host}}
  template:
    metadata: {labels: {app: host}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 0
      containers: [{name: host, image: sluice.test/app:1, imagePullPolicy: Never, args: [serve, -http, ":18080"]}]
`

// world is who there is: one pod of each kind on each node.
type world struct {
	*cluster.Cluster
	members, plain string                           // namespaces
	client, server map[string]map[string]corev1.Pod // by namespace and node
	host           map[string]corev1.Pod
	solo           corev1.Pod
	outside        netip.AddrPort
	inMesh         []netip.Addr
}

func newWorld(t *testing.T) *world {
	c := use(t)
	w := &world{
		Cluster: c, members: c.Namespace(t, enrolled), plain: c.Namespace(t),
		client: map[string]map[string]corev1.Pod{}, server: map[string]map[string]corev1.Pod{},
	}
	c.Apply(t, w.members, extras)
	c.Apply(t, w.plain, hosts)
	for _, ns := range []string{w.members, w.plain} {
		across(t, c, ns)
		w.client[ns], w.server[ns] = single(t, c, ns, "app=client"), single(t, c, ns, "app=web")
	}
	c.Rollout(t, w.members, "deployment/solo")
	c.Rollout(t, w.plain, "daemonset/host")
	w.host = single(t, c, w.plain, "app=host")
	for _, pods := range c.Pods(t, w.members, "app=solo") {
		w.solo = pods[0]
	}
	w.serveOutside(t)
	return w
}

// renewClients has members ask that have never asked before: a connection between two nodes that is open already shows on the
// wire no more than that something is carried.
func (w *world) renewClients(t *testing.T) {
	t.Helper()
	w.Kubectl(t, "scale", "--namespace="+w.members, "deployment/client", "--replicas=0")
	w.Kubectl(t, "wait", "--namespace="+w.members, "--for=delete", "pod", "--selector=app=client", "--timeout=60s")
	w.Kubectl(t, "scale", "--namespace="+w.members, "deployment/client", "--replicas=2")
	w.Rollout(t, w.members, "deployment/client")
	testutil.Eventually(t, effect, func() error { return annotated(t, w.Cluster, w.members, "enabled") })
	w.client[w.members], w.inMesh = single(t, w.Cluster, w.members, "app=client"), nil
	for _, pods := range w.Pods(t, w.members, "") {
		for _, p := range pods {
			for _, ip := range p.Status.PodIPs {
				w.inMesh = append(w.inMesh, netip.MustParseAddr(ip.IP))
			}
		}
	}
}

// single is the one pod of each node that a selector picks.
func single(t *testing.T, c *cluster.Cluster, ns, selector string) map[string]corev1.Pod {
	t.Helper()
	one := map[string]corev1.Pod{}
	for node, pods := range c.Pods(t, ns, selector) {
		one[node] = pods[0]
	}
	if len(one) != len(c.Nodes) {
		t.Fatalf("pods of %s are on %d nodes", selector, len(one))
	}
	return one
}

// serveOutside answers on a host that is no node, as pods do: by its name and who asked.
func (w *world) serveOutside(t *testing.T) {
	t.Helper()
	l := w.Outside.Listen(t, "tcp4", "0.0.0.0:0")
	w.outside = netip.AddrPortFrom(netip.MustParseAddr(cluster.APIAddress), l.Addr().(*net.TCPAddr).AddrPort().Port())
	s := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintln(rw, "outside", r.RemoteAddr)
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
}

// get has a pod ask, and returns who answered and as whom it saw the asker.
func (w *world) get(from corev1.Pod, url string) (server string, seen netip.Addr, err error) {
	out, err := w.Exec(from.Namespace, from.Name, "/app", "get", url)
	if err != nil {
		return "", seen, err
	}
	name, who, _ := strings.Cut(strings.TrimSpace(out), " ")
	at, err := netip.ParseAddrPort(who)
	if err != nil {
		return "", seen, fmt.Errorf("%s: %q: %w", url, out, err)
	}
	return name, at.Addr().Unmap(), nil
}

// answered wants to be answered by to, at its pod's address i, and seen with an address of its own.
func (w *world) answered(from, to corev1.Pod, i int, port uint16) error {
	at := netip.AddrPortFrom(netip.MustParseAddr(to.Status.PodIPs[i].IP), port)
	server, seen, err := w.get(from, "http://"+at.String())
	if err == nil && (server != to.Name || seen.String() != from.Status.PodIPs[i].IP) && !to.Spec.HostNetwork && !from.Spec.HostNetwork {
		err = fmt.Errorf("%s was answered by %s, who saw %s", from.Name, server, seen)
	}
	return err
}

// refused wants an error at once, not after a wait.
func (w *world) refused(from corev1.Pod, url string) error {
	server, _, err := w.get(from, url)
	if err == nil {
		return fmt.Errorf("%s answers", server)
	}
	return asRefusal(err)
}

// asRefusal is nil if err is that of an app whose connection was refused or cut, and not that of a test that did not get so
// far.
func asRefusal(err error) error {
	for _, word := range []string{"EOF", "connection reset", "broken pipe", "connection refused"} {
		if strings.Contains(err.Error(), word) {
			return nil
		}
	}
	return fmt.Errorf("no refusal, but no answer either: %w", err)
}

// TestTrafficMatrix: ambient section 1.6, each cell in both families, near (on one node) and far, where plain text is taken
// from others and where it is not.
func TestTrafficMatrix(t *testing.T) {
	w := newWorld(t)
	for _, mode := range []struct {
		name, policy string
		plaintext    bool
	}{{"PERMISSIVE", permissive, true}, {"STRICT", strict, false}} {
		w.Apply(t, w.members, mode.policy)
		testutil.Eventually(t, effect, func() error {
			_, _, err := w.get(w.client[w.plain][w.Nodes[0].Name], "http://solo."+w.members)
			if (err == nil) != mode.plaintext {
				return fmt.Errorf("in clear to a member: %v", err)
			}
			return nil
		})
		w.renewClients(t)
		t.Run(mode.name, func(t *testing.T) {
			t.Run("member to member", w.membersAmongThemselves)
			t.Run("member to others", w.membersToOthers)
			t.Run("others to member", func(t *testing.T) { w.othersToMembers(t, mode.plaintext) })
			t.Run("nowhere", w.nowhere)
		})
	}
}

// membersAmongThemselves: nothing but mTLS leaves a member for another, near or far, whatever name it is called by.
func (w *world) membersAmongThemselves(t *testing.T) {
	near := 0
	seen := w.watchLinks(t, func() {
		for from, client := range w.client[w.members] {
			for to, server := range w.server[w.members] {
				if from == to {
					near++
				}
				for i := range server.Status.PodIPs {
					if err := w.answered(client, server, i, 8080); err != nil {
						t.Errorf("%s to %s: %v", from, to, err)
					}
				}
			}
			for _, url := range append(w.vips(t, "web"), "http://web", "http://headless:8080") {
				if _, who, err := w.get(client, url); err != nil || !isOf(client, who) {
					t.Errorf("%s to %s: %v, seen as %s", from, url, err, who)
				}
			}
		}
	})
	if seen.Count > 0 || seen.HBONE == 0 || near == 0 {
		t.Errorf("%d segments of HBONE, %d leaks: %v", seen.HBONE, seen.Count, seen.Leaks)
	}
}

// membersToOthers: in clear, with the address they have.
func (w *world) membersToOthers(t *testing.T) {
	for from, client := range w.client[w.members] {
		for to, server := range w.server[w.plain] {
			for i := range server.Status.PodIPs {
				w.inClear(t, client, server, i, 8080, from != to)
			}
			for i := range w.host[to].Status.PodIPs {
				if err := w.answered(client, w.host[to], i, 18080); err != nil {
					t.Errorf("%s to the host %s: %v", from, to, err)
				}
			}
		}
		for _, url := range []string{"http://web." + w.plain, "http://" + w.outside.String()} {
			if _, _, err := w.get(client, url); err != nil {
				t.Errorf("%s to %s: %v", from, url, err)
			}
		}
	}
	if _, _, err := w.get(w.solo, "http://"+netip.AddrPortFrom(netip.MustParseAddr(w.solo.Status.PodIP), 8080).String()); err != nil {
		t.Errorf("to its own address: %v", err)
	}
	if server, who, err := w.get(w.solo, "http://solo"); err != nil || server != w.solo.Name || !isOf(w.solo, who) {
		t.Errorf("to its own service: answered by %q, %v, seen as %s", server, err, who)
	}
}

// othersToMembers: pods outside the mesh, processes of the nodes, and who comes in by a node's port.
func (w *world) othersToMembers(t *testing.T, plaintext bool) {
	for from, client := range w.client[w.plain] {
		for to, server := range w.server[w.members] {
			for i, ip := range server.Status.PodIPs {
				if plaintext {
					w.inClear(t, client, server, i, 8080, from != to)
				}
				for _, c := range []corev1.Pod{client, w.host[from]} {
					err := w.answered(c, server, i, 8080)
					if !plaintext {
						err = w.refused(c, "http://"+netip.AddrPortFrom(netip.MustParseAddr(ip.IP), 8080).String())
					}
					if err != nil {
						t.Errorf("%s on %s to %s: %v", c.Name, from, to, err)
					}
				}
			}
		}
	}
	for _, at := range nodePorts(t, w.Cluster, w.members, "by-node") {
		if err := asks(t, w.Cluster, at); (err == nil) != plaintext {
			t.Errorf("from outside by %v: %v, plain text is taken: %v", at, err, plaintext)
		}
	}
	for _, p := range w.server[w.members] { // the kubelet's probes
		if now, err := w.Client().CoreV1().Pods(w.members).Get(t.Context(), p.Name, metav1.GetOptions{}); err != nil || now.Status.ContainerStatuses[0].RestartCount > 0 || !now.Status.ContainerStatuses[0].Ready {
			t.Errorf("%s: %v, %+v", p.Name, err, now.Status.ContainerStatuses)
		}
	}
}

// nowhere: a member that asks for what nobody serves is refused at once.
func (w *world) nowhere(t *testing.T) {
	for from, client := range w.client[w.members] {
		urls := []string{"http://nobody", "http://web:81"}
		for _, ip := range w.server[w.members][from].Status.PodIPs {
			urls = append(urls, "http://"+netip.AddrPortFrom(netip.MustParseAddr(ip.IP), 8081).String())
		}
		for _, url := range urls {
			if err := w.refused(client, url); err != nil {
				t.Errorf("%s to %s: %v", from, url, err)
			}
		}
	}
}

// inClear wants an answer, and if the two are on different nodes to see on the wire that it is in clear.
func (w *world) inClear(t *testing.T, from, to corev1.Pod, i int, port uint16, far bool) {
	t.Helper()
	addrs := []netip.Addr{netip.MustParseAddr(from.Status.PodIPs[i].IP), netip.MustParseAddr(to.Status.PodIPs[i].IP)}
	seen := watchMembers(t, w.Cluster, addrs, func() {
		if err := w.answered(from, to, i, port); err != nil {
			t.Errorf("%s to %s: %v", from.Name, to.Name, err)
		}
	})
	if far && (seen.Count == 0 || seen.HBONE > 0) {
		t.Errorf("%s to %s: %d segments in clear, %d of HBONE", from.Name, to.Name, seen.Count, seen.HBONE)
	}
}

// watchLinks watches the nodes' cables and the host's end of every pod's link for what members have to say to each other.
func (w *world) watchLinks(t *testing.T, f func()) leak.Report {
	t.Helper()
	var points []leak.Point
	for _, n := range w.Nodes {
		points = append(points, leak.Point{NS: n.NS.Name, Interface: "eth0"})
		out, err := n.Run("ip", "-o", "link", "show", "type", "veth")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			_, name, _ := strings.Cut(line, ": ")
			if name, _, ok := strings.Cut(name, "@"); ok && name != "eth0" {
				points = append(points, leak.Point{NS: n.NS.Name, Interface: name, FromPod: true})
			}
		}
	}
	watch, err := leak.Start(w.inMesh, points...)
	if err != nil {
		t.Fatal(err)
	}
	f()
	report, err := watch.Stop()
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// vips are a service's own addresses.
func (w *world) vips(t *testing.T, service string) (urls []string) {
	t.Helper()
	s, err := w.Client().CoreV1().Services(w.members).Get(t.Context(), service, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range s.Spec.ClusterIPs {
		urls = append(urls, "http://"+netip.AddrPortFrom(netip.MustParseAddr(ip), 80).String())
	}
	return urls
}

func isOf(p corev1.Pod, a netip.Addr) bool {
	for _, ip := range p.Status.PodIPs {
		if ip.IP == a.String() {
			return true
		}
	}
	return false
}
