// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const patience = 30 * time.Second

// afterOutage is the same once an API that was away is back: each informer waits by itself for up to a minute until it tries.
const afterOutage = 3 * patience

// cluster is an API server, and what a test says to it.
type cluster struct {
	*testing.T
	*kube.APIServer
	client kubernetes.Interface
	wait   time.Duration // how long the API's news may take
}

func newCluster(t *testing.T) *cluster {
	s := kube.NewAPIServer(t)
	return &cluster{T: t, APIServer: s, client: s.Client(), wait: patience}
}

// Start brings the API back.
func (c *cluster) Start() {
	c.Helper()
	c.APIServer.Start()
	c.wait = afterOutage
}

func (c *cluster) namespace(name string, labels map[string]string) {
	c.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := c.client.CoreV1().Namespaces().Create(c.Context(), ns, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
}

// pod makes one that runs on a node.
func (c *cluster) pod(namespace, name, node string, edits ...func(*corev1.Pod)) *corev1.Pod {
	c.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{"example.com/long": strings.Repeat("x", 1000)}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: "web", Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
	}
	for _, edit := range edits {
		edit(p)
	}
	p, err := c.client.CoreV1().Pods(namespace).Create(c.Context(), p, metav1.CreateOptions{})
	if err != nil {
		c.Fatal(err)
	}
	c.phase(p, corev1.PodRunning)
	return p
}

func (c *cluster) phase(p *corev1.Pod, phase corev1.PodPhase) {
	c.Helper()
	c.patch(p, "status", fmt.Sprintf(`{"status":{"phase":%q,"podIP":"10.0.0.9","podIPs":[{"ip":"10.0.0.9"}]}}`, phase))
}

func (c *cluster) patch(p *corev1.Pod, subresource, patch string) {
	c.Helper()
	sub := []string{subresource}
	if subresource == "" {
		sub = nil
	}
	if _, err := c.client.CoreV1().Pods(p.Namespace).Patch(c.Context(), p.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, sub...); err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) labelNamespace(name, value string) {
	c.Helper()
	patch := fmt.Sprintf(`{"metadata":{"labels":{"istio.io/dataplane-mode":%s}}}`, value)
	if _, err := c.client.CoreV1().Namespaces().Patch(c.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		c.Fatal(err)
	}
}

// node starts a source, which stops with the test or by stop.
func (c *cluster) node(dir string, rules controlplane.Rules) (n *Node, stop func()) {
	c.Helper()
	n, err := NewNode(NodeConfig{Client: c.client, NodeName: "n1", Rules: rules, StateDir: dir, SyncWait: time.Second})
	if err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := n.Start(ctx); err != nil {
		c.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = n.Run(ctx) }()
	stop = func() { cancel(); <-done }
	c.Cleanup(stop)
	return n, stop
}

func (c *cluster) wantEnrolled(n *Node, namespace, name string, want bool) {
	c.Helper()
	testutil.Eventually(c, c.wait, func() error {
		if got, why := n.Snapshot().Enrolled(namespace, name); got != want {
			return fmt.Errorf("pod %s/%s: enrolled %v (%s), want %v", namespace, name, got, why, want)
		}
		return nil
	})
}

func ambient(p *corev1.Pod) { p.Labels = map[string]string{"istio.io/dataplane-mode": "ambient"} }

func TestEnrolmentFollowsTheAPI(t *testing.T) {
	c, dir := newCluster(t), t.TempDir()
	c.namespace("shop", nil)
	web := c.pod("shop", "web", "n1")
	c.pod("shop", "elsewhere", "n2")
	c.pod("shop", "host", "n1", ambient, func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	c.pod("shop", "job", "n1")
	c.namespace("kube-system-2", nil)
	c.pod("kube-system-2", "dns", "n1", ambient)
	n, stop := c.node(dir, controlplane.Rules{ExcludedNamespaces: []string{"kube-system-2"}})

	c.wantEnrolled(n, "shop", "web", false)
	if n.Snapshot().Pods[controlplane.Name{Namespace: "shop", Name: "elsewhere"}] != nil {
		t.Error("a pod of another node is known")
	}
	if p := n.Snapshot().Pods[controlplane.Name{Namespace: "shop", Name: "web"}]; len(p.Annotations) > 0 || len(p.Spec.Containers) > 0 {
		t.Errorf("more is kept of a pod than is needed: %v", p.Pod)
	}
	c.labelNamespace("shop", `"ambient"`)
	c.wantEnrolled(n, "shop", "web", true)
	c.wantEnrolled(n, "shop", "host", false)
	c.wantEnrolled(n, "kube-system-2", "dns", false)
	c.patch(web, "", `{"metadata":{"labels":{"istio.io/dataplane-mode":"none"}}}`)
	c.wantEnrolled(n, "shop", "web", false)
	c.patch(web, "", `{"metadata":{"labels":{"istio.io/dataplane-mode":null}}}`)
	c.wantEnrolled(n, "shop", "web", true)
	job, err := c.client.CoreV1().Pods("shop").Get(t.Context(), "job", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.wantEnrolled(n, "shop", "job", true)
	c.phase(job, corev1.PodSucceeded)
	c.wantEnrolled(n, "shop", "job", false)

	testOutage(c, n, stop, dir, web)
}

// With --enablement-selectors the labels that count are those of the list, on pods and namespaces as they are now.
func TestSelectorsFollowTheAPI(t *testing.T) {
	c := newCluster(t)
	selectors, err := controlplane.ParseSelectors(`[{podSelector: {matchLabels: {tier: front}}, namespaceSelector: {matchLabels: {mesh: "on"}}}]`)
	if err != nil {
		t.Fatal(err)
	}
	c.namespace("shop", map[string]string{"mesh": "on"})
	c.namespace("bank", map[string]string{"istio.io/dataplane-mode": "ambient"})
	front := func(p *corev1.Pod) { p.Labels = map[string]string{"tier": "front"} }
	web := c.pod("shop", "web", "n1", front)
	c.pod("shop", "db", "n1")
	c.pod("bank", "web", "n1", front)
	n, _ := c.node(t.TempDir(), controlplane.Rules{Selectors: selectors})
	c.wantEnrolled(n, "shop", "web", true)
	c.wantEnrolled(n, "shop", "db", false)
	c.wantEnrolled(n, "bank", "web", false)
	c.patch(web, "", `{"metadata":{"labels":{"tier":"back"}}}`)
	c.wantEnrolled(n, "shop", "web", false)
	c.patch(web, "", `{"metadata":{"labels":{"tier":"front"}}}`)
	c.wantEnrolled(n, "shop", "web", true)
	off := []byte(`{"metadata":{"labels":{"mesh":"off"}}}`)
	if _, err := c.client.CoreV1().Namespaces().Patch(t.Context(), "shop", types.MergePatchType, off, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantEnrolled(n, "shop", "web", false)
}

// testOutage takes the API away: what is known stays, over a restart too, and what was missed is caught up with.
func testOutage(c *cluster, n *Node, stop func(), dir string, web *corev1.Pod) {
	n.remove(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}) // another of its name; this one was not told of yet
	n.Publish()
	if err := n.Await(c.Context(), "shop", "web", string(web.UID)); err != nil {
		c.Errorf("a pod of a namespace that came back: %v", err)
	}
	c.wantEnrolled(n, "shop", "web", true)
	c.Stop()
	if err := n.Await(c.Context(), "shop", "web", string(web.UID)); err != nil {
		c.Errorf("a known pod while the API is away: %v", err)
	}
	if err := n.Await(c.Context(), "shop", "new", "u"); err == nil || errors.Is(err, ErrUnknownPod) {
		c.Errorf("an unknown pod while the API is away: got %v, want an error other than that it does not exist", err)
	}
	c.wantEnrolled(n, "shop", "web", true)
	stop()
	again, _ := c.node(dir, controlplane.Rules{})
	c.wantEnrolled(again, "shop", "web", true)

	c.Start()
	c.labelNamespace("shop", "null")
	c.wantEnrolled(again, "shop", "web", false)
	c.labelNamespace("shop", `"ambient"`)
	c.wantEnrolled(again, "shop", "web", true)
	fresh := c.pod("shop", "fresh", "n1")
	if err := again.Await(c.Context(), "shop", "fresh", string(fresh.UID)); err != nil {
		c.Errorf("a pod that the API knows: %v", err)
	}
	c.wantEnrolled(again, "shop", "fresh", true)
	if err := again.Await(c.Context(), "shop", "fresh", "another"); !errors.Is(err, ErrUnknownPod) {
		c.Errorf("a pod of another uid: got %v, want ErrUnknownPod", err)
	}
	// Its containers may outlive it: it stays in the mesh until its DEL.
	c.deletePod("shop", "fresh")
	testutil.Eventually(c, c.wait, func() error {
		return again.isDeleted("shop/fresh")
	})
	c.wantEnrolled(again, "shop", "fresh", true)
	c.endNamespace("shop")
	testutil.Eventually(c, c.wait, func() error {
		return again.isDeleted("shop")
	})
	testutil.Eventually(c, c.wait, func() error {
		if again.Snapshot().Knows("shop") {
			return errors.New("a namespace that was deleted passes for one that is there")
		}
		return nil
	})
	again.forgetDeleted(time.Now().Add(-keepDeleted))
	again.Publish()
	c.wantEnrolled(again, "shop", "fresh", true)
	again.forgetDeleted(time.Now().Add(time.Hour))
	again.Publish()
	s := again.Snapshot()
	if s.Pods[controlplane.Name{Namespace: "shop", Name: "fresh"}] != nil || s.Namespaces["shop"] != nil {
		c.Error("a pod that was deleted long ago is still known, or its namespace")
	}
}

// isDeleted returns an error until n was told that the object is gone, which is later than its cache.
func (n *Node) isDeleted(key string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.deleted[key]; !ok {
		return fmt.Errorf("%s is not gone yet", key)
	}
	return nil
}

// endNamespace deletes one, and does what a controller would at the end of that.
func (c *cluster) endNamespace(name string) {
	c.Helper()
	spaces := c.client.CoreV1().Namespaces()
	if err := spaces.Delete(c.Context(), name, metav1.DeleteOptions{}); err != nil {
		c.Fatal(err)
	}
	ns, err := spaces.Get(c.Context(), name, metav1.GetOptions{})
	if err == nil {
		ns.Spec.Finalizers = nil
		_, err = spaces.Finalize(c.Context(), ns, metav1.UpdateOptions{})
	}
	if err != nil {
		c.Fatal(err)
	}
}

// fakeStates stand for an enroller.
type fakeStates struct {
	mu  sync.Mutex
	all []State
}

func (f *fakeStates) set(all ...State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = all
}

func (f *fakeStates) get() []State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.all)
}

// running has a reporter run until the test's end.
func (c *cluster) running(r *Reporter) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	c.Cleanup(func() { cancel(); <-done })
}

func TestReporterAnnotatesAndTells(t *testing.T) {
	c := newCluster(t)
	c.namespace("shop", map[string]string{"istio.io/dataplane-mode": "ambient"})
	web, db, host := c.pod("shop", "web", "n1"), c.pod("shop", "db", "n1"), c.pod("shop", "host", "n1", ambient, func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	n, _ := c.node(t.TempDir(), controlplane.Rules{})
	states := &fakeStates{}
	r := NewReporter(ReporterConfig{Client: c.client, Node: n, States: states.get})
	c.running(r)

	state := State{UID: string(web.UID), Namespace: "shop", Name: "web"}
	pending, absent, enabled := state, state, state
	absent.Problem, absent.Absent = "nothing of it runs", true
	pending.Problem, enabled.Served = "no ztunnel answers", true
	// say tells of the pod, and returns once the reporter has gone by that.
	say := func(all ...State) {
		for _, served := range []bool{true, false, true} { // a pass begins after the one before ended
			states.set(append(all, State{UID: string(db.UID), Namespace: "shop", Name: "db", Served: served, Problem: "none"})...)
			r.Kick()
			c.wantRedirection(db, annotationFor(State{Served: served, Problem: "none"}, true, ""))
		}
	}
	for _, step := range []struct {
		name   string
		states []State
		want   string
	}{
		{"not yet served", []State{state}, ""},
		{"a problem", []State{pending}, "pending"},
		{"served", []State{enabled}, "enabled"},
		{"a new sandbox comes up", []State{state}, "enabled"},
		{"no sandbox", nil, "enabled"},
		{"looked for, and nothing runs", []State{absent}, "enabled"},
		{"a problem again", []State{pending}, "pending"},
		{"no sandbox after that", nil, "pending"},
		{"and nothing runs", []State{absent}, "pending"},
		{"served again", []State{enabled}, "enabled"},
	} {
		say(step.states...)
		if got, err := c.redirection(web); err != nil || got != step.want {
			t.Errorf("%s: annotation is %q, %v, want %q", step.name, got, err, step.want)
		}
	}
	// What somebody else changed, and what was missed while the API was away, is put right.
	c.patch(web, "status", `{"metadata":{"annotations":{"ambient.istio.io/redirection":null}}}`)
	c.wantRedirection(web, "enabled")
	c.Stop()
	states.set(pending)
	r.Kick()
	c.Start()
	c.wantRedirection(web, "pending")
	// Out of the mesh, it is no longer said to be in it.
	states.set(state)
	c.patch(web, "", `{"metadata":{"labels":{"istio.io/dataplane-mode":"none"}}}`)
	c.wantRedirection(web, "")

	c.wantEvent(web, "MeshProblem", "no ztunnel answers")
	c.wantEvent(host, "NotInMesh", "host's network")
	r.Refused("shop", "web", string(web.UID), "its network gave it no address")
	c.wantEvent(web, "MeshRefused", "no address")
}

func (c *cluster) wantRedirection(p *corev1.Pod, want string) {
	c.Helper()
	testutil.Eventually(c, c.wait, func() error {
		if got, err := c.redirection(p); err != nil || got != want {
			return fmt.Errorf("redirection of %s is %q, %v, want %q", p.Name, got, err, want)
		}
		return nil
	})
}

// redirection is what the API says of a pod.
func (c *cluster) redirection(p *corev1.Pod) (string, error) {
	now, err := c.client.CoreV1().Pods(p.Namespace).Get(c.Context(), p.Name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return now.Annotations[annotationRedirection], nil
}

func (c *cluster) wantEvent(p *corev1.Pod, reason, text string) {
	c.Helper()
	testutil.Eventually(c, c.wait, func() error {
		list, err := c.client.CoreV1().Events(p.Namespace).List(c.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		var have []string
		for _, e := range list.Items {
			if e.InvolvedObject.UID == p.UID && e.Reason == reason && strings.Contains(e.Message, text) {
				return nil
			}
			have = append(have, e.InvolvedObject.Name+" "+e.Reason+": "+e.Message)
		}
		return fmt.Errorf("no event %s with %q for %s; have %q", reason, text, p.Name, have)
	})
}

func TestTaintIsRemovedAndOthersStay(t *testing.T) {
	c := newCluster(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
		{Key: NotReadyTaint, Effect: corev1.TaintEffectNoSchedule}, {Key: "example.com/gpu", Effect: corev1.TaintEffectNoSchedule},
	}}}
	if _, err := c.client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := RemoveTaint(t.Context(), c.client, "n1", slog.Default()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := c.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, taint := range got.Spec.Taints {
		if taint.Key == NotReadyTaint {
			t.Errorf("taint %s is still there", NotReadyTaint)
		}
	}
	if !slices.ContainsFunc(got.Spec.Taints, func(x corev1.Taint) bool { return x.Key == "example.com/gpu" }) {
		t.Errorf("taints: got %v, want the other one kept", got.Spec.Taints)
	}
}
