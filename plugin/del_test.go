// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

func TestDelTakesEverythingBack(t *testing.T) {
	l := newLab(t)
	s, pod := l.sandbox("mesh", "p")
	before := l.snapshot(pod.NS)
	l.cni("ADD", s, nil).wantOK(t)
	if l.snapshot(pod.NS) == before {
		t.Fatal("ADD changed nothing that the test could see")
	}
	l.agent.verbs()
	if o := l.cni("DEL", s, nil).wantOK(t); o.stdout != "" {
		t.Errorf("stdout: got %q, want nothing", o.stdout)
	}
	l.agent.wantVerbs(nodeapi.VerbRelease)
	wantSame(t, "after DEL", l.snapshot(pod.NS), before)
	l.cni("DEL", s, nil).wantOK(t)
	wantSame(t, "after DEL again", l.snapshot(pod.NS), before)
}

func TestDelSucceeds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		breakIt func(l *lab, s *sandbox)
		extra   map[string]any
		keeps   bool // the pins stay: the configuration does not lead to them
	}{
		"as containerd calls it on remove: no netns": {breakIt: func(_ *lab, s *sandbox) { s.netns = "" }},
		"netns is gone": {breakIt: func(l *lab, s *sandbox) {
			for _, ns := range l.pods {
				ns.Delete(l.t)
			}
		}},
		"netns path is a file":  {breakIt: func(l *lab, s *sandbox) { s.netns = l.dir + "/file"; l.must(os.WriteFile(s.netns, nil, 0o600)) }},
		"no prevResult":         {breakIt: func(_ *lab, s *sandbox) { s.prev = "" }},
		"prevResult unreadable": {breakIt: func(_ *lab, s *sandbox) { s.prev = `{"ips":[null]}` }},
		"agent away":            {breakIt: func(l *lab, _ *sandbox) { l.agent.stop() }},
		"agent does not know it": {breakIt: func(l *lab, _ *sandbox) {
			l.agent.refuse(nodeapi.VerbRelease, nodeapi.CodeNotFound, "no such pod")
		}},
		"agent of another release": {breakIt: func(l *lab, _ *sandbox) {
			l.agent.refuse(nodeapi.VerbRelease, nodeapi.CodeBadRequest, "version 1: this agent speaks version 2")
		}},
		"no CNI_ARGS":     {breakIt: func(_ *lab, s *sandbox) { s.namespace = "" }},
		"half CNI_ARGS":   {breakIt: func(_ *lab, s *sandbox) { s.name = "" }},
		"unknown key":     {extra: map[string]any{"color": "red"}},
		"wrong type":      {extra: map[string]any{"stateDir": 7}},
		"network renamed": {extra: map[string]any{"name": "renamed"}},
		"pins missing":    {extra: map[string]any{"pinRoot": "/nowhere/at/all"}, keeps: true},
		"pins not on bpf": {extra: map[string]any{"pinRoot": "/tmp"}, keeps: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			s, _ := l.sandbox("mesh", "p")
			l.cni("ADD", s, nil).wantOK(t)
			if tc.breakIt != nil {
				tc.breakIt(l, s)
			}
			for range 2 {
				l.cni("DEL", s, tc.extra).wantOK(t)
			}
			if !tc.keeps {
				l.wantAttached()
			}
		})
	}
}

func TestDelTellsWhatWentWrongAndDoesTheRest(t *testing.T) {
	l := newLab(t)
	s, _ := l.sandbox("mesh", "p")
	l.cni("ADD", s, nil).wantOK(t)
	l.agent.refuse(nodeapi.VerbRelease, nodeapi.CodeInternal, "cannot close")
	l.cni("DEL", s, nil).wantError(t, types.ErrTryAgainLater, "sluice-cni: delete pod mesh/p: release: agent: cannot close")
	l.wantAttached()
}

func TestDelOfANamelessSandboxAsksNobody(t *testing.T) {
	l := newLab(t)
	for _, namespace := range []string{"", "kube-system"} {
		s, _ := l.sandbox(namespace, "p")
		l.cni("DEL", s, nil).wantOK(t)
	}
	l.agent.wantVerbs()
}
