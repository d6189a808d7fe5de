// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// The whole life of a pod in a real chain: bridge and host-local, then ours, through the library that runtimes use.
func TestChain(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			l := newLab(t)
			testChain(t, l.runtime(version, l.dir+"/bin"), version)
		})
	}
}

// The same with the binary as it is shipped.
func TestChainWithTheBuiltBinary(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/sluice-cni", ".")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build.Args, err, out)
	}
	testChain(t, l.runtime("1.1.0", dir), "1.1.0")
}

func testChain(t *testing.T, r *runtime, version string) {
	s, pod := r.bare("mesh", "web")
	empty := r.snapshot(pod)
	result, err := r.add(s)
	if err != nil {
		t.Fatal(err)
	}
	if result.Version() != version {
		t.Errorf("result has version %s, want %s", result.Version(), version)
	}
	current, err := types100.GetResult(result)
	r.must(err)
	if len(current.IPs) != 2 || len(current.Interfaces) < 3 || len(current.Routes) != 2 {
		t.Errorf("got result %+v, want what bridge and host-local made", current)
	}
	r.wantAttached(s.containerID)
	calls := r.agent.requests()
	if len(calls) != 2 || calls[1].Verb != nodeapi.VerbServe || len(calls[1].Pod.Addresses()) != 2 || calls[1].Pod.Interfaces[0].HostIfindex == 0 {
		t.Errorf("agent was asked %+v", calls)
	}

	if err := r.check(s); version == "0.3.1" {
		if !errors.Is(err, libcni.ErrorCheckNotSupp) {
			t.Errorf("CHECK: got %v, want %v", err, libcni.ErrorCheckNotSupp)
		}
	} else if err != nil {
		t.Errorf("CHECK: %v", err)
	}

	// As containerd does it: on stop, and once more on remove without a namespace.
	r.must(r.del(s))
	r.wantAttached()
	wantSame(t, "after DEL", withoutBridge(r.snapshot(pod)), withoutBridge(empty))
	s.netns = ""
	r.must(r.del(s))
}

// withoutBridge drops what belongs to cni0, which the bridge plugin leaves.
func withoutBridge(snapshot string) string {
	var b bytes.Buffer
	for line := range strings.Lines(snapshot) {
		if !strings.Contains(line, "cni0") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// What the runtime shows its user when the agent is away names the pod, the cause and the way out.
func TestChainReportsTheError(t *testing.T) {
	l := newLab(t)
	r := l.runtime("1.0.0", l.dir+"/bin")
	l.agent.stop()
	s, pod := l.bare("mesh", "web")
	empty := l.snapshot(pod)
	_, err := r.add(s)
	var cniErr *types.Error
	if !errors.As(err, &cniErr) || cniErr.Code != types.ErrTryAgainLater {
		t.Fatalf("got %#v, want code 11", err)
	}
	for _, want := range []string{"mesh/web", "no such socket", l.settings["agentSocket"].(string), "the runtime tries again by itself"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to contain %q", err, want)
		}
	}
	r.must(r.del(s)) // the runtime does that next
	wantSame(t, "after DEL", withoutBridge(l.snapshot(pod)), withoutBridge(empty))

	l.agent = startAgent(t, l.settings["agentSocket"].(string), l.bpfNode)
	if _, err := r.add(s); err != nil {
		t.Fatalf("with the agent back: %v", err)
	}
	l.wantAttached(s.containerID)
}

func TestChainGCAndStatus(t *testing.T) {
	l := newLab(t)
	r := l.runtime("1.1.0", l.dir+"/bin")
	ctx := context.Background()
	status := func() error { return l.node.Do(func() error { return r.config.GetStatusNetworkList(ctx, r.list) }) }
	if err := status(); err == nil || !strings.Contains(err.Error(), "has not been ready since this node booted") {
		t.Errorf("STATUS: got %v", err)
	}
	l.must(nodeapi.MarkReady(l.dir + "/run"))
	l.must(status())

	a, _ := l.bare("mesh", "a")
	b, _ := l.bare("mesh", "b")
	for _, s := range []*sandbox{a, b} {
		if _, err := r.add(s); err != nil {
			t.Fatal(err)
		}
	}
	gc := func(valid ...types.GCAttachment) {
		t.Helper()
		l.node.MustDo(t, func() error { return r.config.GCNetworkList(ctx, r.list, &libcni.GCArgs{ValidAttachments: valid}) })
	}
	gc(types.GCAttachment{ContainerID: b.containerID, IfName: "eth0"})
	l.wantAttached(b.containerID)
	gc()
	l.wantAttached()
}
