// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-mesh/sluice/internal/atomicfile"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const (
	ambientNamespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}\n"
	plainNamespace   = "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n"
	strictMesh       = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n"
)

// waitFor is generous: it passes as soon as what it waits for is there.
const waitFor = 10 * time.Second

// logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) count(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.buf.String(), text)
}

func (b *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// env is a pair of folders and a catalog that watches them.
type env struct {
	*Catalog
	t         *testing.T
	manifests string
	workloads string
	saved     string
	logs      *logBuffer
}

func newEnv(t *testing.T, files map[string]string) *env {
	t.Helper()
	e := &env{t: t, manifests: t.TempDir(), workloads: filepath.Join(t.TempDir(), "workloads"), saved: filepath.Join(t.TempDir(), "saved"), logs: &logBuffer{}}
	for name, text := range files {
		e.write(name, text)
	}
	e.restart()
	return e
}

// restart makes a new catalog of the same folders.
func (e *env) restart() {
	e.t.Helper()
	c, err := NewCatalog(CatalogConfig{ManifestsDir: e.manifests, WorkloadsDir: e.workloads, LastGoodDir: e.saved, Logger: e.logs.logger()})
	if err != nil {
		e.t.Fatal(err)
	}
	e.Catalog = c
}

// watch runs the catalog until the test ends.
func (e *env) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	e.t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			e.t.Errorf("run: %v", err)
		}
	})
}

func (e *env) write(name, text string) {
	e.t.Helper()
	if err := os.WriteFile(filepath.Join(e.manifests, name), []byte(text), 0o644); err != nil {
		e.t.Fatal(err)
	}
}

func (e *env) remove(name string) {
	e.t.Helper()
	if err := os.Remove(filepath.Join(e.manifests, name)); err != nil {
		e.t.Fatal(err)
	}
}

func (e *env) wantEnrolled(namespace, pod string, want bool) {
	e.t.Helper()
	testutil.Eventually(e.t, waitFor, func() error {
		if got, why := e.Enrolled(namespace, pod); got != want {
			return fmt.Errorf("enrolled %s/%s: got %v (%s), want %v", namespace, pod, got, why, want)
		}
		return nil
	})
}

// wantErrors waits until the catalog's errors are as many as the given texts and each contains its own.
func (e *env) wantErrors(texts ...string) {
	e.t.Helper()
	testutil.Eventually(e.t, waitFor, func() error {
		errs := e.Errors()
		if len(errs) != len(texts) {
			return fmt.Errorf("got errors %v, want %d", errs, len(texts))
		}
		for i, text := range texts {
			if !strings.Contains(errs[i].Error(), text) {
				return fmt.Errorf("got error %v, want one with %q", errs[i], text)
			}
		}
		return nil
	})
}

func TestCatalogFollowsTheFolder(t *testing.T) {
	e := newEnv(t, nil)
	e.watch()
	changes, cancel := e.Subscribe()
	defer cancel()
	e.wantEnrolled("demo", "a", false)
	e.write("ns.yaml", ambientNamespace)
	e.wantEnrolled("demo", "a", true)
	select {
	case <-changes:
	case <-time.After(waitFor):
		t.Error("no signal for the change")
	}
	e.write("ns.yaml", plainNamespace)
	e.wantEnrolled("demo", "a", false)
	e.write("ns.yaml", ambientNamespace)
	e.wantEnrolled("demo", "a", true)
	e.remove("ns.yaml")
	e.wantEnrolled("demo", "a", false)
}

func TestBadManifestKeepsItsLastGoodState(t *testing.T) {
	e := newEnv(t, map[string]string{"ns.yaml": ambientNamespace, "strict.yaml": strictMesh})
	e.watch()
	e.write("ns.yaml", ambientNamespace+"---\napiVersion: v1\nkind: Namespace\nmetadata:\n  nmae: x\n")
	e.wantErrors("ns.yaml:8: unknown field \"metadata.nmae\"")
	e.wantEnrolled("demo", "a", true)
	// Other files go on; the broken one stays reported, and is logged once.
	e.write("other.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {istio.io/dataplane-mode: ambient}}\n")
	e.wantEnrolled("other", "a", true)
	e.Reload()
	e.wantErrors("ns.yaml:8")
	if got := e.logs.count("ns.yaml:8"); got != 1 {
		t.Errorf("the mistake was logged %d times, want once", got)
	}
	// Another mistake is another log line.
	e.write("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo, labels: [}\n")
	e.wantErrors("ns.yaml:3: yaml: ")
	e.wantEnrolled("demo", "a", true)
	e.write("ns.yaml", plainNamespace)
	e.wantErrors()
	e.wantEnrolled("demo", "a", false)
}

func TestEmptiedManifestKeepsItsLastGoodState(t *testing.T) {
	e := newEnv(t, map[string]string{"strict.yaml": strictMesh})
	e.write("strict.yaml", "")
	e.Reload()
	e.wantErrors("strict.yaml: file is empty")
	if got := len(e.Snapshot().PeerAuthentications); got != 1 {
		t.Errorf("got %d policies, want the one from before", got)
	}
	e.write("strict.yaml", "# nothing in force\n")
	e.Reload()
	e.wantErrors()
	if got := len(e.Snapshot().PeerAuthentications); got != 0 {
		t.Errorf("got %d policies, want none: the file says so on purpose", got)
	}
}

func TestBrokenManifestSurvivesARestart(t *testing.T) {
	e := newEnv(t, map[string]string{"strict.yaml": strictMesh, "gone.yaml": ambientNamespace})
	e.write("strict.yaml", "apiVersion: [\n")
	e.remove("gone.yaml")
	e.restart()
	e.wantErrors("strict.yaml:")
	if got := len(e.Snapshot().PeerAuthentications); got != 1 {
		t.Errorf("got %d policies, want the last good one", got)
	}
	e.write("gone.yaml", "broken: [\n")
	e.restart()
	e.wantErrors("gone.yaml:", "strict.yaml:")
	if got := len(e.Snapshot().Namespaces); got != 0 {
		t.Errorf("got %d namespaces, want none: the file had been removed", got)
	}
	e.remove("gone.yaml")
	e.remove("strict.yaml")
	e.restart()
	if got := len(e.Snapshot().PeerAuthentications); got != 0 {
		t.Errorf("got %d policies, want none: the file is gone", got)
	}
}

func TestOtherFilesOfTheFolderAreIgnored(t *testing.T) {
	e := newEnv(t, map[string]string{
		".hidden.yaml": "broken: [", "#autosave#.yaml": "broken: [", "ns.yaml~": "broken: [", "ns.yaml.swp": "broken: [",
		"4913": "broken: [", "README.md": "broken: [", atomicfile.TempPrefix + "ns.yaml": "broken: [",
		"ns.yml": ambientNamespace,
	})
	e.wantErrors()
	e.wantEnrolled("demo", "a", true)
}

func TestUnreadableFilesAreNamed(t *testing.T) {
	e := newEnv(t, nil)
	if err := os.Mkdir(filepath.Join(e.manifests, "a.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(e.manifests, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	big, err := os.Create(filepath.Join(e.manifests, "c.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(big.Truncate(maxFileBytes+1), big.Close()); err != nil {
		t.Fatal(err)
	}
	e.Reload()
	e.wantErrors("a.yaml: is not a regular file", "c.yaml: is larger than")
}

func TestMountedConfigMapIsFollowed(t *testing.T) {
	e := newEnv(t, nil)
	e.watch()
	// The kubelet swaps a link to a folder; no file in the folder that is watched is written.
	for i, text := range []string{ambientNamespace, plainNamespace, ambientNamespace} {
		version := filepath.Join(e.manifests, fmt.Sprintf("..v%d", i))
		if err := os.Mkdir(version, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(version, "ns.yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		data := filepath.Join(e.manifests, "..data")
		if err := errors.Join(os.Symlink(version, data+"_tmp"), os.Rename(data+"_tmp", data)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := os.Symlink(filepath.Join("..data", "ns.yaml"), filepath.Join(e.manifests, "ns.yaml")); err != nil {
				t.Fatal(err)
			}
		}
		e.wantEnrolled("demo", "a", text == ambientNamespace)
	}
}

func TestRemovedFolderKeepsItsState(t *testing.T) {
	e := newEnv(t, map[string]string{"ns.yaml": ambientNamespace})
	moved := e.manifests + "-away"
	if err := os.Rename(e.manifests, moved); err != nil {
		t.Fatal(err)
	}
	e.Reload()
	e.wantErrors("no such file")
	e.wantEnrolled("demo", "a", true)
	if err := os.Rename(moved, e.manifests); err != nil {
		t.Fatal(err)
	}
	e.Reload()
	e.wantErrors()
}

func TestFolderMissingAtTheStartIsRestoredAndFoundAgain(t *testing.T) {
	e := newEnv(t, map[string]string{"ns.yaml": ambientNamespace, "broken.yaml": strictMesh})
	moved := e.manifests + "-away"
	if err := os.Rename(e.manifests, moved); err != nil {
		t.Fatal(err)
	}
	e.restart()
	e.watch()
	e.wantErrors("no such file")
	e.wantEnrolled("demo", "a", true)
	if got := len(e.Snapshot().PeerAuthentications); got != 1 {
		t.Errorf("got %d policies, want 1", got)
	}
	if err := os.Rename(moved, e.manifests); err != nil {
		t.Fatal(err)
	}
	e.wantErrors()
	e.remove("ns.yaml")
	e.wantEnrolled("demo", "a", false)
}

func TestMissingManifestsFolderIsAnError(t *testing.T) {
	_, err := NewCatalog(CatalogConfig{ManifestsDir: filepath.Join(t.TempDir(), "none"), WorkloadsDir: t.TempDir()})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want not exist", err)
	}
}

func TestObjectNamedTwice(t *testing.T) {
	e := newEnv(t, map[string]string{"a.yaml": ambientNamespace, "b.yaml": "---\n" + plainNamespace})
	e.wantErrors("b.yaml:2: Namespace demo is already defined at " + filepath.Join(e.manifests, "a.yaml:1"))
	e.wantEnrolled("demo", "x", true)
	e.Reload()
	e.remove("a.yaml")
	e.Reload()
	e.wantErrors()
	e.wantEnrolled("demo", "x", false)
	if got := e.logs.count("already defined"); got != 1 {
		t.Errorf("the conflict was logged %d times, want once", got)
	}
}

func TestListIsReadItemByItem(t *testing.T) {
	e := newEnv(t, map[string]string{"list.json": `{"apiVersion": "v1", "kind": "List", "items": [
		{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": {"istio.io/dataplane-mode": "ambient"}}},
		{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}]}`})
	e.wantErrors()
	e.wantEnrolled("a", "x", true)
	if got := e.Snapshot().Pods[Name{Namespace: "default", Name: "p"}]; got == nil || got.Origin.Line != 3 {
		t.Errorf("got %+v, want pod default/p from line 3", got)
	}
}

func TestEnrolled(t *testing.T) {
	ambient, none := map[string]string{labelDataplaneMode: modeAmbient}, map[string]string{labelDataplaneMode: modeNone}
	pod := func(labels map[string]string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: labels}}
	}
	host := pod(ambient)
	host.Spec.HostNetwork = true
	sidecar := pod(ambient)
	sidecar.Annotations = map[string]string{annotationSidecar: "{}"}
	for name, c := range map[string]struct {
		namespace map[string]string
		pod       *corev1.Pod
		want      bool
	}{
		"namespace, pod unknown":       {ambient, nil, true},
		"namespace, pod silent":        {ambient, pod(nil), true},
		"namespace, pod opts out":      {ambient, pod(none), false},
		"namespace, host network":      {ambient, host, false},
		"namespace, sidecar":           {ambient, sidecar, false},
		"namespace unknown":            {nil, nil, false},
		"namespace none, pod opts in":  {none, pod(ambient), true},
		"pod opts in":                  {nil, pod(ambient), true},
		"pod opts in, host network":    {nil, host, false},
		"other value":                  {map[string]string{labelDataplaneMode: "sidecar"}, nil, false},
		"other value of pod, ambient":  {ambient, pod(map[string]string{labelDataplaneMode: "x"}), true},
		"namespace none, pod unknown ": {none, nil, false},
	} {
		if got, why := Enrolled(c.namespace, c.pod); got != c.want || why == "" {
			t.Errorf("%s: got %v (%q), want %v with a reason", name, got, why, c.want)
		}
	}
}

func runningPod(name, node, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name, Labels: map[string]string{"app": "stale"}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: "bound"},
		Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

func TestWorkloadFileTakesLabelsFromTheManifest(t *testing.T) {
	e := newEnv(t, map[string]string{"pod.yaml": `
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: demo, labels: {app: web}}
spec:
  serviceAccountName: edited-later
  containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]
`})
	if err := WriteWorkload(e.workloads, runningPod("a", "node1", "10.0.0.1")); err != nil {
		t.Fatal(err)
	}
	e.Reload()
	e.wantErrors()
	got := e.Snapshot().Workloads[Name{Namespace: "demo", Name: "a"}]
	if got == nil {
		t.Fatal("workload is missing")
	}
	if got.Labels["app"] != "web" || len(got.Spec.Containers) != 1 {
		t.Errorf("got labels %v, %d containers, want those of the manifest", got.Labels, len(got.Spec.Containers))
	}
	if got.Spec.ServiceAccountName != "bound" || got.Annotations[annotationRedirect] != redirectEnabled {
		t.Errorf("got account %q, annotations %v, want what the agent wrote", got.Spec.ServiceAccountName, got.Annotations)
	}
	if err := RemoveWorkload(e.workloads, "node1", "demo", "a"); err != nil {
		t.Fatal(err)
	}
	e.Reload()
	if got := len(e.Snapshot().Workloads); got != 0 {
		t.Errorf("got %d workloads after removal, want 0", got)
	}
	if err := RemoveWorkload(e.workloads, "node1", "demo", "a"); err != nil {
		t.Errorf("removing again: %v", err)
	}
}

func TestPodThatMovedIsWhereItWasWrittenLast(t *testing.T) {
	e := newEnv(t, nil)
	for _, w := range []struct{ node, ip string }{{"node2", "10.0.2.1"}, {"node1", "10.0.1.1"}} {
		if err := WriteWorkload(e.workloads, runningPod("a", w.node, w.ip)); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(workloadPath(e.workloads, "node1", "demo", "a"), old, old); err != nil {
		t.Fatal(err)
	}
	e.Reload()
	got := e.Snapshot().Workloads[Name{Namespace: "demo", Name: "a"}]
	if got == nil || got.Spec.NodeName != "node2" {
		t.Errorf("got %v, want the younger file, of node2", got)
	}
	if err := RemoveWorkload(e.workloads, "node1", "demo", "a"); err != nil {
		t.Fatal(err)
	}
	e.Reload()
	if got := e.Snapshot().Workloads[Name{Namespace: "demo", Name: "a"}]; got == nil {
		t.Error("node1 took node2's file away")
	}
}

func TestWorkloadsFolderHoldsPodsOnly(t *testing.T) {
	e := newEnv(t, nil)
	path := filepath.Join(e.workloads, "x.yaml")
	if err := os.WriteFile(path, []byte(ambientNamespace+"---\n"+strictMesh), 0o600); err != nil {
		t.Fatal(err)
	}
	e.Reload()
	e.wantErrors("2 objects are ignored: the workloads folder holds pods only")
	e.wantEnrolled("demo", "a", false)
	if got := len(e.Snapshot().PeerAuthentications); got != 0 {
		t.Errorf("got %d policies, want 0", got)
	}
}

func TestWriteWorkloadRefusesWhatOthersCannotRead(t *testing.T) {
	dir := t.TempDir()
	err := WriteWorkload(dir, runningPod("a", "node1", "10.0.0"))
	if err == nil || !strings.Contains(err.Error(), `"10.0.0" is no IP address`) {
		t.Errorf("got %v, want an error about the address", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left %v behind", entries)
	}
}
