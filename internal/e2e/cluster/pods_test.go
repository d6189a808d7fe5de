// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
)

// effect bounds how long a change may take to be seen.
const effect = 30 * time.Second

// annotation tells that a pod is in the mesh.
const annotation = "ambient.istio.io/redirection"

// web is a Service with a server on each node, and a client on each.
const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}]
      containers:
      - name: web
        image: sluice.test/app:1
        imagePullPolicy: Never
        args: [serve, -http, ":8080"]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client}
spec:
  replicas: 2
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: client}}}]
      containers: [{name: client, image: sluice.test/app:1, imagePullPolicy: Never}]
`

// pair is a client on one node and a server on the other.
type pair struct{ client, server corev1.Pod }

// across deploys web and returns the two pairs of pods on different nodes.
func across(t *testing.T, c *cluster.Cluster, ns string) []pair {
	t.Helper()
	c.Apply(t, ns, web)
	c.Rollout(t, ns, "deployment/web")
	c.Rollout(t, ns, "deployment/client")
	return pairsOf(t, c, ns)
}

// pairsOf returns them as they are now.
func pairsOf(t *testing.T, c *cluster.Cluster, ns string) []pair {
	t.Helper()
	clients, servers := c.Pods(t, ns, "app=client"), c.Pods(t, ns, "app=web")
	a, b := c.Nodes[0].Name, c.Nodes[1].Name
	for _, pods := range []map[string][]corev1.Pod{clients, servers} {
		if len(pods[a]) != 1 || len(pods[b]) != 1 {
			t.Fatalf("one pod on each node was asked for: %s", c.Kubectl(t, "get", "pods", "--namespace="+ns, "-o", "wide"))
		}
	}
	return []pair{{clients[a][0], servers[b][0]}, {clients[b][0], servers[a][0]}}
}

// addrs are all addresses of the pods, in both families.
func (p pair) addrs() (all []netip.Addr) {
	for _, pod := range []corev1.Pod{p.client, p.server} {
		for _, ip := range pod.Status.PodIPs {
			all = append(all, netip.MustParseAddr(ip.IP))
		}
	}
	return all
}

// reach asks the server by each of its addresses, and wants to be answered by it and seen with the client's own address.
func (p pair) reach(c *cluster.Cluster) error {
	if got, want := len(p.client.Status.PodIPs), len(p.server.Status.PodIPs); got != want || got == 0 {
		return fmt.Errorf("%s has %d addresses, %s %d", p.client.Name, got, p.server.Name, want)
	}
	var errs []error
	for i, to := range p.server.Status.PodIPs {
		url := "http://" + netip.AddrPortFrom(netip.MustParseAddr(to.IP), 8080).String()
		out, err := c.Exec(p.client.Namespace, p.client.Name, "/app", "get", url)
		want := p.server.Name + " " + strings.TrimSuffix(netip.AddrPortFrom(netip.MustParseAddr(p.client.Status.PodIPs[i].IP), 0).String(), "0")
		if err == nil && !strings.HasPrefix(out, want) {
			err = fmt.Errorf("%s: got %q, want it to begin with %q", url, out, want)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// annotated reports whether the API says of the namespace's pods what it should of being in the mesh.
func annotated(t *testing.T, c *cluster.Cluster, ns, want string) error {
	t.Helper()
	for _, pods := range c.Pods(t, ns, "") {
		for _, p := range pods {
			if got := p.Annotations[annotation]; got != want {
				return fmt.Errorf("%s: %s is %q, want %q", p.Name, annotation, got, want)
			}
		}
	}
	return nil
}
