// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestStopJudgesWhatIsStillQueued: a reader that was held up has all frames judged before the watch ends.
func TestStopJudgesWhatIsStillQueued(t *testing.T) {
	testutil.RequireRoot(t)
	a, b := testutil.NetNS(t, "a"), testutil.NetNS(t, "b")
	testutil.Veth(t, testutil.End{NS: a, Name: "eth0", Addrs: []string{"10.0.0.1/24"}}, testutil.End{NS: b, Name: "eth0", Addrs: []string{"10.0.0.2/24"}})
	w, err := Start([]netip.Addr{memberA.Addr(), memberB.Addr()}, Point{NS: b.Name, Interface: "eth0", FromPod: true})
	if err != nil {
		t.Fatal(err)
	}
	const count = 200
	w.judge.mu.Lock() // the reader gets no further than its first frame
	frame := made{src: memberA, dst: memberB, flags: flagSYN}.bytes()
	a.MustDo(t, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		for range count {
			to := &unix.SockaddrLinklayer{Protocol: 0x0008 /* IPv4, in network order */, Ifindex: a.Ifindex(t, "eth0")}
			if err := unix.Sendto(fd, frame, 0, to); err != nil {
				return err
			}
		}
		return nil
	})
	done := make(chan struct{})
	var report Report
	go func() {
		defer close(done)
		report, err = w.Stop()
	}()
	w.judge.mu.Unlock()
	<-done
	if err != nil || report.Count != count {
		t.Errorf("got %d leaks in %d frames, %v, want %d", report.Count, report.Frames, err, count)
	}
}
