// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// noSandbox is what GC and STATUS come with.
var noSandbox = &sandbox{}

func valid(all ...*sandbox) map[string]any {
	list := []map[string]string{}
	for _, s := range all {
		list = append(list, map[string]string{"containerID": s.containerID, "ifname": "eth0"})
	}
	return map[string]any{"cni.dev/valid-attachments": list, "cni.dev/attachments": list}
}

func TestGCKeepsWhatIsListed(t *testing.T) {
	l := newLab(t)
	kept, _ := l.sandbox("mesh", "kept")
	gone, pod := l.sandbox("mesh", "gone")
	before := l.snapshot(pod.NS)
	l.cni("ADD", gone, nil).wantOK(t)
	l.cni("ADD", kept, nil).wantOK(t)
	l.agent.verbs()

	if o := l.cni("GC", noSandbox, valid(kept)).wantOK(t); o.stdout != "" {
		t.Errorf("stdout: got %q, want nothing", o.stdout)
	}
	l.wantAttached(kept.containerID)
	l.cni("CHECK", kept, nil).wantOK(t)
	calls := l.agent.requests()
	want := []nodeapi.Attachment{{ContainerID: kept.containerID, IfName: "eth0"}}
	if len(calls) != 1 || calls[0].Verb != nodeapi.VerbGC || calls[0].Network != "pods" || !slices.Equal(calls[0].Valid, want) {
		t.Errorf("agent was asked %+v", calls)
	}
	l.cni("GC", noSandbox, valid(kept)).wantOK(t)
	l.wantAttached(kept.containerID)

	l.cni("GC", noSandbox, valid()).wantOK(t)
	l.wantAttached()
	wantSame(t, "after GC", l.snapshot(pod.NS), before)
}

func TestGCOfAnotherNetworkLeavesOursAlone(t *testing.T) {
	l := newLab(t)
	s, _ := l.sandbox("mesh", "p")
	l.cni("ADD", s, nil).wantOK(t)
	extra := valid()
	extra["name"] = "storage"
	l.cni("GC", noSandbox, extra).wantOK(t)
	l.wantAttached(s.containerID)
}

// A runtime that sends no list does not say that there are no pods.
func TestGCWithoutAListRemovesOnlyTheDead(t *testing.T) {
	l := newLab(t)
	s, _ := l.sandbox("mesh", "p")
	dead, pod := l.sandbox("mesh", "dead")
	l.cni("ADD", s, nil).wantOK(t)
	l.cni("ADD", dead, nil).wantOK(t)
	l.agent.release(dead.containerID) // its listeners keep the namespace alive
	pod.Delete(t)
	l.agent.verbs()
	testutil.Eventually(t, 10*time.Second, func() error {
		l.cni("GC", noSandbox, nil).wantOK(t)
		if got := l.attached(); !slices.Equal(got, []string{s.containerID}) {
			return fmt.Errorf("attached %v, want %v", got, s.containerID)
		}
		return nil
	})
	l.agent.wantVerbs()
}

func TestGCSucceedsWithNothingThere(t *testing.T) {
	l := newLab(t)
	l.agent.stop()
	l.cni("GC", noSandbox, valid()).wantOK(t)
	extra := valid()
	extra["pinRoot"] = "/nowhere"
	l.cni("GC", noSandbox, extra).wantOK(t)
}
