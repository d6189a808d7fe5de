// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestSocketsForRedirectedQueries(t *testing.T) {
	testutil.RequireRoot(t)
	for name, test := range map[string]struct {
		options Options
		noIPv6  bool
		want    int // of each protocol
		second  error
	}{
		"both families, shared": {Options{}, false, 2, nil},
		"IPv4 only":             {Options{IPv4Only: true}, false, 1, nil},
		"pod without IPv6":      {Options{}, true, 1, nil},
		"exclusive":             {Options{ExclusivePorts: true}, false, 2, unix.EADDRINUSE},
	} {
		t.Run(name, func(t *testing.T) {
			ns := testutil.NetNS(t, "a")
			if test.noIPv6 {
				ns.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
			}
			pod := newTestPod(t, ns.Path)
			pod.sockets.Configure(test.options)
			l, err := ListenInPodForDNS(t.Context(), pod, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if len(l.DNSUDP) != test.want || len(l.DNSTCP) != test.want {
				t.Errorf("%d and %d sockets, want %d each", len(l.DNSUDP), len(l.DNSTCP), test.want)
			}
			for _, c := range l.DNSUDP {
				if at := c.LocalAddr().String(); at != "127.0.0.1:15053" && at != "[::1]:15053" {
					t.Errorf("listens on %s, want loopback", at)
				}
			}
			second, err := ListenInPodForDNS(t.Context(), pod, nil)
			if !errors.Is(err, test.second) {
				t.Errorf("a second ztunnel: got %v, want %v", err, test.second)
			}
			if err == nil {
				second.Close()
			}
			if held, err := ListenInPodForDNS(t.Context(), pod, l); held != l || err != nil {
				t.Errorf("got %p, %v, want what is held", held, err)
			}
		})
	}
}
