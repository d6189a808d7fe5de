// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// secondNetwork makes net1 in the pod and returns the sandbox as the ADD for it tells of it.
func (s *sandbox) secondNetwork() *sandbox {
	s.l.t.Helper()
	other := testutil.NetNS(s.l.t, "storage")
	testutil.Veth(s.l.t, testutil.End{NS: s.NS, Name: "net1"}, testutil.End{NS: other, Name: "eth0"})
	second := *s
	second.api.Network = "storage"
	second.api.Interfaces = []nodeapi.Interface{{Name: "net1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")}}}
	return &second
}

// pinned is what the pod's pins say.
func (s *sandbox) pinned() (info bpf.PodInfo) {
	if p, err := s.l.bpf.Pod(s.api.ContainerID); err == nil {
		info = p.Info()
		_ = p.Close()
	}
	return info
}

func (s *sandbox) eventuallyCovers(interfaces ...string) {
	s.l.t.Helper()
	s.l.eventually(func() error {
		info, st := s.pinned(), s.status()
		if info.Network != "net" || !slices.Equal(slices.Sorted(slices.Values(info.Interfaces)), interfaces) || st.Phase != "served" || st.Problem != "" {
			return fmt.Errorf("pins: network %q, interfaces %v, want net and %v; status %+v", info.Network, info.Interfaces, interfaces, st)
		}
		return nil
	})
}

// The programs that a second network's ADD attached are the pod's own from then on.
func TestPodThatASecondNetworkBroughtInIsCoveredAndStays(t *testing.T) {
	l := newLab(t, nil)
	s := l.pod("plain", "p").mustAdd()
	second := s.secondNetwork()
	l.enrolNamespace("plain", true) // No ztunnel yet, so it stays outside.
	d, err := second.decideAndAttach()
	l.must(err)
	if len(d.Interfaces) != 2 {
		t.Errorf("decision: attach to %+v, want both", d.Interfaces)
	}
	if got := s.pinned().Interfaces; !slices.Equal(got, []string{"net1"}) {
		t.Fatalf("the plugin attached to %v", got)
	}
	l.ztunnel("z")
	_, err = second.ask(nodeapi.VerbServe)
	l.must(err)
	if info := s.pinned(); info.Network != "net" || len(info.Interfaces) != 2 {
		t.Errorf("pins after serve: network %q, interfaces %v", info.Network, info.Interfaces)
	}
	peer := l.pod("outside", "peer")
	s.wantGreeting(netip.AddrPortFrom(peer.Addr4, 80), "z outbound4")
	_, err = second.ask(nodeapi.VerbRelease)
	l.must(err)
	s.eventuallyCovers("eth0", "net1")
	l.must(s.del())
	s.nothingLeft()
}

func TestRepairCoversWhatIsOnRecord(t *testing.T) {
	l := newLab(t, nil)
	l.ztunnel("z")
	s := l.pod("mesh", "p").mustAdd()
	second := s.secondNetwork()
	_, err := second.ask(nodeapi.VerbDecide) // Its plugin dies before it attaches.
	l.must(err)
	s.eventuallyCovers("eth0", "net1")
	s.Run(t, "ip", "link", "del", "net1")
	s.eventuallyCovers("eth0")
}

func TestLabelFlipsKeepTheSecondNetwork(t *testing.T) {
	l := newLab(t, nil)
	l.ztunnel("z")
	s := l.pod("mesh", "p").mustAdd()
	_, err := s.secondNetwork().ask(nodeapi.VerbDecide)
	l.must(err)
	s.eventuallyCovers("eth0", "net1")
	l.enrolNamespace("mesh", false)
	s.eventuallyIs("known", "")
	if s.attached() {
		t.Error("still attached")
	}
	l.enrolNamespace("mesh", true)
	s.eventuallyCovers("eth0", "net1")
}

func TestProgramsAreRepairedWhileListenersAreClosed(t *testing.T) {
	l := newLab(t, func(c *Config) { c.ProxyDownLimit = 100 * time.Millisecond })
	z := l.ztunnel("z")
	s := l.pod("mesh", "p").mustAdd()
	z.kill()
	l.eventually(func() error {
		if n := s.slots(); n != 0 {
			return fmt.Errorf("%d slots filled", n)
		}
		return nil
	})
	s.Run(t, "ip", "rule", "del", "pref", strconv.Itoa(bpf.SteeringPriority))
	l.eventually(func() error {
		p, err := l.bpf.Pod(s.api.ContainerID)
		if err != nil {
			return err
		}
		return errors.Join(programDrift(p), p.Close())
	})
	if n := s.slots(); n != 0 {
		t.Errorf("%d slots were filled", n)
	}
	s.eventuallyIs("served", "")
}

func TestFailedEnrolmentTakesOffOnlyWhatItPutOn(t *testing.T) {
	l := newLab(t, func(c *Config) { c.AdmitTimeout = 50 * time.Millisecond })
	z := l.ztunnel("z", refusing("cannot bind"))
	half, running := l.pod("mesh", "half"), l.pod("later", "running").mustAdd()
	if _, err := half.decideAndAttach(); err != nil { // Its ADD dies here.
		t.Fatal(err)
	}
	l.enrolNamespace("later", true)
	half.eventuallyIs("admitted", "cannot bind")
	running.eventuallyIs("known", "cannot bind")
	for range 3 {
		l.e.Reconcile(t.Context(), Everything)
		if st := half.status(); !half.attached() || st.Problem == "" {
			t.Errorf("attached %v, status %+v", half.attached(), st)
		}
	}
	z.setRefuse("")
	half.eventuallyIs("served", "")
	running.eventuallyIs("served", "")
}

func TestSecondNetworkLeavesNoProgramsOfADeadADD(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Resync = time.Hour })
	s := l.pod("mesh", "p")
	if _, err := s.decideAndAttach(); err != nil { // And no more.
		t.Fatal(err)
	}
	l.enrolNamespace("mesh", false)
	l.must(s.secondNetwork().add())
	if st := s.status(); s.attached() || st.Phase != string(known) {
		t.Errorf("attached %v, %s", s.attached(), st.Phase)
	}
}
