// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

func (s *sandbox) workloadFile() string {
	return s.l.path("workloads", "node1_"+s.api.Namespace+"_"+s.api.Name+".yaml")
}

// blockWorkloadFile puts something in the file's place that cannot be removed like a file.
func (s *sandbox) blockWorkloadFile() (free func()) {
	s.l.t.Helper()
	block := s.l.path("block-" + s.api.Name)
	s.l.must(os.MkdirAll(filepath.Join(block, "x"), 0o700))
	s.l.must(unix.Renameat2(unix.AT_FDCWD, block, unix.AT_FDCWD, s.workloadFile(), unix.RENAME_EXCHANGE))
	return func() { s.l.must(os.RemoveAll(s.workloadFile())) }
}

// eventuallyLeaving waits until status shows why the pod cannot leave.
func (s *sandbox) eventuallyLeaving() {
	s.l.t.Helper()
	s.l.eventually(func() error {
		if st := s.status(); st.Phase != string(leaving) || !strings.Contains(st.Problem, "directory not empty") {
			return fmt.Errorf("%s, problem %q", st.Phase, st.Problem)
		}
		return nil
	})
}

func TestUnenrolmentThatFailedIsTriedAgain(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			l := newLab(t, nil)
			z := l.ztunnel("z")
			s := l.pod("mesh", "p").mustAdd()
			l.catalog.Reload()
			free := s.blockWorkloadFile()
			l.enrolNamespace("mesh", false)
			s.eventuallyLeaving()
			z.waitEvent("del uid-p")
			if s.attached() {
				t.Error("programs are still attached")
			}
			if restart {
				l.restart() // It must start, whatever is in the folder.
				s.eventuallyIs("known", "")
			}
			free()
			s.eventuallyIs("known", "")
			if s.published() {
				t.Error("workload file is back")
			}
			l.enrolNamespace("mesh", true)
			s.eventuallyIs("served", "")
		})
	}
}

func TestPodThatIsWantedAgainWhileLeavingComesBack(t *testing.T) {
	l := newLab(t, nil)
	l.ztunnel("z")
	s := l.pod("mesh", "p").mustAdd()
	free := s.blockWorkloadFile()
	l.enrolNamespace("mesh", false)
	s.eventuallyLeaving()
	free()
	l.enrolNamespace("mesh", true)
	s.eventuallyIs("served", "")
	l.pod("plain", "peer").wantGreeting(netip.AddrPortFrom(s.Addr4, 80), "z inbound4")
}

func TestDeletedPodIsForgottenInTheEnd(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			l := newLab(t, nil)
			z := l.ztunnel("z")
			s := l.pod("mesh", "p").mustAdd()
			free := s.blockWorkloadFile()
			if err := s.del(); err == nil {
				t.Error("DEL succeeded")
			}
			z.waitEvent("del uid-p")
			s.eventuallyLeaving()
			if restart {
				l.restart()
				s.eventuallyLeaving()
			}
			if s.attached() {
				t.Error("a deleted pod was attached again")
			}
			free()
			l.eventually(func() error {
				if p := l.e.get(s.api.ContainerID); p != nil {
					return fmt.Errorf("still %s", l.e.phaseOf(p))
				}
				return nil
			})
			s.nothingLeft()
			if z.seen("add uid-p default") != 1 {
				t.Error("ztunnel was told of the deleted pod again")
			}
		})
	}
}

func TestOldSandboxLeavesTheWorkloadFileToTheNew(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Resync = time.Hour })
	l.ztunnel("z")
	old := l.pod("mesh", "p").mustAdd()
	fresh := l.pod("mesh", "p").mustAdd()
	before, err := os.Stat(fresh.workloadFile())
	l.must(err)
	l.must(old.del())
	after, err := os.Stat(fresh.workloadFile())
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("workload file was taken away or written anew: %v", err)
	}
}

func TestSecondNetworkChangesNothingOfTheFirsts(t *testing.T) {
	l := newLab(t, nil)
	l.ztunnel("z")
	s := l.pod("mesh", "p").mustAdd()
	second := s.secondNetwork()
	l.must(second.add())
	for _, ask := range []*nodeapi.Request{
		{Verb: nodeapi.VerbGC, Network: "storage"},
		{Verb: nodeapi.VerbRelease, Pod: &second.api},
	} {
		_, _, err := l.client.Do(t.Context(), ask)
		l.must(err)
		if st := s.status(); st.Phase != "served" || !slices.Equal(st.Addresses, []netip.Addr{s.Addr4, s.Addr6}) {
			t.Errorf("after %s of the second network: %+v", ask.Verb, st)
		}
	}
	_, _, err := l.client.Do(t.Context(), &nodeapi.Request{Verb: nodeapi.VerbGC, Network: "net"})
	l.must(err)
	s.nothingLeft()
}

// A ztunnel may connect between the finding that there is none and the closing of the listeners.
func TestListenersAreKeptForAZtunnelThatJustConnected(t *testing.T) {
	var l *lab
	var once sync.Once
	connected := make(chan struct{})
	faults = func(step string) {
		if step == "about to refuse" {
			once.Do(func() {
				defer close(connected)
				l.ztunnel("late").waitEvent("add uid-p default")
			})
		}
	}
	t.Cleanup(func() { faults = nil })
	l = newLab(t, func(c *Config) { c.ProxyDownLimit = 50 * time.Millisecond; c.Resync = time.Hour })
	t.Cleanup(func() { l.stop() }) // Before faults is reset.
	z := l.ztunnel("z")
	s := l.pod("mesh", "p").mustAdd()
	held := s.status().Listeners
	z.kill()
	time.AfterFunc(100*time.Millisecond, l.e.Kick)
	<-connected
	l.e.Reconcile(t.Context(), Wishes)
	if got := s.status().Listeners; got["inbound4"] != "held" || held["inbound4"] != "held" {
		t.Errorf("listeners: %v before, %v after", held, got)
	}
}
