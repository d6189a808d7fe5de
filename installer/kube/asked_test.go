// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"net/http"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// lateWatch is an API of which the watch of pods fails while it is blind, as that of an informer that waits after an outage.
type lateWatch struct {
	http.RoundTripper
	blind   atomic.Bool
	patches atomic.Int64
}

func (l *lateWatch) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPatch {
		l.patches.Add(1)
	}
	if l.blind.Load() && r.URL.Path == "/api/v1/pods" {
		return nil, errors.New("the watch is to be late")
	}
	return l.RoundTripper.RoundTrip(r)
}

// A pod starts as soon as the API answers again, and is one of the mesh for its peers, however long the watch waits. It is
// not forgotten if it went before the watch could tell, and its name may have been another's.
func TestPodsThatTheWatchHasNotToldOf(t *testing.T) {
	c := newCluster(t)
	late := &lateWatch{}
	cfg := rest.CopyConfig(c.RESTConfig())
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { late.RoundTripper = next; return late })
	watching := *c
	watching.client = kubernetes.NewForConfigOrDie(cfg)
	c.namespace("shop", map[string]string{"istio.io/dataplane-mode": "ambient"})
	before := c.pod("shop", "web", "n1")
	n, _ := watching.node(t.TempDir(), controlplane.Rules{})
	states := &fakeStates{}
	r := NewReporter(ReporterConfig{Client: watching.client, Node: n, States: states.get})
	c.running(r)

	late.blind.Store(true)
	c.Stop()
	c.Start()
	c.deletePod("shop", "web")
	web, db := c.pod("shop", "web", "n1"), c.pod("shop", "db", "n1")
	var served []State
	for _, p := range []*corev1.Pod{web, db} { // A pass begins after the one before ended.
		if err := n.Await(t.Context(), "shop", p.Name, string(p.UID)); err != nil {
			t.Fatal(err)
		}
		c.wantEnrolled(n, "shop", p.Name, true)
		served = append(served, State{UID: string(p.UID), Namespace: "shop", Name: p.Name, Served: true})
		states.set(served...)
		r.Kick()
		c.wantRedirection(p, "enabled")
	}
	if got := late.patches.Load(); got != 2 {
		t.Errorf("%d patches for two pods", got)
	}
	if n.remove(before); n.isDeleted("shop/web") == nil {
		t.Error("a pod went with the one that had its name before")
	}

	n.askAgain(t.Context())
	if n.isDeleted("shop/web") == nil {
		t.Error("a pod that the API has was taken for gone")
	}
	c.deletePod("shop", "web")
	n.askAgain(t.Context())
	if err := n.isDeleted("shop/web"); err != nil {
		t.Error(err)
	}
	late.blind.Store(false)
	testutil.Eventually(t, c.wait, func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(n.asked) > 0 {
			return errors.New("what the watch tells of is still asked for")
		}
		return nil
	})
	c.wantEnrolled(n, "shop", "db", true)
}

func (c *cluster) deletePod(namespace, name string) {
	c.Helper()
	now := int64(0)
	if err := c.client.CoreV1().Pods(namespace).Delete(c.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		c.Fatal(err)
	}
}
