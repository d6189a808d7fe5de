// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// hide takes the sandbox's path away, as a mount that does not reach the agent does, and keeps its namespace alive, as
// its processes do. show undoes the first, end the second.
func (s *sandbox) hide() (show, end func()) {
	s.l.t.Helper()
	ns, err := netns.Open(s.Path)
	s.l.must(err)
	s.l.t.Cleanup(func() { _ = ns.Close() })
	s.Delete(s.l.t)
	show = func() {
		s.l.t.Helper()
		s.l.must(os.WriteFile(s.Path, nil, 0o600))
		s.l.must(unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.FD()), s.Path, "", unix.MS_BIND, ""))
	}
	return show, func() { _ = ns.Close() }
}

func (s *sandbox) eventuallyIs(phase, problem string) {
	s.l.t.Helper()
	s.l.eventually(func() error {
		st := s.status()
		if st.Phase != phase || (st.Problem == "") != (problem == "") || !strings.Contains(st.Problem, problem) {
			return fmt.Errorf("phase %q, problem %q, want %q and %q", st.Phase, st.Problem, phase, problem)
		}
		return nil
	})
}

func TestLivePodWhoseNamespaceCannotBeSeenStaysInTheMesh(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z")
	s, peer := l.pod("mesh", "p").mustAdd(), l.pod("plain", "peer")
	addr := netip.AddrPortFrom(s.Addr4, 80)
	show, _ := s.hide()
	s.eventuallyIs("served", "kept in the mesh")
	peer.wantGreeting(addr, "z inbound4")
	show()
	s.eventuallyIs("served", "")
	l.must(unix.Unmount(s.Path, unix.MNT_DETACH)) // What is left is a plain file.
	s.eventuallyIs("served", "not a network namespace")
	if !s.attached() || !s.published() || z.seen("del uid-p") != 0 {
		t.Errorf("attached %v, published %v, removed from ztunnel %d times", s.attached(), s.published(), z.seen("del uid-p"))
	}
}

func TestLivePodIsNotLetOutByAnAgentThatCannotSeeIt(t *testing.T) {
	for _, withRecord := range []bool{true, false} {
		t.Run(fmt.Sprintf("record %v", withRecord), func(t *testing.T) {
			l := newLab(t, nil)
			z := l.ztunnel("z")
			s, peer := l.pod("mesh", "p").mustAdd(), l.pod("plain", "peer")
			l.stop()
			show, end := s.hide()
			if !withRecord {
				l.must(os.RemoveAll(l.path("state", "pods")))
			}
			l.start()
			s.eventuallyIs("lost", "no such file")
			l.e.Reconcile(t.Context(), Everything)
			if !s.attached() || !s.published() {
				t.Errorf("attached %v, published %v", s.attached(), s.published())
			}
			l.eventually(func() error { // The pod is to be found by an agent that has a ztunnel.
				if z.seen("snapshot") < 2 {
					return errors.New("ztunnel is not back")
				}
				return nil
			})
			show()
			s.eventuallyIs("served", "")
			peer.wantGreeting(netip.AddrPortFrom(s.Addr4, 80), "z inbound4")
			l.stop()
			s.Delete(t)
			end()
			z.kill() // Its connections keep the namespace alive too.
			l.start()
			l.eventually(func() error {
				if s.attached() || s.published() || l.e.get(s.api.ContainerID) != nil {
					return errors.New("pod whose namespace ended is still there")
				}
				return nil
			})
		})
	}
}
