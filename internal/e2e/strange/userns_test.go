// SPDX-License-Identifier: Apache-2.0

package strange

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/netns"
)

// inUserNS, in the environment, makes the test program the app of a pod in a user namespace.
const inUserNS = "SLUICE_STRANGE_APP"

// runApp listens when told "listen", and when told "carry NAME ADDR" connects there.
func runApp(in io.Reader, out io.Writer) int {
	for lines := bufio.NewScanner(in); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		var err error
		switch {
		case len(fields) == 1 && fields[0] == "listen":
			var lc net.ListenConfig
			lc.SetMultipathTCP(false)
			var l net.Listener
			if l, err = lc.Listen(context.Background(), "tcp", fmt.Sprintf("[::]:%d", echoPort)); err == nil {
				go serve(l, "userns")
			}
		case len(fields) == 3 && fields[0] == "carry":
			err = carry(func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "tcp", to.String())
			}, netip.MustParseAddrPort(fields[2]), fields[1], netip.Addr{})
		default:
			err = fmt.Errorf("unknown command %q", fields)
		}
		fmt.Fprintf(out, "done %v\n", err)
	}
	return 0
}

// app is a process that owns its user and network namespace, as the pod's with hostUsers: false.
type app struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startApp(t *testing.T) *app {
	t.Helper()
	a := &app{cmd: exec.Command("/proc/self/exe")}
	a.cmd.Env = append(os.Environ(), inUserNS+"=1")
	a.cmd.Stderr = os.Stderr
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET, UidMappings: ids, GidMappings: ids, Pdeathsig: unix.SIGKILL}
	in, err := a.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.in, a.out = in, bufio.NewReader(out)
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.in.Close(); _ = a.cmd.Wait() })
	return a
}

// name gives the app's network namespace a name, as a runtime does.
func (a *app) name(name string) error {
	path := netns.NamedPath(name)
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return err
	}
	return unix.Mount(fmt.Sprintf("/proc/%d/ns/net", a.cmd.Process.Pid), path, "", unix.MS_BIND, "")
}

func (a *app) tell(format string, args ...any) error {
	fmt.Fprintf(a.in, format+"\n", args...)
	answer := make(chan string, 1)
	go func() { line, _ := a.out.ReadString('\n'); answer <- line }()
	select {
	case line := <-answer:
		if line != "done <nil>\n" {
			return fmt.Errorf("app: %q", line)
		}
		return nil
	case <-time.After(2 * effect):
		return fmt.Errorf("the app says nothing")
	}
}

func TestPodInAUserNamespace(t *testing.T) {
	var a *app
	s := newStrange(t, "userns", func(spec *lab.PodSpec) {
		spec.MakeNS = func(name string) error {
			a = startApp(t)
			return a.name(name)
		}
	})
	if err := a.tell("listen"); err != nil {
		t.Fatal(err)
	}
	s.known()
	s.inbound("app in a user namespace", echoPort)
	for _, family := range []int{4, 6} {
		before := s.count(bpf.VerdictCaptured)
		s.viaMTLS("app in a user namespace", "userns", s.w.Nodes[1], at(s.w.peer, family), func() error {
			return a.tell("carry peer %v", at(s.w.peer, family))
		})
		if s.count(bpf.VerdictCaptured) == before {
			t.Errorf("IPv%d: nothing was captured", family)
		}
		outside := map[int]netip.Addr{4: lab.OutsideAddr4, 6: lab.OutsideAddr6}[family]
		for name, to := range map[string]netip.AddrPort{
			"outside": netip.AddrPortFrom(outside, echoPort), "legacy": at(s.w.legacy, family), "userns": at(s.Pod, family),
		} {
			if err := a.tell("carry %s %v", name, to); err != nil {
				t.Errorf("to %s at %v: %v", name, to, err)
			}
		}
	}
}
