// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// process runs in the namespace of a sandbox and in the cgroup that kubelet makes for a container of pod uid.
//
//	/sys/fs/cgroup/[unified/]sl-RANDOM/kubepods/podUID/CONTAINER
func (s *sandbox) process(uid, container string) {
	s.l.t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		root = filepath.Join(root, "pids") // cgroup v1
	}
	top := filepath.Join(root, "sl-"+strings.ToLower(rand.Text()[:8]))
	dir := filepath.Join(top, "kubepods", "pod"+uid, container)
	s.l.must(os.MkdirAll(dir, 0o755))
	cmd := exec.Command("nsenter", "--net="+s.Path, "sleep", "infinity")
	s.l.must(cmd.Start())
	s.l.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for at := dir; at != root; at = filepath.Dir(at) {
			testutil.Eventually(s.l.t, patience, func() error { // busy until the kernel has taken the process apart
				if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
				return nil
			})
		}
	})
	s.l.must(os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0o644))
	want, err := os.Stat(s.Path)
	s.l.must(err)
	s.l.eventually(func() error {
		got, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
		if err == nil && !os.SameFile(got, want) {
			err = errors.New("process is not in the pod's namespace yet")
		}
		return err
	})
}

// runs makes a pod whose ADD no agent heard. It has no process yet.
func (a *apiLab) runs(name string, labels map[string]string) *sandbox {
	a.t.Helper()
	s := a.run(name, labels)
	s.api.ContainerID = strings.ToLower(rand.Text())
	status, err := json.Marshal(map[string]any{"status": corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: s.Addr4.String(), PodIPs: []corev1.PodIP{{IP: s.Addr4.String()}, {IP: s.Addr6.String()}},
	}})
	a.must(err)
	_, err = a.api.CoreV1().Pods("shop").Patch(a.t.Context(), name, types.MergePatchType, status, metav1.PatchOptions{}, "status")
	a.must(err)
	return s
}

func (a *apiLab) labelPod(name, value string) {
	a.t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"labels":{"istio.io/dataplane-mode":%q}}}`, value)
	_, err := a.api.CoreV1().Pods("shop").Patch(a.t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	a.must(err)
}

func TestPodsThatRanBeforeTheAgentAreEnrolled(t *testing.T) {
	a := newAPILab(t)
	z := a.ztunnel("z1")
	ambient := map[string]string{"istio.io/dataplane-mode": "ambient"}

	old := a.runs("old", ambient)
	old.process(old.api.UID, old.api.ContainerID)
	a.want(old, true, "enabled")
	if got := old.status(); got.Netns != old.Path || len(got.Addresses) != 2 || old.slots() == 0 {
		t.Errorf("found pod: got %+v, want what its ADD would have told: netns %s, addresses %v and %v", got, old.Path, old.Addr4, old.Addr6)
	}
	a.labelPod("old", "none")
	a.want(old, false, "")
	a.labelPod("old", "ambient")
	a.want(old, true, "enabled")
	a.restart()
	z.waitEvent("snapshot")
	a.want(old, true, "enabled")

	later := a.runs("later", nil) // wanted only long after it started
	later.process(later.api.UID, later.api.ContainerID)
	a.label(`"ambient"`)
	a.want(later, true, "enabled")
	a.label("null")
	a.want(later, false, "")

	a.must(old.del())
	if old.attached() {
		t.Error("the pod is attached after its DEL")
	}
}

func TestPodThatIsNotFoundIsToldAndLookedForAgain(t *testing.T) {
	a := newAPILab(t)
	a.ztunnel("z1")
	ambient := map[string]string{"istio.io/dataplane-mode": "ambient"}
	lost := a.runs("lost", ambient)
	a.wantEvent("lost", "MeshProblem", "ran before the agent came to its node")
	a.want(lost, false, "pending")

	// Another pod's namespace, in which somebody has got a process of that cgroup.
	other := a.pod("shop", "other")
	other.process(lost.api.UID, lost.api.ContainerID)
	a.wantEvent("lost", "MeshProblem", "does not have the pod's address")
	a.want(lost, false, "pending")

	lost.process(lost.api.UID, lost.api.ContainerID)
	a.want(lost, true, "enabled")
	if got := lost.status(); got.Netns != lost.Path || got.Problem != "" {
		t.Errorf("found at last: got %+v, want netns %s and no problem", got, lost.Path)
	}
}
