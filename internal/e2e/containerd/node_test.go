// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const (
	// effect bounds how long a change may take to be seen.
	effect = 20 * time.Second
	// callTimeout bounds one CRI call, under the load of 50 pods.
	callTimeout = 60 * time.Second
)

const manifests = `
apiVersion: v1
kind: Namespace
metadata: {name: mesh, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: mesh}
spec: {mtls: {mode: STRICT}}
`

// node is a node of a lab whose pods a containerd makes.
type node struct {
	*lab.Node
	lab     *lab.Lab
	t       *testing.T
	release release
	image   string
	runtime *lab.Proc
	starts  map[string]int // processes so far, by kind
	conn    *grpc.ClientConn
	cri     cri.RuntimeServiceClient
}

// newNode starts a containerd with the plugins of a primary CNI; of ours nothing runs yet.
func newNode(t *testing.T, r release) *node {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	b, err := build()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sl-ctrd-") // short: the name of a socket has a limit
	if err != nil {
		t.Fatal(err)
	}
	if err := shareMounts(dir); err != nil {
		t.Fatal(err)
	}
	name := "ctrd-" + strings.ToLower(rand.Text()[:5])
	l := lab.New(name, filepath.Join(dir, "lab"), b.dir)
	n := &node{Node: l.Nodes[0], lab: l, t: t, release: r, image: b.image, starts: map[string]int{}}
	t.Cleanup(func() {
		if t.Failed() {
			n.showLogs()
		}
		if err := errors.Join(n.down(), unix.Unmount(dir, unix.MNT_DETACH), os.RemoveAll(dir)); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	n.must(l.UpBare())
	n.must(l.Write("mesh.yaml", manifests))
	n.must(os.Symlink(filepath.Join(b.own, "recorder"), filepath.Join(n.BinDir(), "recorder")))
	n.writeConflist(r.version)
	n.must(os.MkdirAll(n.ctrd(), 0o755))
	n.must(os.WriteFile(n.ctrd("config.toml"), fmt.Appendf(nil, r.toml, n.ctrd(), filepath.Dir(n.BinDir())), 0o644))
	n.startRuntime()
	out, err := l.Output(n.NS, effect, "ctr", "-a", n.socket(), "-n", "k8s.io", "images", "import", n.image)
	if err != nil {
		t.Fatalf("import image: %v\n%s", err, out)
	}
	return n
}

// newMeshNode is newNode with agent and ztunnel, and with our entry in the runtime's chain.
func newMeshNode(t *testing.T, r release) *node {
	t.Helper()
	n := newNode(t, r)
	n.startAgent()
	n.must(n.StartZtunnel())
	n.must(n.WaitReady())
	n.waitChain("bridge", "portmap", "recorder", "sluice-cni")
	return n
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// ctrd is a path in the runtime's folder.
func (n *node) ctrd(parts ...string) string {
	return filepath.Join(append([]string{n.lab.Dir, "ctrd"}, parts...)...)
}

func (n *node) socket() string { return n.ctrd("ctrd.sock") }

// calls is where the recorder writes.
func (n *node) calls() string { return n.ctrd("calls") }

// writeConflist replaces the primary CNI's configuration by one without us, as its owner would.
func (n *node) writeConflist(version string) {
	n.t.Helper()
	n.must(n.replaceConflist(version))
}

func (n *node) replaceConflist(version string) error {
	conf, err := json.MarshalIndent(map[string]any{"cniVersion": version, "name": "lab", "plugins": []any{
		map[string]any{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": map[string]any{
			"type": "host-local", "dataDir": n.ipam(), "routes": []any{map[string]string{"dst": "0.0.0.0/0"}, map[string]string{"dst": "::/0"}},
			"ranges": []any{[]any{map[string]string{"subnet": n.Pods4.String()}}, []any{map[string]string{"subnet": n.Pods6.String()}}},
		}},
		map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": false, "backend": "nftables"},
		map[string]any{"type": "recorder", "log": n.calls()},
	}}, "", "  ")
	if err != nil {
		return err
	}
	aside := n.ConflistPath() + ".new"
	if err := os.WriteFile(aside, conf, 0o644); err != nil {
		return err
	}
	return os.Rename(aside, n.ConflistPath())
}

func (n *node) ipam() string { return n.ctrd("ipam") }

// numbered names the logs of processes of one kind apart.
func (n *node) numbered(kind string) string {
	n.starts[kind]++
	return fmt.Sprintf("%s-%d", kind, n.starts[kind])
}

// startRuntime returns when containerd answers.
func (n *node) startRuntime() {
	n.t.Helper()
	var err error
	// The shim is looked for on PATH, so that containerd needs its folder there first.
	path := "PATH=" + filepath.Dir(n.release.path) + ":/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
	n.runtime, err = n.lab.Start(n.NS, n.numbered("containerd"), "/usr/bin/env", path, n.release.path, "-c", n.ctrd("config.toml"))
	n.must(err)
	if n.conn == nil {
		n.conn, err = grpc.NewClient("unix://"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		n.must(err)
		n.cri = cri.NewRuntimeServiceClient(n.conn)
	}
	testutil.Eventually(n.t, effect, func() error {
		if !n.runtime.Alive() {
			return errors.New("containerd ended")
		}
		_, err := n.condition(cri.RuntimeReady)
		return err
	})
}

// startAgent has the agent find the runtime's folders by itself. Its entry is in the list, unless flags say otherwise.
func (n *node) startAgent(flags ...string) {
	n.t.Helper()
	var err error
	n.Agent, err = n.lab.Start(n.NS, n.numbered("agent"), append([]string{
		n.lab.Bin("sluice-installer"), "agent", "--run-dir", n.RunDir(), "--state-dir", n.StateDir(), "--pin-root", n.PinRoot(),
		"--node-name", n.Name, "--manifests", n.lab.Manifests(), "--workloads", n.lab.Workloads(), "--ca-dir", n.lab.CA(),
		"--cni-bin-dir", "auto", "--cni-conf-dir", "auto", "--cri-socket", n.socket(), "--plugin", n.lab.Bin("sluice-cni"),
		"--cni-mode", "chained",
	}, flags...)...)
	n.must(err)
}

// condition returns one of the conditions that the runtime reports.
func (n *node) condition(kind string) (*cri.RuntimeCondition, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := n.cri.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return nil, err
	}
	for _, c := range s.Status.Conditions {
		if c.Type == kind {
			return c, nil
		}
	}
	return nil, fmt.Errorf("no condition %s", kind)
}

func (n *node) showLogs() {
	paths, _ := filepath.Glob(filepath.Join(n.lab.Logs(), "*.log"))
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		n.t.Logf("%s:\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}
