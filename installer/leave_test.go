// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-mesh/sluice/installer/cniconf"
	"github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// uninstalled is an agent's node whose DaemonSet is deleted.
type uninstalled struct {
	*kept
	place  *place
	server *kube.APIServer
}

// run starts an agent, deletes its DaemonSet once the log has a word, and ends the agent.
func (u *uninstalled) run(until string, prepare func()) (log *output) {
	u.t.Helper()
	sets := u.server.Client().AppsV1().DaemonSets("default")
	labels := map[string]string{"app": "agent"}
	_, err := sets.Create(u.t.Context(), &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "agent"},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: "agent:1"}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		u.t.Fatal(err)
	}
	log, stop := u.place.startWith("--source", "api", "--kubeconfig", u.server.Kubeconfig(), "--xds-address", "unix:///nobody",
		"--own-namespace", "default", "--own-daemonset", "agent", "--plugin", u.path("plugin/sluice-cni"),
		"--cni-conf-dir", auto, "--cni-bin-dir", auto, "--host-root", u.root)
	waitLog(u.t, log, until)
	prepare()
	// Nobody is there to finish a deletion in the foreground: the set stays, marked.
	foreground := metav1.DeletePropagationForeground
	if err := sets.Delete(u.t.Context(), "agent", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		u.t.Fatal(err)
	}
	stop()
	return log
}

// files are the names in the agent's two folders.
func (u *uninstalled) files() (names []string) {
	u.t.Helper()
	for _, dir := range []string{"run", "state"} {
		entries, err := os.ReadDir(u.place.path(dir))
		if err != nil {
			u.t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, dir+"/"+e.Name())
		}
	}
	return names
}

// TestUninstallNeverBlocksTheNode: where the entry may stay the plugin lets all pods pass, as no agent comes to repair it.
func TestUninstallNeverBlocksTheNode(t *testing.T) {
	for name, tc := range map[string]struct {
		until   string
		before  func(*uninstalled) // the agent starts
		prepare func(*uninstalled) // before it ends
		left    []string
	}{
		"entry is out": {"agent ready", func(*uninstalled) {}, func(*uninstalled) {}, nil},
		"entry stays": {"agent ready", func(*uninstalled) {}, func(u *uninstalled) {
			u.write("etc/cni/net.d/other/"+cniconf.DropInName+"/full", "") // cannot be removed as a file can
		}, []string{"state/enrolment.json"}},
		"slow runtime": {"waiting for a CNI configuration", func(u *uninstalled) {
			list, err := cniconf.Insert([]byte(keptConf), cniconf.Entry{AgentSocket: "/run/a.sock"}) // of an agent before
			if err != nil {
				t.Fatal(err)
			}
			u.write("etc/cni/net.d/10-net.conflist", string(list))
			u.write("opt/cni/bin/sluice-cni", "#!/bin/false\n")
			(&fickle{may: make(chan struct{})}).serve(u.kept)
		}, func(*uninstalled) {}, []string{"state/enrolment.json"}},
	} {
		t.Run(name, func(t *testing.T) {
			u := &uninstalled{kept: &kept{t: t, root: t.TempDir()}, place: newPlace(t), server: kube.NewAPIServer(t)}
			u.write("plugin/sluice-cni", "#!/bin/false\n")
			u.write("opt/cni/bin/ptp", "")
			u.write("etc/cni/net.d/10-net.conflist", keptConf)
			tc.before(u)
			log := u.run(tc.until, func() { tc.prepare(u) })
			if got := u.files(); !slices.Equal(got, tc.left) {
				t.Errorf("files: got %v, want %v", got, tc.left)
			}
			if list, err := os.ReadFile(u.path("etc/cni/net.d/10-net.conflist")); err != nil || cniconf.Contains(list) {
				t.Errorf("conflist: %s, %v, want it without our entry", list, err)
			}
			if tc.left == nil {
				return
			}
			if !strings.Contains(log.String(), "sluice-installer uninstall") {
				t.Errorf("not said what is left:\n%s", log)
			}
			last, err := nodeapi.LoadLastKnown(u.place.path("state"))
			if err != nil || last.MayBeEnrolled("mesh") || !last.Left {
				t.Errorf("last known: got %+v, %v, want that no pod can be in the mesh, and no agent comes", last, err)
			}
			if _, err := os.Stat(u.path("opt/cni/bin/sluice-cni")); err != nil {
				t.Errorf("an entry that may stay names the plugin: %v", err)
			}
		})
	}
}
