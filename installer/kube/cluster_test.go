// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// watchAll starts a source of the whole cluster for the time of the test.
func (c *cluster) watchAll() *Cluster {
	c.Helper()
	all, err := NewCluster(c.client, c.Dynamic(), slog.Default())
	if err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := all.Start(ctx); err != nil {
		c.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = all.Run(ctx) }()
	c.Cleanup(func() { cancel(); <-done })
	return all
}

// token asks for one as a kubelet does for a projected volume; pod may be nil.
func (c *cluster) token(account string, pod *corev1.Pod, audience string) string {
	c.Helper()
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	if pod != nil {
		req.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	}
	namespace, name, _ := strings.Cut(account, "/")
	answer, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(c.Context(), name, req, metav1.CreateOptions{})
	if err != nil {
		c.Fatal(err)
	}
	return answer.Status.Token
}

func (c *cluster) serviceAccount(namespace, name string) {
	c.Helper()
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if _, err := c.client.CoreV1().ServiceAccounts(namespace).Create(c.Context(), sa, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
}

func as(account string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.ServiceAccountName = account }
}

func TestTokensAreBoundToPodAndNode(t *testing.T) {
	c := newCluster(t)
	c.namespace("mesh", nil)
	c.namespace("shop", nil)
	for _, a := range []string{"mesh/ztunnel", "mesh/other"} {
		ns, name, _ := strings.Cut(a, "/")
		c.serviceAccount(ns, name)
	}
	zt := c.pod("mesh", "zt", "n1", as("ztunnel"))
	other := c.pod("mesh", "other", "n1", as("other"))
	c.pod("shop", "web", "n1")
	c.pod("shop", "away", "n2", as("away"))
	c.pod("shop", "host", "n1", as("host"), func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	c.phase(c.pod("shop", "job", "n1", as("job")), corev1.PodSucceeded)
	all := c.watchAll()
	tokens := NewTokens(c.client, all, []string{"mesh/ztunnel"})

	good := c.token("mesh/ztunnel", zt, TokenAudience)
	for range 2 { // the second time from memory
		if node, err := tokens.Admit(t.Context(), good); err != nil || node != "n1" {
			t.Fatalf("good token: node %q, %v; want n1", node, err)
		}
	}
	for name, bad := range map[string]string{
		"another audience":        c.token("mesh/ztunnel", zt, "https://kubernetes.default.svc"),
		"not bound to a pod":      c.token("mesh/ztunnel", nil, TokenAudience),
		"another service account": c.token("mesh/other", other, TokenAudience),
		"changed by a byte":       good[:len(good)-8] + "AAAAAAAA",
		"no token":                "x",
	} {
		if node, err := tokens.Admit(t.Context(), bad); err == nil {
			t.Errorf("%s: admitted as %q", name, node)
		}
	}
	checkImpersonation(t, all)

	c.deletePod("mesh", "zt")
	c.pod("mesh", "zt", "n2", as("ztunnel"))        // the next of that name
	testutil.Eventually(t, patience, func() error { // although it is remembered as good
		if node, err := tokens.Admit(t.Context(), good); err == nil {
			return fmt.Errorf("token of a deleted pod is admitted as %s", node)
		}
		return nil
	})
}

func checkImpersonation(t *testing.T, all *Cluster) {
	t.Helper()
	for _, tt := range []struct{ node, identity, refused string }{
		{"n1", "spiffe://cluster.local/ns/shop/sa/web", ""},
		{"n2", "spiffe://cluster.local/ns/shop/sa/web", `caller's node "n2"`},
		{"n1", "spiffe://cluster.local/ns/shop/sa/away", "of another node"},
		{"n2", "spiffe://cluster.local/ns/shop/sa/away", ""},
		{"n1", "spiffe://cluster.local/ns/shop/sa/host", "no pod that is known"},
		{"n1", "spiffe://cluster.local/ns/shop/sa/job", "no pod that is known"},
		{"n1", "spiffe://cluster.local/ns/mesh/sa/web", "no pod that is known"},
		{"", "spiffe://cluster.local/ns/shop/sa/web", "another node"},
		{"n1", "shop/web", "no identity"},
	} {
		err := all.MayImpersonate(tt.node, tt.identity)
		if (err == nil) != (tt.refused == "") || err != nil && !strings.Contains(err.Error(), tt.refused) {
			t.Errorf("node %q as %q: got %v, want a refusal with %q", tt.node, tt.identity, err, tt.refused)
		}
	}
}

// What a policy said before it was changed is no longer in force, whatever it says now.
func TestPolicyIsWhatItSaysNow(t *testing.T) {
	c := newCluster(t)
	c.namespace("shop", nil)
	all := c.watchAll()
	policy := func(action string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": map[string]any{"name": "p", "namespace": "shop"},
			"spec": map[string]any{"action": action, "rules": []any{map[string]any{"to": []any{map[string]any{"operation": map[string]any{"ports": []any{"80"}}}}}}},
		}}
	}
	client := c.Dynamic().Resource(kube.AuthorizationPolicies).Namespace("shop")
	made, err := client.Create(t.Context(), policy("DENY"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantPolicies(t, all, 1, 0)
	custom := policy("CUSTOM") // needs an authorizer that ztunnel cannot ask
	custom.SetResourceVersion(made.GetResourceVersion())
	custom.Object["spec"].(map[string]any)["provider"] = map[string]any{"name": "x"}
	if _, err := client.Update(t.Context(), custom, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	wantPolicies(t, all, 0, 1)
	if err := client.Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	wantPolicies(t, all, 0, 0)
}

func wantPolicies(t *testing.T, all *Cluster, policies, mistakes int) {
	t.Helper()
	testutil.Eventually(t, patience, func() error {
		if s := all.Snapshot(); len(s.AuthorizationPolicies) != policies || len(s.Errors) != mistakes {
			return fmt.Errorf("%d policies and %v, want %d and %d mistakes", len(s.AuthorizationPolicies), s.Errors, policies, mistakes)
		}
		return nil
	})
}

func TestOneLeadsAndTheRootStays(t *testing.T) {
	c := newCluster(t)
	c.namespace("mesh", nil)
	var leading atomic.Int32
	lead := func(ctx context.Context, name string) (began chan struct{}, done chan error) {
		began, done = make(chan struct{}), make(chan error, 1)
		go func() {
			done <- Lead(ctx, c.client, "mesh", name, slog.Default(), func(ctx context.Context) error {
				if n := leading.Add(1); n > 1 {
					t.Errorf("%d lead at once", n)
				}
				defer leading.Add(-1)
				close(began)
				<-ctx.Done()
				return nil
			})
		}()
		return began, done
	}
	firstCtx, stopFirst := context.WithCancel(t.Context())
	first, firstDone := lead(firstCtx, "a")
	await(t, first, "the first leads")
	secondCtx, stopSecond := context.WithCancel(t.Context())
	second, secondDone := lead(secondCtx, "b")
	defer stopSecond()
	select {
	case <-second:
		t.Fatal("both lead")
	case <-time.After(3 * time.Second): // longer than it takes the second to ask once
	}
	root, err := Root(t.Context(), c.client, "mesh", "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	stopFirst()
	if err := <-firstDone; err != nil {
		t.Errorf("first: %v", err)
	}
	await(t, second, "the second leads once the first has ended")
	again, err := Root(t.Context(), c.client, "mesh", "cluster.local")
	if err != nil || string(again.Key) != string(root.Key) || string(again.Cert) != string(root.Cert) {
		t.Errorf("the root changed with the leader (%v)", err)
	}
	stopSecond()
	if err := <-secondDone; err != nil {
		t.Errorf("second: %v", err)
	}
	checkBrokenRootIsRefused(t, c)
}

func checkBrokenRootIsRefused(t *testing.T, c *cluster) {
	t.Helper()
	secret, err := c.client.CoreV1().Secrets("mesh").Get(t.Context(), RootSecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	other, err := controlplane.NewRootPEM("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	secret.Data["root-key.pem"] = other.Key
	if _, err := c.client.CoreV1().Secrets("mesh").Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Root(t.Context(), c.client, "mesh", "cluster.local"); err == nil || !strings.Contains(err.Error(), RootSecret) {
		t.Errorf("a key that is not its certificate's: got %v, want an error that names the secret", err)
	}
}

func await(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("not within %v: %s", patience, what)
	}
}
