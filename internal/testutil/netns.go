// SPDX-License-Identifier: Apache-2.0

package testutil

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// NS is a named network namespace that a test made. Its lo is up; it has no other way out than the test gives it.
type NS struct {
	Name string // as "ip netns" shows it
	Path string // /run/netns/Name
}

// NetNS makes a network namespace with a random name that contains label. It is removed with the test; processes and
// sockets still inside keep it alive, unnamed.
func NetNS(t testing.TB, label string) *NS {
	t.Helper()
	name := "sl-" + label + "-" + strings.ToLower(rand.Text()[:6])
	path, err := netns.CreateNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	n := &NS{Name: name, Path: path}
	t.Cleanup(func() { n.Delete(t) })
	// Addresses are usable at once; without this IPv6 ones are tentative for a second.
	n.Sysctl(t, "net.ipv6.conf.default.accept_dad", "0")
	n.Sysctl(t, "net.ipv6.conf.all.accept_dad", "0")
	n.MustDo(t, func() error { return linkUp("lo") })
	return n
}

// Delete takes the name away now rather than at the end of the test. Deleting again does nothing.
func (n *NS) Delete(t testing.TB) {
	t.Helper()
	if err := netns.RemoveNamed(n.Name); err != nil {
		t.Error(err)
	}
}

// Do runs f on a thread inside the namespace. Sockets made and processes started by f belong to it; goroutines that f
// starts do not.
func (n *NS) Do(f func() error) error {
	ns, err := netns.Open(n.Path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(f)
}

// MustDo is Do, failing the test on error.
func (n *NS) MustDo(t testing.TB, f func() error) {
	t.Helper()
	if err := n.Do(f); err != nil {
		t.Fatalf("in netns %s: %v", n.Name, err)
	}
}

// Sysctl sets a net.* key of the namespace.
func (n *NS) Sysctl(t testing.TB, key, value string) {
	t.Helper()
	path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
	n.MustDo(t, func() error { return os.WriteFile(path, []byte(value), 0o644) })
}

// Run runs a command inside the namespace and returns what it printed. A non-zero exit fails the test.
func (n *NS) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := n.Try(name, args...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// Try is Run for commands that may fail; the error carries the output.
func (n *NS) Try(name string, args ...string) (string, error) {
	var out []byte
	err := n.Do(func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		return string(out), fmt.Errorf("in netns %s: %s %s: %w\n%s", n.Name, name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Dial connects from inside the namespace.
func (n *NS) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	return n.DialWith(ctx, &net.Dialer{}, network, addr)
}

// DialWith is Dial with a dialer of the caller's; it must name addresses, not hosts.
func (n *NS) DialWith(ctx context.Context, d *net.Dialer, network, addr string) (conn net.Conn, err error) {
	d.FallbackDelay = -1 // happy eyeballs would dial on another thread
	err = n.Do(func() (err error) {
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen opens a TCP listener inside the namespace, closed with the test. It is plain TCP, not MPTCP.
func (n *NS) Listen(t testing.TB, network, addr string) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var l net.Listener
	n.MustDo(t, func() (err error) {
		l, err = lc.Listen(context.Background(), network, addr)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// Ifindex returns the index of a link of the namespace.
func (n *NS) Ifindex(t testing.TB, name string) int {
	t.Helper()
	var index int
	n.MustDo(t, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("link %q: %w", name, err)
		}
		index = l.Attrs().Index
		return nil
	})
	return index
}

func linkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %q: %w", name, err)
	}
	return netlink.LinkSetUp(l)
}
