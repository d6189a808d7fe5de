// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	ask "github.com/sluice-mesh/sluice/installer/cri"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// call is a line of the recorder's.
type call struct {
	Command, ContainerID, Netns, Args string
	PrevResult                        bool
}

// recorded returns the calls with a command for a sandbox; empty stands for any.
func (n *node) recorded(command, sandbox string) (calls []call) {
	n.t.Helper()
	f, err := os.Open(n.calls())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	n.must(err)
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var c call
		n.must(json.Unmarshal(s.Bytes(), &c))
		if (command == "" || c.Command == command) && (sandbox == "" || c.ContainerID == sandbox) {
			calls = append(calls, c)
		}
	}
	return calls
}

// waitChain waits until the runtime has loaded these plugins.
func (n *node) waitChain(plugins ...string) {
	n.t.Helper()
	testutil.Eventually(n.t, effect, func() error {
		info, err := ask.Ask(n.t.Context(), n.socket())
		if err == nil && !slices.Equal(info.Plugins, plugins) {
			err = fmt.Errorf("the runtime has loaded %v, want %v", info.Plugins, plugins)
		}
		return err
	})
}

// each runs a test with every runtime, one after another.
func each(t *testing.T, test func(*testing.T, release)) {
	for _, r := range releases(t) {
		t.Run(r.name, func(t *testing.T) { test(t, r) })
	}
}

// newest runs a test that takes long with one runtime only.
func newest(t *testing.T, test func(*testing.T, release)) {
	found := releases(t)
	test(t, found[len(found)-1])
}

func TestPodsOfARealRuntime(t *testing.T) {
	each(t, func(t *testing.T, r release) {
		n := newMeshNode(t, r)
		info, err := ask.Ask(t.Context(), n.socket())
		n.must(err)
		if info.Name != "containerd" || info.ConfDir != n.NetDir() || !slices.Equal(info.BinDirs, []string{n.BinDir()}) {
			t.Errorf("the runtime tells %+v, want %s and %s", info, n.NetDir(), n.BinDir())
		}
		server, client, legacy := n.mustRun("server", "mesh"), n.mustRun("client", "mesh"), n.mustRun("legacy", "plain")
		n.wantMesh("new pods", client, server, legacy)
		n.must(n.restartApp(server))
		n.wantMesh("after the container's restart", client, server, legacy)

		n.wantArgs(server)
		n.wantTwoDels(client)
		client = n.mustRun("client", "mesh")
		n.wantMesh("a pod of the same name", client, server, legacy)
		if calls := append(n.recorded("CHECK", ""), n.recorded("GC", "")...); len(calls) > 0 {
			t.Errorf("got %v: this runtime uses CHECK or GC, test them here", calls)
		}
	})
}

func (n *node) wantArgs(p *pod) {
	n.t.Helper()
	adds := n.recorded("ADD", p.sandbox)
	if len(adds) != 1 || !adds[0].PrevResult || adds[0].Netns != p.Path {
		n.t.Fatalf("got %+v, want one ADD for %s with a result of those before", adds, p.Path)
	}
	args := strings.Split(adds[0].Args, ";")
	slices.Sort(args) // their order is any
	want := []string{
		"IgnoreUnknown=1", "K8S_POD_INFRA_CONTAINER_ID=" + p.sandbox, "K8S_POD_NAME=" + p.name,
		"K8S_POD_NAMESPACE=" + p.config.Metadata.Namespace, "K8S_POD_UID=" + p.config.Metadata.Uid,
	}
	if !slices.Equal(args, want) {
		n.t.Errorf("CNI_ARGS: got %v, want %v", args, want)
	}
}

// wantTwoDels removes the pod: DEL comes with its namespace when it is stopped, and without when it is removed.
func (n *node) wantTwoDels(p *pod) {
	n.t.Helper()
	n.must(n.removePod(p))
	dels := n.recorded("DEL", p.sandbox)
	if len(dels) != 2 || dels[0].Netns != p.Path || dels[1].Netns != "" || !dels[0].PrevResult {
		n.t.Errorf("got %+v, want one DEL with the namespace and one without", dels)
	}
	n.wantUnknown(p.name)
}

// wantUnknown waits until the agent lists no such pod.
func (n *node) wantUnknown(names ...string) {
	n.t.Helper()
	testutil.Eventually(n.t, effect, func() error {
		out, err := n.lab.Output(n.NS, effect, n.lab.Bin("sluice-installer"), "status", "--run-dir", n.RunDir())
		for _, name := range names {
			if strings.Contains(out, "/"+name+" ") {
				return fmt.Errorf("the agent still lists %s:\n%s", name, out)
			}
		}
		return err
	})
}

func TestStatusDecidesWhetherTheNodeIsReady(t *testing.T) {
	each(t, func(t *testing.T, r release) {
		n := newNode(t, r)
		n.must(n.Install())
		n.waitChain("bridge", "portmap", "recorder", "sluice-cni")
		c, err := n.condition(cri.NetworkReady)
		n.must(err)
		if !r.status {
			if !c.Status || len(n.recorded("STATUS", "")) > 0 {
				t.Errorf("got %v, want a runtime that does not ask for STATUS to be ready", c)
			}
			return
		}
		if c.Status || !strings.Contains(c.Message, "the Sluice agent has not been ready since this node booted") {
			t.Errorf("without agent: got %v, want the plugin's words", c)
		}
		n.startAgent()
		n.must(n.StartZtunnel())
		n.must(n.WaitReady())
		n.wantNetworkReady("with an agent")
		n.must(n.Agent.Kill())
		n.wantNetworkReady("while the agent restarts")
		if calls := n.recorded("STATUS", ""); len(calls) == 0 || calls[0].ContainerID != "" || calls[0].Netns != "" || calls[0].PrevResult {
			t.Errorf("got %v, want STATUS without a container", calls)
		}
	})
}

func (n *node) wantNetworkReady(when string) {
	n.t.Helper()
	testutil.Eventually(n.t, effect, func() error {
		c, err := n.condition(cri.NetworkReady)
		if err == nil && !c.Status {
			err = fmt.Errorf("%s: not ready: %s", when, c.Message)
		}
		return err
	})
}

// A pod that cannot be enrolled is refused in words that reach whoever made it, and leaves nothing.
func TestRefusedPodLeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, r release) {
		n := newMeshNode(t, r)
		first := n.mustRun("first", "mesh")
		n.must(n.Agent.Kill())
		_, err := n.runPod("early", "mesh")
		for _, want := range []string{`type="sluice-cni"`, `namespace "mesh" has pods in the mesh`, "the pod is created as soon as the Sluice agent and its ztunnel on this node are ready"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want it to say %q", err, want)
			}
		}
		adds := n.recorded("ADD", "")
		last := adds[len(adds)-1].ContainerID
		if dels := n.recorded("DEL", last); last == first.sandbox || len(dels) == 0 {
			t.Errorf("got %d DEL behind the ADD that was refused, want one at least", len(dels))
		}
		leases, err := filepath.Glob(filepath.Join(n.ipam(), "lab", "10.*"))
		if err != nil || len(leases) != 1 {
			t.Errorf("addresses in use: got %v, %v, want that of the first pod alone", leases, err)
		}
		for _, namespace := range []string{"plain", "kube-system", "sluice-system"} {
			if err := reaches(n.mustRun("other-"+namespace, namespace), first); err == nil {
				t.Errorf("a pod of %s reached one that takes nothing but mTLS", namespace)
			}
		}
		n.startAgent()
		n.must(n.WaitReady())
		if err := reaches(n.mustRun("early", "mesh"), first); err != nil {
			t.Error(err)
		}
	})
}

// The old runtime says that it is ready with a configuration whose version it cannot do, and fails every pod.
func TestVersionThatTheRuntimeCannotDo(t *testing.T) {
	each(t, func(t *testing.T, r release) {
		n := newNode(t, r)
		n.writeConflist("1.1.0")
		n.waitChain("bridge", "portmap", "recorder")
		n.wantNetworkReady("with 1.1.0")
		p, err := n.runPod("p", "plain")
		if r.version == "1.1.0" {
			n.must(err)
			n.must(n.removePod(p)) // it cannot go without configuration either
		} else if err == nil || !strings.Contains(err.Error(), `unsupported CNI result version "1.1.0"`) {
			t.Errorf("got %v, want a refusal of 1.1.0", err)
		}
		n.must(os.Remove(n.ConflistPath()))
		testutil.Eventually(t, effect, func() error {
			c, err := n.condition(cri.NetworkReady)
			if err == nil && c.Status {
				err = errors.New("ready without configuration")
			}
			return err
		})
	})
}
