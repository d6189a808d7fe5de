// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// A delivery from the client's own port would be taken for a part of the client's connection, and hang.
func TestDeliveryHasNoSourceThatTheClientUses(t *testing.T) {
	testutil.RequireRoot(t)
	node := testutil.NewNode(t)
	a := node.Pod(t, "a")
	pod := newTestPod(t, a.Path)
	for _, family := range []string{"4", "6"} {
		echo := a.Echo(t, "a", netip.AddrPortFrom(a.Addr(family), 0).String())
		for name, tc := range map[string]struct {
			avoid Avoid
			want  error
			ok    func(port uint16) bool
		}{
			"none in use":                  {func(netip.AddrPort) bool { return false }, nil, func(p uint16) bool { return p >= deliveryPort }},
			"all of deliveries' in use":    {func(s netip.AddrPort) bool { return s.Port() >= deliveryPort }, nil, func(p uint16) bool { return p < deliveryPort }},
			"all in use, the kernel's too": {func(netip.AddrPort) bool { return true }, errAvoided, nil},
		} {
			// An address of the pod's own, so that answers find their way without a datapath.
			from := netip.MustParseAddr("127.0.0.1")
			if family == "6" {
				from = netip.MustParseAddr("::1")
			}
			conn, err := pod.Deliver(t.Context(), from, echo.Addr, tc.avoid)
			if !errors.Is(err, tc.want) {
				t.Errorf("IPv%s, %s: got %v, want %v", family, name, err, tc.want)
			}
			if err != nil {
				continue
			}
			source := conn.LocalAddr().(*net.TCPAddr).AddrPort()
			if tc.avoid(source) || !tc.ok(source.Port()) || source.Addr() != from {
				t.Errorf("IPv%s, %s: delivered from %s", family, name, source)
			}
			_ = conn.Close()
		}
	}
}
