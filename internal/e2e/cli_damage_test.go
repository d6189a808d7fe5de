// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// onPins hands what is pinned of a pod to f.
func (m *mesh) onPins(node int, p *lab.Pod, f func(*bpf.Pod) error) {
	m.t.Helper()
	n, err := bpf.OpenNode(m.Nodes[node].PinRoot())
	m.must(err)
	defer func() { _ = n.Close() }()
	infos, err := n.Pods()
	m.must(err)
	for _, i := range infos {
		if i.Namespace != p.Namespace || i.Name != p.Name {
			continue
		}
		pinned, err := n.Pod(i.ID)
		m.must(err)
		m.must(errors.Join(f(pinned), pinned.Close()))
		return
	}
	m.t.Fatalf("no pins of %s/%s", p.Namespace, p.Name)
}

// TestVerifyTellsWhereItBreaks: capture and inbound are tested live, without another pod and without an app, and each
// family and direction fails for itself.
func TestVerifyTellsWhereItBreaks(t *testing.T) {
	m := newMesh(t)
	want := func(what string, lines ...string) {
		t.Helper()
		testutil.Eventually(t, 2*effect, func() error {
			out, ok := m.cli(0, "verify", "mesh/client")
			said := strings.Join(strings.Fields(out), " ")
			for _, line := range lines {
				if !strings.Contains(said, line) {
					return fmt.Errorf("%s: %q is not said:\n%s", what, line, out)
				}
			}
			if isWell := !strings.Contains(out, "FAILED"); isWell != ok {
				return fmt.Errorf("%s: exit code says %v:\n%s", what, ok, out)
			}
			return nil
		})
	}
	const well4, well6 = "ok capture IPv4 captured, handed to ztunnel", "ok capture IPv6 captured, handed to ztunnel"
	const in4 = "ok inbound IPv4 ztunnel answers as spiffe://cluster.local/ns/mesh/sa/client"
	want("intact", well4, well6, in4, "ok inbound IPv6 ztunnel answers as", "ok probes")

	m.must(m.Nodes[0].Agent.Kill()) // it would repair
	inside(m.client).Run(t, "ip", "-6", "route", "flush", "table", "15008")
	want("without IPv6 route", "FAILED route no IPv6 route", "FAILED capture IPv6", "did not come back into the pod", well4, in4)
	inside(m.client).Run(t, "ip", "-6", "route", "add", "local", "default", "dev", "lo", "table", "15008")
	want("with the route again", well6)

	m.onPins(0, m.client, func(p *bpf.Pod) error { return p.ClearListener(bpf.SlotHBONE4) })
	want("without HBONE listener", "slot hbone4 is empty", "FAILED inbound IPv4", "no listener is in the slot", well4, "ok inbound IPv6")

	m.onPins(0, m.client, func(p *bpf.Pod) error {
		return os.Remove(filepath.Join(m.Nodes[0].PinRoot(), "pods", p.Info().ID, fmt.Sprintf("capture_%d", p.Info().Captured[0].Ifindex)))
	})
	want("without capture", "FAILED links", "FAILED capture IPv4", "NOT CAPTURED", "FAILED capture IPv6", "ok inbound IPv6")

	m.must(m.Nodes[0].Ztunnel.Kill())
	want("without ztunnel", "FAILED mesh state", "FAILED inbound IPv6")
}
