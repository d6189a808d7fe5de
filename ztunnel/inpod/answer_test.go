// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// An app that has port 53 on all addresses, without sharing it, is no obstacle to answers and is not disturbed by them.
func TestAnswersComeFromWhereverTheQuestionWent(t *testing.T) {
	testutil.RequireRoot(t)
	ns := testutil.NetNS(t, "pod")
	pod := newTestPod(t, ns.Path)
	for _, tc := range []struct{ network, own, server, all string }{
		{"udp4", "127.0.0.1:0", "198.51.100.53:53", "0.0.0.0:53"}, {"udp6", "[::1]:0", "[2001:db8::53]:53", "[::]:53"},
	} {
		server := netip.MustParseAddrPort(tc.server)
		var app, client net.PacketConn
		ns.MustDo(t, func() (err error) {
			if app, err = net.ListenPacket(tc.network, tc.all); err != nil {
				return err
			}
			client, err = net.ListenPacket(tc.network, tc.own)
			return err
		})
		defer func() { _, _ = app.Close(), client.Close() }()
		_ = client.SetDeadline(time.Now().Add(5 * time.Second))
		to := client.LocalAddr().(*net.UDPAddr).AddrPort()
		to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
		buf := make([]byte, 1<<16)
		for _, size := range []int{0, 1, 2, 511, 1232, 65000} {
			data := bytes.Repeat([]byte{0xfd, 1, 0x80}, size/3+1)[:size]
			if err := pod.SendUDP(t.Context(), server, to, data); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			n, from, err := client.ReadFrom(buf)
			if err != nil || from.String() != tc.server || !bytes.Equal(buf[:n], data) {
				t.Fatalf("%d bytes: got %d from %v, %v", size, n, from, err)
			}
		}
	}
	four, six := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("[::1]:1")
	for name, err := range map[string]error{
		"families":  pod.SendUDP(t.Context(), four, six, nil),
		"too long":  pod.SendUDP(t.Context(), four, four, make([]byte, 1<<16-1-27)),
		"too long6": pod.SendUDP(t.Context(), six, six, make([]byte, 1<<16-1-47)),
	} {
		if err == nil {
			t.Errorf("%s: sent", name)
		}
	}
	pod.answers.close()
	if err := pod.SendUDP(t.Context(), four, four, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}
