// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
	"github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// denied has room for the namespace whose pods web does not answer.
const denied = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-them}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules: [{from: [{source: {namespaces: [%s]}}]}]
`

// TestIstiodIsTheControlPlane installs overlays/istiod beside a real istiod, on a cluster of its own. Pods talk from node to
// node in mTLS with certificates of istiod's CA, which it gives to ztunnels for pods of their own nodes; its policies hold.
func TestIstiodIsTheControlPlane(t *testing.T) {
	c := useIstiod(t)
	ns, other, plain := c.Namespace(t, enrolled), c.Namespace(t, enrolled), c.Namespace(t)
	pairs := across(t, c, ns)
	starts(t, c, other, "asker", c.Nodes[0])
	starts(t, c, plain, "asker", c.Nodes[0])
	for _, ns := range []string{ns, other} {
		testutil.Eventually(t, effect, func() error { return annotated(t, c, ns, "enabled") })
	}

	seen := watch(t, c, pairs, func() { ask(t, c, pairs) })
	if seen.Count > 0 || seen.HBONE == 0 {
		t.Errorf("%d segments of HBONE, %d leaks: %v", seen.HBONE, seen.Count, seen.Leaks)
	}
	roots := istiodRoots(t, c, ns)
	for _, p := range pairs {
		wantLogged(t, c, cluster.IstioSystem, p.server.Spec.NodeName, "src.identity=\"spiffe://cluster.local/ns/"+ns+"/sa/default\"",
			"dst.workload=\""+p.server.Name+"\"", "direction=\"inbound\"")
		if err := certified(c, p.server, roots); err != nil {
			t.Errorf("certificate of %s: %v", p.server.Name, err)
		}
	}

	for _, from := range []string{other, plain} {
		testutil.Eventually(t, effect, func() error { return answered(c, from, ns) })
	}
	c.Apply(t, ns, fmt.Sprintf(denied, other))
	testutil.Eventually(t, effect, func() error { return refused(c, other, ns) })
	if err := answered(c, plain, ns); err != nil {
		t.Errorf("with %s denied, a pod that is not in the mesh: %v", other, err)
	}
	ask(t, c, pairs)
	c.Kubectl(t, "delete", "authorizationpolicy", "not-them", "--namespace="+ns)
	testutil.Eventually(t, effect, func() error { return answered(c, other, ns) })

	c.Apply(t, ns, strict)
	testutil.Eventually(t, effect, func() error { return refused(c, plain, ns) })
	if err := answered(c, other, ns); err != nil {
		t.Errorf("under STRICT, a pod of the mesh: %v", err)
	}
	ask(t, c, pairs)
}

// TestIstiodMayBeAway: what ztunnels know they keep. Traffic goes on, while istiod is away, through the kill of an agent and an
// upgrade of ztunnel, whose new proxies are not ready until there is an istiod again; so do policies that came before.
func TestIstiodMayBeAway(t *testing.T) {
	c := useIstiod(t)
	ns, pairs := loaded(t, c)
	other, plain := c.Namespace(t, enrolled), c.Namespace(t)
	starts(t, c, other, "asker", c.Nodes[0])
	starts(t, c, plain, "asker", c.Nodes[0])
	c.Apply(t, ns, strict)
	testutil.Eventually(t, effect, func() error { return refused(c, plain, ns) })

	inMesh(t, c, pairs, func() {
		c.KillIstiod()
		over := time.After(outage)
		kill(t, c.Nodes[0], "sluice-installer agent")
		c.Kubectl(t, "rollout", "restart", "daemonset/ztunnel", "--namespace="+cluster.IstioSystem)
		testutil.Eventually(t, time.Minute, func() error { return newProxyWaits(c) })
		<-over
		if err := newProxyWaits(c); err != nil {
			t.Errorf("after %v without istiod: %v", outage, err)
		}
		if err := refused(c, plain, ns); err != nil {
			t.Errorf("under STRICT, without istiod: %v", err)
		}
		c.RestartIstiod()
		c.Rollout(t, cluster.IstioSystem, "daemonset/ztunnel")
	})
	late(t, c, ns, "after-istiod")
	testutil.Eventually(t, effect, func() error { return answered(c, other, ns) })
	c.Apply(t, ns, fmt.Sprintf(denied, other))
	testutil.Eventually(t, effect, func() error { return refused(c, other, ns) })
}

// newProxyWaits wants a ztunnel whose container runs and is not ready, and one that is ready on each node.
func newProxyWaits(c *cluster.Cluster) error {
	pods, err := c.Client().CoreV1().Pods(cluster.IstioSystem).List(context.Background(), metav1.ListOptions{LabelSelector: "app=ztunnel"})
	if err != nil {
		return err
	}
	ready, waiting := map[string]bool{}, 0
	for _, p := range pods.Items {
		for _, s := range p.Status.ContainerStatuses {
			switch {
			case s.Ready:
				ready[p.Spec.NodeName] = true
			case s.State.Running != nil:
				waiting++
			}
		}
	}
	if waiting == 0 || len(ready) != len(c.Nodes) {
		return fmt.Errorf("%d run and are not ready, %v have one that is", waiting, ready)
	}
	return nil
}

// useIstiod returns a cluster with istiod and the mesh. Without istiod's binary the test is skipped, unless SLUICE_E2E_ISTIOD
// is set, as it is by "make e2e-istiod": it takes minutes to build, and "make e2e" is part of what CI does in an hour.
func useIstiod(t *testing.T) *cluster.Cluster {
	t.Helper()
	requireE2E(t)
	const binary = "k8s/pilot-discovery"
	if !kube.IsBuilt(t, binary) && os.Getenv("SLUICE_E2E_ISTIOD") == "" {
		t.Skip("there is no build/" + binary + ": \"make e2e-istiod\" builds it and runs this")
	}
	c := cluster.Start(t, cluster.Config{})
	c.StartIstiod()
	showMesh(t, c, cluster.IstioSystem)
	c.Kubectl(t, "apply", "-k", manifests(t, "overlays", "istiod"))
	for _, what := range []string{"daemonset/sluice-installer", "daemonset/ztunnel"} {
		c.Rollout(t, cluster.IstioSystem, what)
	}
	return c
}

// istiodRoots are those that istiod writes into each namespace.
func istiodRoots(t *testing.T, c *cluster.Cluster, ns string) *x509.CertPool {
	t.Helper()
	roots := x509.NewCertPool()
	pem := c.Kubectl(t, "get", "configmap", "istio-ca-root-cert", "--namespace="+ns, `--output=jsonpath={.data.root-cert\.pem}`)
	if !roots.AppendCertsFromPEM([]byte(pem)) {
		t.Fatalf("no certificate in istio-ca-root-cert of %s: %q", ns, pem)
	}
	return roots
}

// certified reports whether the ztunnel that serves a pod shows, to one who has no certificate himself, the pod's own, signed
// by a root.
func certified(c *cluster.Cluster, pod corev1.Pod, roots *x509.CertPool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := c.Outside.Dial(ctx, "tcp", net.JoinHostPort(pod.Status.PodIP, "15008"))
	if err != nil {
		return err
	}
	defer conn.Close()
	shown := errors.New("none was shown")
	_ = tls.Client(conn, &tls.Config{
		InsecureSkipVerify: true, // names are URIs, which crypto/tls does not compare: VerifyConnection does all
		MinVersion:         tls.VersionTLS13, NextProtos: []string{"h2"},
		VerifyConnection: func(state tls.ConnectionState) error {
			shown = verify(state.PeerCertificates, roots, "spiffe://cluster.local/ns/"+pod.Namespace+"/sa/"+pod.Spec.ServiceAccountName)
			return nil
		},
	}).HandshakeContext(ctx) // that it refuses us later is not asked here
	return shown
}

func verify(chain []*x509.Certificate, roots *x509.CertPool, identity string) error {
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
		return err
	}
	if uris := chain[0].URIs; len(uris) != 1 || uris[0].String() != identity {
		return fmt.Errorf("is for %v, want %s", uris, identity)
	}
	return nil
}

// answered has the pod "asker" of a namespace ask the Service web of another.
func answered(c *cluster.Cluster, from, web string) error {
	_, err := c.Exec(from, "asker", "/app", "get", "http://web."+web)
	return err
}

// refused is answered's opposite: the connection ends without an answer, for no other reason.
func refused(c *cluster.Cluster, from, web string) error {
	err := answered(c, from, web)
	if err == nil {
		return fmt.Errorf("a pod of %s is answered", from)
	}
	return asRefusal(err)
}
