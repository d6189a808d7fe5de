// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// strict and permissive say what a namespace's pods take.
const (
	strict     = policy + "{mtls: {mode: STRICT}}"
	permissive = policy + "{mtls: {mode: PERMISSIVE}}"
	policy     = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: `
)

// kinds are controllers of every kind, with probes of every kind; a Job that asks the others by their names.
const kinds = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: http-and-exec
        image: sluice.test/app:1
        imagePullPolicy: Never
        args: [serve, -http, ":8080"]
        startupProbe: {exec: {command: [/app, "true"]}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: everywhere}
spec:
  type: NodePort
  selector: {app: everywhere}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ordered}
spec:
  serviceName: ordered
  replicas: 3
  selector: {matchLabels: {app: ordered}}
  template:
    metadata: {labels: {app: ordered}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: tcp-and-grpc
        image: sluice.test/app:1
        imagePullPolicy: Never
        args: [serve, -http, ":8080", -tcp, ":7000", -grpc, ":9000"]
        livenessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}
        readinessProbe: {grpc: {port: 9000}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: ordered}
spec:
  clusterIP: None
  selector: {app: ordered}
  ports: [{port: 8080}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  backoffLimit: 20
  template:
    spec:
      restartPolicy: OnFailure
      containers:
      - {name: service, image: sluice.test/app:1, imagePullPolicy: Never, args: [get, "http://everywhere"]}
      - {name: headless, image: sluice.test/app:1, imagePullPolicy: Never, args: [get, "http://ordered:8080"]}
      - {name: pod, image: sluice.test/app:1, imagePullPolicy: Never, args: [get, "http://ordered-2.ordered:8080"]}
`

// TestWorkloadsOfAllKindsUnderStrict runs every kind of controller where nothing but mTLS is taken: the kubelet's probes
// pass all the same, and what comes in through a node's port is refused until plain text is allowed.
func TestWorkloadsOfAllKindsUnderStrict(t *testing.T) {
	c := use(t)
	ns := c.Namespace(t, enrolled)
	c.Apply(t, ns, strict)
	c.Apply(t, ns, kinds)
	c.Rollout(t, ns, "daemonset/everywhere")
	c.Rollout(t, ns, "statefulset/ordered")
	c.Kubectl(t, "wait", "--namespace="+ns, "--for=condition=complete", "--timeout=100s", "job/once")
	testutil.Eventually(t, effect, func() error { return releasedWhenDone(t, c, ns) })

	plain := c.Namespace(t)
	c.Apply(t, plain, "{apiVersion: v1, kind: Pod, metadata: {name: stranger}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: app, image: "+cluster.AppImage+", imagePullPolicy: Never}]}}")
	c.Kubectl(t, "wait", "--namespace="+plain, "--for=condition=ready", "--timeout=60s", "pod/stranger")
	if out, err := c.Exec(plain, "stranger", "/app", "get", "http://everywhere."+ns); err == nil {
		t.Errorf("a pod that is not in the mesh is answered in clear: %s", out)
	}
	ports := nodePorts(t, c, ns, "everywhere")
	for _, at := range ports {
		if err := asks(t, c, at); err == nil {
			t.Errorf("%v answers in clear", at)
		}
	}
	restarts(t, c, ns) // before the policy changes: probes have passed for a while

	c.Apply(t, ns, permissive)
	for _, at := range ports {
		testutil.Eventually(t, effect, func() error { return asks(t, c, at) })
	}
	if _, err := c.Exec(plain, "stranger", "/app", "get", "http://everywhere."+ns); err != nil {
		t.Errorf("a pod that is not in the mesh is not answered: %v", err)
	}
}

// nodePorts are where the nodes offer a Service, all pods of which may be on another node.
func nodePorts(t *testing.T, c *cluster.Cluster, ns, service string) (all []netip.AddrPort) {
	t.Helper()
	s, err := c.Client().CoreV1().Services(ns).Get(t.Context(), service, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		all = append(all, netip.AddrPortFrom(n.Addr4, uint16(s.Spec.Ports[0].NodePort)))
	}
	return all
}

// asks sends a request from outside of the cluster.
func asks(t *testing.T, c *cluster.Cluster, at netip.AddrPort) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	conn, err := c.Outside.Dial(ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	answer := make([]byte, 15)
	n, err := conn.Read(answer)
	if err == nil && !strings.HasPrefix(string(answer[:n]), "HTTP/1.0 200") {
		err = fmt.Errorf("%v answered %q", at, answer[:n])
	}
	return err
}

// releasedWhenDone wants the Job's pod, which has ended, out of the mesh, and all others in.
func releasedWhenDone(t *testing.T, c *cluster.Cluster, ns string) error {
	t.Helper()
	var errs []error
	for _, pods := range c.Pods(t, ns, "") {
		for _, p := range pods {
			want := "enabled"
			if p.Status.Phase == "Succeeded" {
				want = ""
			}
			if got := p.Annotations[annotation]; got != want {
				errs = append(errs, fmt.Errorf("%s is %s: %s is %q, want %q", p.Name, p.Status.Phase, annotation, got, want))
			}
		}
	}
	return errors.Join(errs...)
}

// restarts fails the test if a kubelet has restarted a container that a probe watches, or does not hold it for ready.
func restarts(t *testing.T, c *cluster.Cluster, ns string) {
	t.Helper()
	for _, pods := range c.Pods(t, ns, "app in (everywhere,ordered)") {
		for _, p := range pods {
			for _, s := range p.Status.ContainerStatuses {
				if s.RestartCount > 0 || !s.Ready {
					t.Errorf("%s: %d restarts, ready: %v", p.Name, s.RestartCount, s.Ready)
				}
			}
		}
	}
}
