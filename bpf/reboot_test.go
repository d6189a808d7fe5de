// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestWithoutPinsEverythingStartsAnew: after a reboot there are no pins. Here the pod outlives them, with its rules and,
// in clsact mode, its filters: whoever attaches it again takes those over, and leaves nothing behind.
func TestWithoutPinsEverythingStartsAnew(t *testing.T) {
	w := newWorld(t)
	pod, server := w.host.Pod(t, "pod"), w.host.Pod(t, "server")
	before := w.trace(t, pod)
	w.attach(t, pod)
	if err := os.RemoveAll(w.root); err != nil {
		t.Fatal(err)
	}
	n, err := LoadNode(w.root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	w.Node = n
	if pods, err := w.Pods(); err != nil || len(pods) > 0 {
		t.Errorf("Pods: got %v, %v, want none", pods, err)
	}
	w.mesh(t, server)
	client := w.enrol(t, pod)
	if err := w.check(client.bpf); err != nil {
		t.Error(err)
	}
	addr := netip.AddrPortFrom(server.Addr4, 80)
	wantAnswer(t, client.NS, addr, "outbound@"+addr.String(), client.Addr4)
	if err := w.DetachPod(pod.Name); err != nil {
		t.Error(err)
	}
	// accept_local was ours, but nobody knows that any more.
	pod.Sysctl(t, "net.ipv4.conf.lo.accept_local", "0")
	if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}
