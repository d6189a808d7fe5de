// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-mesh/sluice/bpf"
)

// TestWhatWasMissedIsCaughtUpWith changes things while the agent, or the API, is away.
func TestWhatWasMissedIsCaughtUpWith(t *testing.T) {
	a := newAPILab(t)
	z := a.ztunnel("z1")
	a.label(`"ambient"`)
	stays, goes := a.run("stays", nil).mustAdd(), a.run("goes", nil).mustAdd()
	a.want(stays, true, "enabled")
	a.want(goes, true, "enabled")

	a.stop()
	a.label("null")
	now := int64(0)
	a.must(a.api.CoreV1().Pods("shop").Delete(t.Context(), "goes", metav1.DeleteOptions{GracePeriodSeconds: &now}))
	plugin, err := bpf.LoadNode(a.root) // whose DEL does not need the agent
	a.must(err)
	a.must(plugin.DetachPod(goes.api.ContainerID))
	a.must(plugin.Close())
	goes.Delete(t)
	a.start()
	a.now.Store(a.e)
	z.waitEvent("snapshot")
	a.want(stays, false, "")
	a.eventually(func() error {
		if p := a.e.get(goes.api.ContainerID); p != nil {
			return fmt.Errorf("pod that was deleted is still %s", a.e.phaseOf(p))
		}
		return nil
	})
	goes.nothingLeft()

	a.label(`"ambient"`)
	a.want(stays, true, "enabled")
	a.server.Stop()
	a.restart()
	a.server.Start()
	a.label("null") // before the watch, which pauses between tries, is back
	a.want(stays, false, "")
}
