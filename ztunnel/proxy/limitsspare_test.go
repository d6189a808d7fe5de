// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// exhaustedEnv marks the process that may use up its descriptors.
const exhaustedEnv = "SLUICE_TEST_EXHAUSTED"

// TestDescriptorsRunOut uses up every descriptor of a process, in one of its own: what waits to be accepted is reset with a
// reason, and what comes when descriptors are free again is carried.
func TestDescriptorsRunOut(t *testing.T) {
	testutil.RequireRoot(t)
	if os.Getenv(exhaustedEnv) != "" {
		runOut(t)
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDescriptorsRunOut$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), exhaustedEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func runOut(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 7000).String())
	outside := w.legacy.Echo(t, "outside", netip.AddrPortFrom(w.legacy.Addr4, 7001).String())
	open := w.dial(w.client.Pod, outside.Addr)
	if _, err := testutil.Ask(open); err != nil {
		t.Fatal(err)
	}
	// Clients' sockets are made ahead, as they share the limit.
	clients := make([]int, 40)
	for i := range clients {
		w.legacy.MustDo(t, func() (err error) {
			clients[i], err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
			return err
		})
	}
	queries := w.legacy.Listen(t, "tcp", netip.AddrPortFrom(w.legacy.Addr4, 7002).String()).(*net.TCPListener)
	free := takeAllDescriptors(t)
	shed := make(chan int, 1)
	go func() { // as the loop that accepts queries does
		n := 0
		for n == 0 && t.Context().Err() == nil {
			n = ClientOf(w.server.served).Shed(queries, unix.EMFILE)
		}
		shed <- n
	}()
	wantSocketReset(t, clients[len(clients)-1], netip.AddrPortFrom(w.legacy.Addr4, 7002))
	if n := <-shed; n != 1 {
		t.Errorf("%d connections were shed, want 1", n)
	}
	clients = clients[:len(clients)-1]
	// None is left to accept with, then none to make a socket with, then none to copy it for the poller with.
	next := 0
	for _, reason := range []string{"accept4", "socket", "fcntl"} {
		testutil.Eventually(t, 20*time.Second, func() error {
			if next == len(clients) {
				t.Fatalf("no line of %s in the access log:\n%s", reason, w.proxy.log.lines())
			}
			wantSocketReset(t, clients[next], echo.Addr)
			next++
			if len(w.proxy.log.lines(`verdict="refused-limit"`, "src.addr="+w.legacy.Addr4.String(), reason+": too many open files")) == 0 {
				return fmt.Errorf("no line with %s", reason)
			}
			return nil
		})
		free(1)
	}
	if err := testutil.Ping(open); err != nil {
		t.Errorf("a connection of another pod, open before: %v", err)
	}
	free(-1)
	for _, fd := range clients {
		_ = unix.Close(fd)
	}
	for name, ask := range map[string]func() (testutil.Answer, error){
		"plaintext": func() (testutil.Answer, error) { return w.legacy.AskFrom(echo.Addr) },
		"HBONE":     func() (testutil.Answer, error) { return w.client.AskFrom(echo.Addr) },
	} {
		if answer, err := ask(); err != nil || answer.Name != "server" {
			t.Errorf("%s when descriptors are free again: got %+v, %v", name, answer, err)
		}
	}
}

// wantSocketReset connects fd to to: the kernel lets it, and the proxy resets it.
func wantSocketReset(t *testing.T, fd int, to netip.AddrPort) {
	t.Helper()
	timeout := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	if err == nil {
		_, err = unix.Read(fd, make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a connection there is no descriptor for: got %v, want a reset", err)
	}
}

// takeAllDescriptors leaves the process without a free descriptor. The function it returns gives back some of
// them, or all if n is negative.
func takeAllDescriptors(t *testing.T) (free func(n int)) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	small := limit
	small.Cur = 512
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &small); err != nil {
		t.Fatal(err)
	}
	var taken []int
	for {
		fd, err := unix.Dup(0)
		if err != nil {
			break
		}
		taken = append(taken, fd)
	}
	if len(taken) < 4 {
		t.Fatalf("%d descriptors were free below the limit", len(taken))
	}
	return func(n int) {
		if n < 0 {
			n = len(taken)
		}
		for _, fd := range taken[:n] {
			_ = unix.Close(fd)
		}
		taken = taken[n:]
	}
}
