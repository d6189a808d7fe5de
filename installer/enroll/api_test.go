// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/installer/kube"
	"github.com/sluice-mesh/sluice/installer/running"
	labkube "github.com/sluice-mesh/sluice/internal/lab/kube"
)

// apiLab is a lab whose catalog is a real API server.
//
//	API server ─► kube.Node ─► Enroller ─► kube.Reporter ─► API server
type apiLab struct {
	*lab
	server *labkube.APIServer
	api    kubernetes.Interface
	now    atomic.Pointer[Enroller] // the lab's, for the reporter
}

func (a *apiLab) restart() {
	a.t.Helper()
	a.lab.restart()
	a.now.Store(a.e)
}

func newAPILab(t *testing.T) *apiLab {
	server := labkube.NewAPIServer(t)
	a := &apiLab{server: server, api: server.Client()}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	if _, err := a.api.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	node, err := kube.NewNode(kube.NodeConfig{Client: a.api, NodeName: "node1", StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	if err := node.Start(ctx); err != nil {
		t.Fatal(err)
	}
	reporter := kube.NewReporter(kube.ReporterConfig{
		Client: a.api, Node: node, Logger: slog.New(slog.DiscardHandler), States: func() (all []kube.State) {
			for _, s := range a.now.Load().States() {
				all = append(all, kube.State(s))
			}
			return all
		},
	})
	a.lab = newLab(t, func(c *Config) {
		c.Catalog, c.WorkloadsDir = node, ""
		c.Await, c.Changed, c.Refused = node.Await, reporter.Kick, reporter.Refused
		c.Find = (&running.Finder{}).Find
	})
	a.now.Store(a.e)
	wg.Go(func() { _ = node.Run(ctx) })
	wg.Go(func() { _ = reporter.Run(ctx) })
	return a
}

// run is what kubelet and the runtime make of a pod.
func (a *apiLab) run(name string, labels map[string]string) *sandbox {
	a.t.Helper()
	p, err := a.api.CoreV1().Pods("shop").Create(a.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec:       corev1.PodSpec{NodeName: "node1", ServiceAccountName: "web", Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
	}, metav1.CreateOptions{})
	a.must(err)
	s := a.pod("shop", name)
	s.api.UID = string(p.UID)
	return s
}

func (a *apiLab) label(value string) {
	a.t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"labels":{"istio.io/dataplane-mode":%s}}}`, value)
	_, err := a.api.CoreV1().Namespaces().Patch(a.t.Context(), "shop", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	a.must(err)
}

func (a *apiLab) finish(name string) {
	a.t.Helper()
	_, err := a.api.CoreV1().Pods("shop").Patch(a.t.Context(), name, types.MergePatchType, []byte(`{"status":{"phase":"Succeeded"}}`), metav1.PatchOptions{}, "status")
	a.must(err)
}

// want waits until the pod is attached or not, and its annotation says so.
func (a *apiLab) want(s *sandbox, attached bool, redirection string) {
	a.t.Helper()
	a.eventually(func() error {
		p, err := a.api.CoreV1().Pods("shop").Get(a.t.Context(), s.api.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := p.Annotations["ambient.istio.io/redirection"]; s.attached() != attached || got != redirection {
			return fmt.Errorf("%s: attached %v, redirection %q; want %v, %q", s.api.Name, s.attached(), got, attached, redirection)
		}
		return nil
	})
}

func TestPodsAreEnrolledAsTheAPISays(t *testing.T) {
	a := newAPILab(t)
	z := a.ztunnel("z1")
	label := map[string]string{"istio.io/dataplane-mode": "ambient"}

	// Asked at once: the watch may not have told of the pod yet.
	web := a.run("web", label).mustAdd()
	if !web.attached() {
		t.Error("the pod started outside the mesh, although the API says that it belongs in")
	}
	a.want(web, true, "enabled")
	if !a.e.MayImpersonate("spiffe://cluster.local/ns/shop/sa/web") {
		t.Error("ztunnel may not act for the service account that the API names")
	}
	plain := a.run("plain", nil).mustAdd()
	a.want(plain, false, "")
	a.label(`"ambient"`)
	a.want(plain, true, "enabled")
	a.label("null")
	a.want(plain, false, "")
	a.want(web, true, "enabled")

	a.finish("web")
	a.want(web, false, "")
	testAPIAway(a, z)
}

// testAPIAway takes the API away while pods come.
func testAPIAway(a *apiLab, z *ztunnel) {
	a.t.Helper()
	label := map[string]string{"istio.io/dataplane-mode": "ambient"}
	db := a.run("db", label).mustAdd()
	a.want(db, true, "enabled")
	a.server.Stop()
	stranger := a.pod("shop", "stranger")
	if err := stranger.add(); err == nil || !strings.Contains(err.Error(), "stranger") {
		a.t.Errorf("a pod that nobody could be asked about, in a namespace with pods in the mesh: got %v, want a refusal that names it", err)
	}
	a.restart() // the agent's other half; what the API said stays
	z.waitEvent("snapshot")
	if !db.attached() {
		a.t.Error("a pod left the mesh while the API was away")
	}
	a.server.Start()
	a.want(db, true, "enabled")
	z.mu.Lock()
	z.refuse = "no memory"
	z.mu.Unlock()
	late := a.run("late", nil).mustAdd()
	a.label(`"ambient"`)
	a.want(late, false, "pending")
	a.wantEvent("late", "MeshProblem", "no memory")
	z.mu.Lock()
	z.refuse = ""
	z.mu.Unlock()
	a.want(late, true, "enabled")
}

func (a *apiLab) wantEvent(pod, reason, text string) {
	a.t.Helper()
	a.eventually(func() error {
		ctx, cancel := context.WithTimeout(a.t.Context(), 5*time.Second)
		defer cancel()
		list, err := a.api.CoreV1().Events("shop").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Name == pod && e.Reason == reason && strings.Contains(e.Message, text) {
				return nil
			}
		}
		return fmt.Errorf("no event %s with %q for %s", reason, text, pod)
	})
}
