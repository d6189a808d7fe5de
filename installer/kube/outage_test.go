// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// withoutPolicies takes Istio's kinds out of the cluster until install is called.
func (c *cluster) withoutPolicies() (install func()) {
	c.Helper()
	var taken []*unstructured.Unstructured
	for _, kind := range policies {
		d, err := c.Dynamic().Resource(definitions).Get(c.Context(), kind.GroupResource().String(), metav1.GetOptions{})
		if err != nil {
			c.Fatal(err)
		}
		if err := c.Dynamic().Resource(definitions).Delete(c.Context(), d.GetName(), metav1.DeleteOptions{}); err != nil {
			c.Fatal(err)
		}
		unstructured.RemoveNestedField(d.Object, "status")
		d.SetResourceVersion("")
		d.SetUID("")
		taken = append(taken, d)
		testutil.Eventually(c, patience, func() error {
			if _, err := c.Dynamic().Resource(kind).List(c.Context(), metav1.ListOptions{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("%s is still served: %v", kind.Resource, err)
			}
			return nil
		})
	}
	return func() {
		for _, d := range taken {
			if _, err := c.Dynamic().Resource(definitions).Create(c.Context(), d, metav1.CreateOptions{}); err != nil {
				c.Fatal(err)
			}
		}
	}
}

func TestPolicyKindsMayComeLater(t *testing.T) {
	c := newCluster(t)
	c.namespace("shop", nil)
	c.pod("shop", "web", "n1")
	install := c.withoutPolicies()
	all := c.watchAll() // does not wait for them
	if all.Snapshot().Pods[controlplane.Name{Namespace: "shop", Name: "web"}] == nil {
		t.Fatal("pod is not known")
	}
	install()
	policy := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": map[string]any{"name": "nobody", "namespace": "shop"}, "spec": map[string]any{},
	}}
	testutil.Eventually(t, patience, func() error {
		_, err := c.Dynamic().Resource(kube.AuthorizationPolicies).Namespace("shop").Create(t.Context(), policy, metav1.CreateOptions{})
		return err
	})
	wantPolicies(t, all, 1, 0)
}

func TestOutageKeepsWhatIsKnown(t *testing.T) {
	c := newCluster(t)
	c.namespace("mesh", nil)
	c.serviceAccount("mesh", "ztunnel")
	zt := c.pod("mesh", "zt", "n1", as("ztunnel"))
	c.namespace("shop", nil)
	web := c.pod("shop", "web", "n1")
	all := c.watchAll()
	tokens := NewTokens(c.client, all, []string{"mesh/ztunnel"})
	known, fresh := c.token("mesh/ztunnel", zt, TokenAudience), c.token("mesh/ztunnel", zt, TokenAudience)
	if _, err := tokens.Admit(t.Context(), known); err != nil {
		t.Fatal(err)
	}

	c.Stop()
	if _, err := tokens.Admit(t.Context(), known); err != nil {
		t.Errorf("token that the API had just found good: %v", err)
	}
	if _, err := tokens.Admit(t.Context(), fresh); status.Code(err) != codes.Unavailable {
		t.Errorf("token that nobody can be asked about: got %v, want Unavailable", err)
	}
	if all.MayImpersonate("n1", "spiffe://cluster.local/ns/shop/sa/web") != nil {
		t.Error("a pod is forgotten during an outage")
	}
	c.Start()
	c.deletePod("shop", web.Name)
	testutil.Eventually(t, c.wait, func() error {
		if all.MayImpersonate("n1", "spiffe://cluster.local/ns/shop/sa/web") == nil {
			return errors.New("what changed since the outage is not known")
		}
		return nil
	})
	if _, err := tokens.Admit(t.Context(), fresh); err != nil {
		t.Errorf("after the outage: %v", err)
	}
}

// TestWhatAStoppedAgentMissed changes labels and deletes a pod while nobody watches.
func TestWhatAStoppedAgentMissed(t *testing.T) {
	c, dir := newCluster(t), t.TempDir()
	c.namespace("shop", map[string]string{"istio.io/dataplane-mode": "ambient"})
	c.pod("shop", "web", "n1")
	c.pod("shop", "gone", "n1")
	n, stop := c.node(dir, controlplane.Rules{})
	c.wantEnrolled(n, "shop", "web", true)
	testutil.Eventually(t, patience, func() error {
		if data, err := os.ReadFile(n.lastPath()); err != nil || !strings.Contains(string(data), `"gone"`) {
			return fmt.Errorf("what is known is not kept yet: %s, %v", data, err)
		}
		return nil
	})
	stop()
	c.labelNamespace("shop", "null")
	c.deletePod("shop", "gone")
	again, _ := c.node(dir, controlplane.Rules{})
	c.wantEnrolled(again, "shop", "web", false)
	// Known until its sandbox is gone, but nobody is to look for it.
	if p := again.Snapshot().Pods[controlplane.Name{Namespace: "shop", Name: "gone"}]; p == nil || p.DeletionTimestamp == nil {
		t.Errorf("pod that was deleted meanwhile: got %v, want it marked as deleted", p)
	}
}

// counting counts reviews of tokens on their way to the API.
type counting struct {
	http.RoundTripper
	reviews atomic.Int32
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/tokenreviews") {
		c.reviews.Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

func TestAPIIsAskedOnceAboutAToken(t *testing.T) {
	c := newCluster(t)
	c.namespace("mesh", nil)
	c.serviceAccount("mesh", "ztunnel")
	zt := c.pod("mesh", "zt", "n1", as("ztunnel"))
	all := c.watchAll()
	count := &counting{}
	rc := c.RESTConfig()
	rc.Wrap(func(next http.RoundTripper) http.RoundTripper { count.RoundTripper = next; return count })
	tokens := NewTokens(kubernetes.NewForConfigOrDie(rc), all, []string{"mesh/ztunnel"})
	good := c.token("mesh/ztunnel", zt, TokenAudience)
	for name, tt := range map[string]struct {
		token string
		good  bool
		asked int32
	}{
		"good":                {good, true, 1},
		"forged":              {forged(good, 1), false, 1},
		"of another audience": {c.token("mesh/ztunnel", zt, "elsewhere"), false, 0},
	} {
		count.reviews.Store(0)
		for range 5 {
			if _, err := tokens.Admit(t.Context(), tt.token); (err == nil) != tt.good {
				t.Errorf("%s token: got %v", name, err)
			}
		}
		if n := count.reviews.Load(); n != tt.asked {
			t.Errorf("%s token: the API was asked %d times, want %d", name, n, tt.asked)
		}
	}
}
