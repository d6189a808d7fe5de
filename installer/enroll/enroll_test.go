// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

func refusal(t *testing.T, err error) *nodeapi.Error {
	t.Helper()
	var e *nodeapi.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want a refusal by the agent", err)
	}
	return e
}

func TestServedPodIsCapturedInAllDirectionsAndFamilies(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z1")
	s, peer := l.pod("mesh", "web"), l.pod("plain", "peer")
	l.manifest("pods", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: mesh}\nspec: {serviceAccountName: web-sa}\n")
	s.mustAdd()
	z.waitEvent("add uid-web web-sa")
	for _, family := range []string{"4", "6"} {
		peer.wantGreeting(netip.AddrPortFrom(s.Addr(family), 80), "z1 inbound"+family)
		peer.wantGreeting(netip.AddrPortFrom(s.Addr(family), 15008), "z1 hbone"+family)
		s.wantGreeting(netip.AddrPortFrom(peer.Addr(family), 80), "z1 outbound"+family)
	}
	if !s.published() {
		t.Error("pod is not in the workloads folder")
	}
	l.catalog.Reload()
	for name, w := range l.catalog.Snapshot().Workloads {
		if name.Name != "web" || w.Spec.ServiceAccountName != "web-sa" || w.Spec.NodeName != "node1" || len(w.Status.PodIPs) != 2 || string(w.UID) != "uid-web" {
			t.Errorf("workload %v: %+v", name, w.Pod)
		}
	}
	if !l.e.MayImpersonate("spiffe://cluster.local/ns/mesh/sa/web-sa") {
		t.Error("MayImpersonate(web-sa): got false")
	}
	for _, id := range []string{"spiffe://cluster.local/ns/mesh/sa/default", "spiffe://cluster.local/ns/other/sa/web-sa", "web-sa", "spiffe://cluster.local/ns/mesh/sa/web-sa/x"} {
		if l.e.MayImpersonate(id) {
			t.Errorf("MayImpersonate(%s): got true", id)
		}
	}
	st := s.status()
	if st.Phase != "served" || st.Problem != "" || len(st.Drift) != 0 || st.Listeners["inbound4"] != "held" || st.Verdicts["inbound"] == 0 {
		t.Errorf("status: %+v", st)
	}
	l.must(s.del())
	z.waitEvent("del uid-web")
	s.nothingLeft()
}

func TestPodOutsideTheMeshIsLeftAlone(t *testing.T) {
	l := newLab(t, nil)
	s := l.pod("plain", "p")
	resp, err := s.ask(nodeapi.VerbDecide)
	l.must(err)
	if resp.Decision.Enrolled || !strings.Contains(resp.Decision.Reason, "istio.io/dataplane-mode") {
		t.Errorf("decision: %+v", resp.Decision)
	}
	if _, err := s.ask(nodeapi.VerbServe); refusal(t, err).Code != nodeapi.CodeBadRequest || !strings.Contains(err.Error(), "is not enrolled") {
		t.Errorf("serve: %v", err)
	}
	if s.attached() || s.published() {
		t.Error("pod was touched")
	}
}

func TestFailedServeLeavesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(l *lab, s *sandbox) *ztunnel
		code    nodeapi.Code
		want    string
	}{
		"no ztunnel": {func(*lab, *sandbox) *ztunnel { return nil }, nodeapi.CodeTryAgain, "no ztunnel connected on this node"},
		"ztunnel refuses": {func(l *lab, _ *sandbox) *ztunnel {
			return l.ztunnel("z", refusing("cannot bind"))
		}, nodeapi.CodeTryAgain, "ztunnel refused the pod: cannot bind"},
		"ztunnel hangs": {func(l *lab, _ *sandbox) *ztunnel {
			return l.ztunnel("z", hanging)
		}, nodeapi.CodeTryAgain, "no ztunnel connected"}, // Dropped for its silence.
		"workloads folder is gone": {func(l *lab, _ *sandbox) *ztunnel {
			l.must(os.RemoveAll(l.path("workloads")))
			return l.ztunnel("z")
		}, nodeapi.CodeInternal, "no such file"},
		"programs are not attached": {func(l *lab, s *sandbox) *ztunnel {
			l.must(l.bpf.DetachPod(s.api.ContainerID))
			return l.ztunnel("z")
		}, nodeapi.CodeInternal, "pod is not attached"},
		"namespace is another one now": {func(l *lab, s *sandbox) *ztunnel {
			other := testutil.NetNS(l.t, "other")
			l.must(unix.Mount(other.Path, s.Path, "", unix.MS_BIND, ""))
			l.t.Cleanup(func() { _ = unix.Unmount(s.Path, unix.MNT_DETACH) })
			return nil // Its hello would have the pod compared, and found gone.
		}, nodeapi.CodeInternal, "it was"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.Resync = time.Hour })
			s := l.pod("mesh", "p")
			if _, err := s.decideAndAttach(); err != nil {
				t.Fatal(err)
			}
			z := tc.prepare(l, s)
			_, err := s.ask(nodeapi.VerbServe)
			if e := refusal(t, err); e.Code != tc.code || !strings.Contains(e.Message, tc.want) {
				t.Errorf("serve: got %s %v, want %s %q", e.Code, e, tc.code, tc.want)
			}
			if s.published() {
				t.Error("published after failed serve")
			}
			l.eventually(func() error { // The fake's accept loops may take a moment to let go of theirs.
				if n := s.slots(); n != 0 {
					return fmt.Errorf("%d slots filled after failed serve", n)
				}
				return nil
			})
			_, err = s.ask(nodeapi.VerbRelease)
			l.must(err)
			s.nothingLeft()
			if z != nil && z.hang == nil && z.seen("add uid-p default") != 0 {
				z.waitEvent("del uid-p")
			}
		})
	}
}

func TestServeOfUnknownPodIsRefused(t *testing.T) {
	l := newLab(t, nil)
	_, err := l.pod("mesh", "p").ask(nodeapi.VerbServe)
	if e := refusal(t, err); e.Code != nodeapi.CodeNotFound || !strings.Contains(e.Message, "was decided on") {
		t.Errorf("serve: %v", err)
	}
	if _, err := l.pod("mesh", "q").ask(nodeapi.VerbRelease); err != nil {
		t.Errorf("release of unknown pod: %v", err)
	}
}

func TestDeleteDuringServeEndsIt(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z", hanging)
	s := l.pod("mesh", "p")
	if _, err := s.decideAndAttach(); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		_, err := s.ask(nodeapi.VerbServe)
		served <- err
	}()
	z.waitEvent("add uid-p default")
	begin := time.Now()
	l.must(s.del())
	if err := <-served; err == nil {
		t.Error("serve succeeded for a deleted pod")
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	s.nothingLeft()
}

func TestLateDeleteOfOldSandboxSparesTheNew(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z")
	old := l.pod("mesh", "p").mustAdd()
	fresh := l.pod("mesh", "p").mustAdd() // Same uid and name, other container and namespace.
	l.must(old.del())
	peer := l.pod("plain", "peer")
	peer.wantGreeting(netip.AddrPortFrom(fresh.Addr4, 80), "z inbound4")
	if z.seen("del uid-p") != 0 {
		t.Error("ztunnel was told to drop the pod")
	}
	if !fresh.published() {
		t.Error("workload file of the new sandbox is gone")
	}
	l.must(fresh.del())
	z.waitEvent("del uid-p")
	fresh.nothingLeft()
}

func TestRunningPodFollowsItsNamespacesLabel(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z")
	l.enrolNamespace("later", false)
	s, peer := l.pod("later", "p"), l.pod("plain", "peer")
	s.mustAdd()
	echo := peer.Echo(t, "echo", "[::]:80")
	addr := netip.AddrPortFrom(peer.Addr4, echo.Addr.Port())
	open, err := s.Dial(t.Context(), "tcp", addr.String())
	l.must(err)
	defer open.Close()
	if _, err := testutil.Ask(open); err != nil {
		t.Fatal(err)
	}
	l.enrolNamespace("later", true)
	z.waitEvent("add uid-p default")
	l.eventually(func() error {
		if !s.published() {
			return errors.New("not published")
		}
		return nil
	})
	s.wantGreeting(addr, "z outbound4")
	if err := testutil.Ping(open); err != nil {
		t.Errorf("connection opened before enrolment: %v", err)
	}
	l.enrolNamespace("later", false)
	z.waitEvent("del uid-p")
	l.eventually(func() error {
		if st := s.status(); st.Phase != "known" || st.Problem != "" || s.attached() || s.published() {
			return fmt.Errorf("status: %+v, attached %v, published %v", st, s.attached(), s.published())
		}
		return nil
	})
	if a, err := s.AskFrom(addr); err != nil || a.Name != "echo" {
		t.Errorf("after un-enrolment: got %+v, %v, want the server itself", a, err)
	}
}

func TestRunningPodWaitsForAZtunnel(t *testing.T) {
	l := newLab(t, nil)
	l.enrolNamespace("later", false)
	s := l.pod("later", "p").mustAdd()
	l.enrolNamespace("later", true)
	l.eventually(func() error {
		if st := s.status(); !strings.Contains(st.Problem, "waiting for a ztunnel") {
			return fmt.Errorf("status: %+v", st)
		}
		return nil
	})
	if s.attached() {
		t.Error("pod is captured although nobody could serve it")
	}
	z := l.ztunnel("z")
	z.waitEvent("add uid-p default")
}

func TestConnectionsWaitForTheNextZtunnel(t *testing.T) {
	l := newLab(t, nil)
	z1 := l.ztunnel("z1")
	s, peer := l.pod("mesh", "p").mustAdd(), l.pod("plain", "peer")
	z1.kill()
	l.eventually(func() error {
		if l.zt.Connected() != 0 {
			return errors.New("still connected")
		}
		return nil
	})
	c, err := peer.Dial(t.Context(), "tcp", netip.AddrPortFrom(s.Addr4, 80).String())
	l.must(err)
	defer c.Close()
	l.ztunnel("z2")
	if got, err := readGreeting(c); err != nil || !strings.HasPrefix(got, "z2 inbound4") {
		t.Errorf("connection made without a ztunnel: got %q, %v", got, err)
	}
}

func TestListenersAreRefusedAfterTheLimitAndComeBack(t *testing.T) {
	l := newLab(t, func(c *Config) { c.ProxyDownLimit = 100 * time.Millisecond })
	z1 := l.ztunnel("z1")
	s, peer := l.pod("mesh", "p").mustAdd(), l.pod("plain", "peer")
	addr := netip.AddrPortFrom(s.Addr4, 80)
	z1.kill()
	l.eventually(func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c, err := peer.Dial(ctx, "tcp", addr.String())
		if err == nil {
			_ = c.Close()
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("connect: got %v, want refused", err)
		}
		return nil
	})
	l.ztunnel("z2")
	peer.wantGreeting(addr, "z2 inbound4")
}

func TestAgentRestartDisturbsNobodyAndAdopts(t *testing.T) {
	l := newLab(t, nil)
	z1 := l.ztunnel("z1")
	s, peer := l.pod("mesh", "p").mustAdd(), l.pod("plain", "peer")
	addr := netip.AddrPortFrom(s.Addr4, 80)
	l.stop()
	peer.wantGreeting(addr, "z1 inbound4") // No agent: ztunnel and pins do.
	if !s.attached() || s.slots() != 6 || !s.published() {
		t.Errorf("without agent: attached %v, slots %d, published %v", s.attached(), s.slots(), s.published())
	}
	l.start()
	l.eventually(func() error {
		if got := s.status().Listeners; got["inbound4"] != "held" || got["hbone6"] != "held" {
			return fmt.Errorf("listeners: %v, want them adopted", got)
		}
		return nil
	})
	if z1.seen("del uid-p") != 0 {
		t.Error("ztunnel was told to drop the pod")
	}
	// What was adopted is the old socket: with ztunnel gone it still takes connections.
	z1.kill()
	c, err := peer.Dial(t.Context(), "tcp", addr.String())
	l.must(err)
	defer c.Close()
	l.ztunnel("z2")
	if got, err := readGreeting(c); err != nil || !strings.HasPrefix(got, "z2 inbound4") {
		t.Errorf("connection made without a ztunnel: got %q, %v", got, err)
	}
}

func TestRestartWithoutAnyZtunnelMakesNewListeners(t *testing.T) {
	l := newLab(t, nil)
	z1 := l.ztunnel("z1")
	s, peer := l.pod("mesh", "p").mustAdd(), l.pod("plain", "peer")
	z1.kill()
	l.stop()
	l.start()
	l.eventually(func() error {
		if n := s.slots(); n != 6 {
			return fmt.Errorf("%d slots filled", n)
		}
		return nil
	})
	c, err := peer.Dial(t.Context(), "tcp", netip.AddrPortFrom(s.Addr6, 80).String())
	l.must(err)
	defer c.Close()
	l.ztunnel("z2")
	if got, err := readGreeting(c); err != nil || !strings.HasPrefix(got, "z2 inbound6") {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestRestartWithLostRecordsGoesByThePins(t *testing.T) {
	l := newLab(t, nil)
	l.ztunnel("z")
	s, peer := l.pod("mesh", "p").mustAdd(), l.pod("plain", "peer")
	l.stop()
	l.must(os.RemoveAll(l.path("state", "pods")))
	l.start()
	peer.wantGreeting(netip.AddrPortFrom(s.Addr4, 80), "z inbound4")
	st := s.status()
	if st.Phase != "served" || !slices.Equal(st.Addresses, []netip.Addr{s.Addr4, s.Addr6}) {
		t.Errorf("status: %+v", st)
	}
	l.must(s.del())
	s.nothingLeft()
}

func TestRestartUnenrolsWhatIsNotWantedAnyMore(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z")
	s := l.pod("mesh", "p").mustAdd()
	l.stop()
	l.enrolNamespace("mesh", false)
	l.start()
	l.eventually(func() error {
		if s.attached() || s.published() {
			return errors.New("still attached or published")
		}
		return nil
	})
	_ = z
}

func TestPodThatVanishesIsCollected(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("agent away %v", away), func(t *testing.T) {
			l := newLab(t, nil)
			z := l.ztunnel("z")
			s := l.pod("mesh", "p").mustAdd()
			if away {
				l.stop()
			} else {
				s.Run(t, "ip", "link", "del", "eth0") // As the DEL of the plugin that made it does.
			}
			s.Delete(t)
			if away {
				l.start()
				z.waitEvent("snapshot")
			} else {
				z.waitEvent("del uid-p")
			}
			l.eventually(func() error {
				if s.attached() || s.published() || l.e.get(s.api.ContainerID) != nil {
					return errors.New("still there")
				}
				return nil
			})
			s.nothingLeft()
		})
	}
}

func TestDriftIsRepaired(t *testing.T) {
	for name, damage := range map[string]func(l *lab, s *sandbox) error{
		"rule deleted": func(l *lab, s *sandbox) error {
			s.Run(l.t, "ip", "rule", "del", "pref", strconv.Itoa(bpf.SteeringPriority))
			return nil
		},
		"pins deleted":          func(l *lab, s *sandbox) error { return l.bpf.DetachPod(s.api.ContainerID) },
		"workload file deleted": func(l *lab, s *sandbox) error { return os.Remove(l.path("workloads", "node1_mesh_p.yaml")) },
		"slot emptied": func(l *lab, s *sandbox) error {
			p, err := l.bpf.Pod(s.api.ContainerID)
			if err != nil {
				return err
			}
			return errors.Join(p.ClearListener(0), p.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, nil)
			l.ztunnel("z")
			s, peer := l.pod("mesh", "p").mustAdd(), l.pod("plain", "peer")
			l.must(damage(l, s))
			l.catalog.Reload()
			l.eventually(func() error {
				l.catalog.Reload()
				if st := s.status(); st.Phase != "served" || len(st.Drift) != 0 || s.slots() != 6 || !s.published() {
					return fmt.Errorf("status: %+v, %d slots, published %v", st, s.slots(), s.published())
				}
				return nil
			})
			s.wantGreeting(netip.AddrPortFrom(peer.Addr4, 80), "z outbound4")
		})
	}
}

func TestGCForgetsWhatIsNotListed(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z")
	stay, other, gone := l.pod("mesh", "stay").mustAdd(), l.pod("mesh", "other"), l.pod("mesh", "gone").mustAdd()
	other.api.Network = "othernet"
	other.mustAdd()
	req := &nodeapi.Request{Verb: nodeapi.VerbGC, Network: "net", Valid: []nodeapi.Attachment{{ContainerID: stay.api.ContainerID, IfName: "eth0"}}}
	if _, _, err := l.client.Do(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	z.waitEvent("del uid-gone")
	if gone.published() || !stay.published() || !other.published() {
		t.Errorf("published: gone %v, stay %v, other network %v", gone.published(), stay.published(), other.published())
	}
}

func TestADDThatDiedHalfWayIsFinished(t *testing.T) {
	l := newLab(t, func(c *Config) { c.AdmitTimeout = 200 * time.Millisecond })
	z := l.ztunnel("z")
	s, peer := l.pod("mesh", "p"), l.pod("plain", "peer")
	if _, err := s.decideAndAttach(); err != nil {
		t.Fatal(err)
	}
	z.waitEvent("add uid-p default") // Nobody asked to serve it.
	peer.wantGreeting(netip.AddrPortFrom(s.Addr4, 80), "z inbound4")
}

func TestListenersOfUnknownPodAreRefused(t *testing.T) {
	l := newLab(t, nil)
	_, _, err := l.client.Do(t.Context(), &nodeapi.Request{Verb: nodeapi.VerbListeners, Pod: &nodeapi.Pod{UID: "nobody"}})
	if e := refusal(t, err); e.Code != nodeapi.CodeNotFound {
		t.Errorf("got %v", err)
	}
}

func TestForeignSocketsAreNotAdopted(t *testing.T) {
	l := newLab(t, nil)
	l.ztunnel("z")
	s, peer := l.pod("mesh", "p").mustAdd(), l.pod("plain", "peer")
	l.restart()
	ln, err := s.Listen(t, "tcp", "127.0.0.1:0").(interface{ File() (*os.File, error) }).File()
	l.must(err)
	defer ln.Close()
	req := &nodeapi.Request{Verb: nodeapi.VerbListeners, Pod: &nodeapi.Pod{UID: "uid-p"}, Slots: []string{"inbound4"}}
	_, fds, err := l.client.Do(t.Context(), req, int(ln.Fd()))
	l.must(err)
	defer nodeapi.CloseFDs(fds)
	if len(fds) != 6 {
		t.Errorf("got %d descriptors, want 6", len(fds))
	}
	l.eventually(func() error { // The fake learns of the new sockets with its next Add.
		got, err := peer.greeting(netip.AddrPortFrom(s.Addr4, 80))
		if err != nil || !strings.HasPrefix(got, "z inbound4") {
			return fmt.Errorf("got %q, %v", got, err)
		}
		return nil
	})
}

func TestStatusComesInPages(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Resync = time.Hour })
	const pods = 2*statusPageSize + 5
	for i := range pods {
		s := &sandbox{l: l, api: nodeapi.Pod{
			UID: fmt.Sprintf("uid-%03d", i), Namespace: "plain", Name: fmt.Sprintf("p%d", i),
			ContainerID: fmt.Sprintf("c%d", i), Netns: "/proc/self/ns/net",
		}}
		if _, err := s.ask(nodeapi.VerbDecide); err != nil {
			t.Fatal(err)
		}
	}
	seen, after, pages := map[string]bool{}, "", 0
	for {
		page := l.e.statusPage(after)
		pages++
		for _, p := range page.Pods {
			seen[p.UID] = true
			after = p.UID
		}
		if !page.More {
			break
		}
	}
	if len(seen) != pods || pages != 3 {
		t.Errorf("got %d pods on %d pages, want %d on 3", len(seen), pages, pods)
	}
}

func TestRecordsOfOtherBootsAndGarbageAreDropped(t *testing.T) {
	l := newLab(t, nil)
	s := l.pod("plain", "p")
	if _, err := s.ask(nodeapi.VerbDecide); err != nil {
		t.Fatal(err)
	}
	l.stop()
	path := l.e.recordPath(s.api.ContainerID)
	b, err := os.ReadFile(path)
	l.must(err)
	garbage := l.e.recordPath("garbage")
	l.must(os.WriteFile(garbage, b[:len(b)/2], 0o600))
	old := l.e.recordPath("old")
	l.must(os.WriteFile(old, []byte(strings.Replace(string(b), l.e.bootID, "another-boot", 1)), 0o600))
	l.start()
	if st := s.status(); st.Phase != "known" {
		t.Errorf("pod of this boot: %+v", st)
	}
	for _, p := range []string{garbage, old} {
		if _, err := os.Stat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, want it gone", p, err)
		}
	}
}

func TestSecondNetworkAddsItsInterface(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z")
	s := l.pod("plain", "p")
	other := testutil.NetNS(t, "storage")
	testutil.Veth(t, testutil.End{NS: s.NS, Name: "net1"}, testutil.End{NS: other, Name: "eth0"})
	if err := s.add(); err != nil {
		t.Fatal(err)
	}
	first := s.api
	s.api.Network, s.api.Interfaces = "storage", []nodeapi.Interface{{Name: "net1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")}}}
	second := s.api
	if err := s.add(); err != nil {
		t.Fatal(err)
	}
	s.api = first
	l.enrolNamespace("plain", true)
	z.waitEvent("add uid-p default")
	wantServed := func(interfaces ...string) {
		t.Helper()
		l.eventually(func() error {
			st := s.status()
			if st.Phase != "served" || !slices.Equal(st.Interfaces, interfaces) || !slices.Equal(st.Addresses, []netip.Addr{s.Addr4, s.Addr6}) {
				return fmt.Errorf("status: %+v", st)
			}
			return nil
		})
	}
	wantServed("eth0", "net1")
	s.api = second
	resp, err := s.ask(nodeapi.VerbDecide)
	l.must(err)
	if got := resp.Decision.Interfaces; len(got) != 2 || got[0].Name != "eth0" || got[1].Name != "net1" {
		t.Errorf("decision: attach to %+v, want eth0 and net1", got)
	}
	// The second network goes, then everything that was attached, then the agent: the pod stays in the mesh.
	_, err = s.ask(nodeapi.VerbRelease)
	l.must(err)
	s.Run(t, "ip", "link", "del", "net1")
	l.must(l.bpf.DetachPod(first.ContainerID))
	l.restart()
	s.api = first
	wantServed("eth0")
	l.must(s.del())
	s.nothingLeft()
}

func TestRefusedUpdateIsTriedAgainAndTakesNothingAway(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z")
	s, peer := l.pod("mesh", "p").mustAdd(), l.pod("plain", "peer")
	z.setRefuse("no certificate")
	l.manifest("pods", "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: mesh}\nspec: {serviceAccountName: other}\n")
	z.waitEvent("add uid-p other")
	s.eventuallyIs("served", "no certificate")
	for range 3 {
		l.e.Reconcile(t.Context(), Everything)
	}
	if st := s.status(); !strings.Contains(st.Problem, "no certificate") || st.ServiceAccount != "default" {
		t.Errorf("status: %+v", st)
	}
	for _, account := range []string{"default", "other"} { // Ztunnel needs the one, and asks for the other before it acks.
		if !l.e.MayImpersonate("spiffe://cluster.local/ns/mesh/sa/" + account) {
			t.Errorf("MayImpersonate(%s): got false", account)
		}
	}
	peer.wantGreeting(netip.AddrPortFrom(s.Addr4, 80), "z inbound4")
	z.setRefuse("")
	s.eventuallyIs("served", "")
	if st := s.status(); st.ServiceAccount != "other" || z.seen("del uid-p") != 0 {
		t.Errorf("status: %+v; removed %d times", st, z.seen("del uid-p"))
	}
	if l.e.MayImpersonate("spiffe://cluster.local/ns/mesh/sa/default") {
		t.Error("the identity that the pod had may still be impersonated")
	}
}

func TestServeOfARestoredPodNeedsZtunnelsAck(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z")
	s := l.pod("mesh", "p").mustAdd()
	z.kill()
	l.restart()
	_, err := s.ask(nodeapi.VerbServe)
	if e := refusal(t, err); e.Code != nodeapi.CodeTryAgain || !strings.Contains(e.Message, "no ztunnel connected") {
		t.Errorf("serve without a ztunnel: %v", e)
	}
	z = l.ztunnel("z", refusing("cannot bind"))
	_, err = s.ask(nodeapi.VerbServe)
	if e := refusal(t, err); e.Code != nodeapi.CodeTryAgain || !strings.Contains(e.Message, "cannot bind") {
		t.Errorf("serve by a ztunnel that refuses: %v", e)
	}
	s.eventuallyIs("served", "cannot bind") // Also if only the snapshot told it so.
	z.setRefuse("")
	_, err = s.ask(nodeapi.VerbServe)
	l.must(err)
	s.eventuallyIs("served", "")
}

func TestSandboxThatFailsGivesItsPlaceBack(t *testing.T) {
	l := newLab(t, nil)
	z := l.ztunnel("z")
	old, peer := l.pod("mesh", "p").mustAdd(), l.pod("plain", "peer")
	z.setRefuse("cannot bind")
	if err := l.pod("mesh", "p").add(); err == nil { // Same uid and name, other container and namespace.
		t.Fatal("add succeeded")
	}
	z.waitEvent("del uid-p")
	z.setRefuse("")
	old.eventuallyIs("served", "")
	peer.wantGreeting(netip.AddrPortFrom(old.Addr4, 80), "z inbound4")
	if !old.published() {
		t.Error("workload file is gone")
	}
}
