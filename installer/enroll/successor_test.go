// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"fmt"
	"os"
	"testing"

	"github.com/sluice-mesh/sluice/installer/controlplane"
)

// A sandbox outlives its pod's place in the API, as when a StatefulSet's pod was deleted by force: it stays what it was,
// whatever the next pod of that name is, over a restart too.
func TestSandboxTakesNothingFromASuccessor(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z")
	said := func(pod, uid, account, more string) {
		l.manifest(pod, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: mesh, uid: %s%s}\nspec: {serviceAccountName: %s}\n", pod, uid, more, account))
	}
	said("web-0", "uid-web-0", "web", "")
	said("out", "uid-out", "out", ", labels: {istio.io/dataplane-mode: none}")
	in, out := l.pod("mesh", "web-0").mustAdd(), l.pod("mesh", "out").mustAdd()
	in.eventuallyIs("served", "")
	want := func(when string) {
		t.Helper()
		l.e.Reconcile(t.Context(), Everything)
		if st := in.status(); st.ServiceAccount != "web" || !in.attached() {
			t.Errorf("%s: %+v, attached: %v; want it served as web", when, st, in.attached())
		}
		if out.attached() {
			t.Errorf("%s: the pod outside the mesh is in it", when)
		}
		if z.seen("add uid-web-0 admin") != 0 {
			t.Errorf("%s: ztunnel was told the successor's service account", when)
		}
	}
	want("before")

	said("web-0", "later", "admin", `, labels: {istio.io/dataplane-mode: none}, annotations: {sluice.dev/capture: all}`)
	said("out", "later", "out", "")
	l.eventually(func() error {
		if pod := l.e.cfg.Catalog.Snapshot().Pods; pod[controlplane.Name{Namespace: "mesh", Name: "web-0"}].UID != "later" || pod[controlplane.Name{Namespace: "mesh", Name: "out"}].UID != "later" {
			return fmt.Errorf("the catalog does not tell of the successors yet")
		}
		return nil
	})
	want("with a successor")
	l.restart()
	l.ztunnel("z2")
	want("after a restart of the agent")

	l.must(os.Remove(l.path("manifests", "web-0.yaml")))
	l.catalog.Reload()
	l.eventually(func() error {
		if l.e.cfg.Catalog.Snapshot().Pods[controlplane.Name{Namespace: "mesh", Name: "web-0"}] != nil {
			return fmt.Errorf("the catalog still tells of the pod")
		}
		return nil
	})
	want("when nothing is known of it any more")
}
