// SPDX-License-Identifier: Apache-2.0

package listeners

import (
	"net"
	"testing"

	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// istio#52260, #52858: an application beside the proxy could not listen on the proxy's ports.
func TestNoPortThatAnAppWantsIsTaken(t *testing.T) {
	testutil.RequireRoot(t)
	pod := testutil.NetNS(t, "app")
	ns, err := netns.Open(pod.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	tag := func(int) error { return nil }

	// The second set is what an agent makes that replaces listeners a ztunnel still holds.
	for range 2 {
		var set Set
		if err := set.Open(ns, tag); err != nil {
			t.Fatal(err)
		}
		defer set.Close()
		if got, want := len(set.fds), len(Names(false)); got != want {
			t.Fatalf("got %d listeners, want %d", got, want)
		}
	}
	pod.MustDo(t, func() error {
		for _, at := range []string{":15001", ":15006", ":15008", ":15053", "0.0.0.0:15001", "[::]:15021", ":80"} {
			ln, err := net.Listen("tcp", at)
			if err != nil {
				t.Errorf("application listens on %s: %v", at, err)
				continue
			}
			_ = ln.Close()
		}
		return nil
	})
}
