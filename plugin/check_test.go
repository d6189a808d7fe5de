// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestCheckNamesEachKindOfDamage(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		damage func(l *lab, s *sandbox, pod *testutil.Pod)
		words  []string
	}{
		"rule gone":       {func(l *lab, _ *sandbox, pod *testutil.Pod) { deleteRules(l, pod.NS, netlink.FAMILY_V4) }, []string{"rule"}},
		"IPv6 rule gone":  {func(l *lab, _ *sandbox, pod *testutil.Pod) { deleteRules(l, pod.NS, netlink.FAMILY_V6) }, []string{"rule"}},
		"route gone":      {func(l *lab, _ *sandbox, pod *testutil.Pod) { deleteRoutes(l, pod.NS, netlink.FAMILY_V4) }, []string{"route"}},
		"IPv6 route gone": {func(l *lab, _ *sandbox, pod *testutil.Pod) { deleteRoutes(l, pod.NS, netlink.FAMILY_V6) }, []string{"route"}},
		"sysctl reset": {func(l *lab, _ *sandbox, pod *testutil.Pod) { pod.Sysctl(l.t, "net.ipv4.conf.lo.accept_local", "0") },
			[]string{"accept_local"}},
		"slots empty": {func(l *lab, s *sandbox, _ *testutil.Pod) { l.agent.release(s.containerID) },
			[]string{"outbound4", "outbound6", "inbound4", "inbound6", "hbone4", "hbone6"}},
		"one slot empty": {func(l *lab, s *sandbox, _ *testutil.Pod) {
			p, err := l.bpfNode.Pod(s.uid)
			l.must(err)
			l.must(errors.Join(p.ClearListener(bpf.SlotHBONE4), p.Close()))
		}, []string{"hbone4"}},
		"rule, route and slot": {func(l *lab, s *sandbox, pod *testutil.Pod) {
			deleteRules(l, pod.NS, netlink.FAMILY_V4)
			deleteRoutes(l, pod.NS, netlink.FAMILY_V6)
			l.agent.release(s.containerID)
		}, []string{"rule", "route", "hbone4"}},
		"another netns": {func(l *lab, s *sandbox, _ *testutil.Pod) {
			_, other := l.sandbox("mesh", "other")
			s.netns = other.Path
		}, []string{"has inode", "but the programs were attached in"}},
		"another interface": {func(l *lab, s *sandbox, pod *testutil.Pod) {
			pod.Run(l.t, "ip", "link", "add", "extra", "type", "bridge")
			s.prev = strings.Replace(s.prev, `"interfaces":[`, `"interfaces":[{"name":"extra","sandbox":"`+s.netns+`"},`, 1)
			s.prev = strings.ReplaceAll(s.prev, `"interface":1`, `"interface":2`)
		}, []string{`interface "extra" is not captured`}},
		"detached": {func(l *lab, s *sandbox, _ *testutil.Pod) { l.detach(s.uid) },
			[]string{"the pod is enrolled, but no programs are attached to it"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			s, pod := l.sandbox("mesh", "p")
			l.cni("ADD", s, nil).wantOK(t)
			if o := l.cni("CHECK", s, nil).wantOK(t); o.stdout != "" {
				t.Errorf("stdout: got %q, want nothing", o.stdout)
			}
			tc.damage(l, s, pod)
			l.agent.requests()
			l.cni("CHECK", s, nil).wantError(t, codeDamaged, append(tc.words, "sluice-cni: check pod mesh/p: ")...)
			for _, r := range l.agent.requests() {
				if r.Verb != nodeapi.VerbDecide || !r.DryRun {
					t.Errorf("agent was asked %+v: CHECK must not change what it knows", r)
				}
			}
		})
	}
}

// deleteRules deletes the rules that the kernel did not make.
func deleteRules(l *lab, ns *testutil.NS, family int) {
	l.t.Helper()
	deleted := 0
	ns.MustDo(l.t, func() error {
		rules, err := netlink.RuleList(family)
		for _, r := range rules {
			if r.Mark != 0 {
				deleted++
				r.Family = family
				err = errors.Join(err, netlink.RuleDel(&r))
			}
		}
		return err
	})
	if deleted == 0 {
		l.t.Fatal("there was no rule to delete")
	}
}

// deleteRoutes deletes the routes in tables that the kernel does not use.
func deleteRoutes(l *lab, ns *testutil.NS, family int) {
	l.t.Helper()
	deleted := 0
	ns.MustDo(l.t, func() error {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			if r.Table < 253 || r.Table > 255 {
				deleted++
				err = errors.Join(err, netlink.RouteDel(&r))
			}
		}
		return err
	})
	if deleted == 0 {
		l.t.Fatal("there was no route to delete")
	}
}

func TestCheckGoesOnWithoutAgent(t *testing.T) {
	l := newLab(t)
	s, _ := l.sandbox("mesh", "p")
	plain, _ := l.sandbox("plain", "p")
	l.cni("ADD", s, nil).wantOK(t)
	l.cni("ADD", plain, nil).wantOK(t)
	l.knows("mesh")
	l.agent.stop()
	l.cni("CHECK", s, nil).wantOK(t)
	l.cni("CHECK", plain, nil).wantOK(t)

	// Nobody can tell whether this one should have programs.
	l.detach(s.uid)
	l.cni("CHECK", s, nil).wantError(t, types.ErrTryAgainLater, "no such socket")
}

func TestCheckOfALegacyPodInAnEnrolledNamespace(t *testing.T) {
	l := newLab(t)
	s, _ := l.sandbox("mesh", "p")
	l.agent.put(nodeapi.VerbDecide, func(*nodeapi.Request) (nodeapi.Answer, *nodeapi.Error) {
		return nodeapi.Answer{Response: nodeapi.Response{Decision: &nodeapi.Decision{Reason: "pod opted out"}}}, nil
	})
	l.cni("ADD", s, nil).wantOK(t)
	l.cni("CHECK", s, nil).wantOK(t)
	l.wantAttached()
}
