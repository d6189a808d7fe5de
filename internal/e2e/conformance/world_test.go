// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// effect bounds how long a change may take to be seen.
const effect = 15 * time.Second

// inMesh and outside are the pods by node. Those outside the mesh are run by the tests themselves.
var (
	inMesh  = [2][]string{{"client", "near"}, {"server", "sandwich", "proxied", "walled", "leaver"}}
	outside = [2][]string{{"plain"}, {"waypoint", "gateway", "tcpserver"}}
)

// world is two nodes with pods, which all scenarios share.
type world struct {
	*lab.Lab
	pods map[string]*lab.Pod
	ca   *testutil.CA
	// authorities stops the certificate authorities.
	authorities func() error
	now         string // the view that the ztunnels have
	broken      bool
	crls        int
}

var (
	shared = sync.OnceValues(newWorld)
	// down takes away what newWorld made, so far as it came.
	down = func() error { return nil }
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := down(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func newWorld() (w *world, err error) {
	build, done, err := lab.Binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sluice-conformance-")
	if err != nil {
		return nil, errors.Join(err, done())
	}
	w = &world{
		Lab:  lab.New("cf-"+strings.ToLower(rand.Text()[:5]), filepath.Join(dir, "lab"), build),
		pods: map[string]*lab.Pod{}, authorities: func() error { return nil },
	}
	down = func() error { return errors.Join(w.Down(), w.authorities(), os.RemoveAll(dir), done()) }
	if err := os.MkdirAll(w.Manifests(), 0o755); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Write("mesh.yaml", manifests()), w.Write("leaver.yaml", podManifest("leaver", "ambient")), w.Up(), w.addPods(), w.openCA()); err != nil {
		return w, err
	}
	return w, nil
}

// manifests is what the agents know, but for the pod that leaves.
func manifests() string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: mesh, labels: {istio.io/dataplane-mode: ambient}}\n")
	for _, names := range inMesh {
		for _, name := range names {
			if name != "leaver" {
				b.WriteString("---\n" + podManifest(name, "ambient"))
			}
		}
	}
	return b.String()
}

func podManifest(name, mode string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: mesh, labels: {istio.io/dataplane-mode: %s}}\nspec: {serviceAccountName: %s}\n", name, mode, name)
}

func (w *world) addPods() error {
	for i, node := range w.Nodes {
		for namespace, names := range map[string][]string{"mesh": inMesh[i], "plain": outside[i]} {
			for _, name := range names {
				p, err := node.AddPod(lab.PodSpec{Name: name, Namespace: namespace})
				if err != nil {
					return err
				}
				w.pods[name] = p
			}
		}
	}
	return nil
}

// enter returns the shared world with the ztunnels knowing a view, restarted if they know another.
func enter(t *testing.T, v *view) *scene {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	w, err := shared()
	if err != nil {
		if w != nil {
			w.showLogs(t)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			w.showLogs(t)
		}
	})
	s := &scene{w, t}
	if w.broken {
		t.Fatal("an earlier test left no working ztunnels")
	}
	if w.now != v.name {
		w.broken = true
		s.restart(v)
		w.broken = false
	}
	return s
}

// scene is the world in one test.
type scene struct {
	*world
	t *testing.T
}

// showLogs prints the last lines of every log.
func (w *world) showLogs(t *testing.T) {
	paths, _ := filepath.Glob(filepath.Join(w.Logs(), "*.log"))
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		t.Logf("%s:\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// restart has the ztunnels know a view, and waits until the kernel captures what is in it.
func (s *scene) restart(v *view) {
	s.t.Helper()
	s.now = ""
	for i, n := range s.Nodes {
		s.must(n.RestartZtunnel(s.flags(v, i)...))
	}
	for _, n := range s.Nodes {
		s.must(n.WaitReady())
		testutil.Eventually(s.t, effect, func() error {
			if got := s.metric(n, "sluice_destinations"); got < 6 {
				return fmt.Errorf("%s captures %v destinations", n.Name, got)
			}
			return nil
		})
	}
	s.now = v.name
}

// flags are those of one node's ztunnel.
func (s *scene) flags(v *view, node int) []string {
	s.t.Helper()
	name := s.Nodes[node].Name
	objects := filepath.Join(s.Dir, v.name+"-"+name+".yaml")
	s.must(os.WriteFile(objects, []byte(s.fill(v.objects[node])), 0o600))
	if _, err := os.Stat(s.crlPath(node)); err != nil {
		s.revoke(node)
	}
	flags := []string{
		"--xds-address=", "--ca-address", "unix://" + s.caSocket("cluster.local"), "--local-xds-path", objects,
		"--crl-path", s.crlPath(node), "--stats-address", ":15020", "--readiness-address", ":15021",
		"--pod-name", "ztunnel-" + name, "--pod-namespace", "sluice-system", "--service-account", "ztunnel",
	}
	if v.flags != nil {
		flags = append(flags, v.flags(s.world, node)...)
	}
	return flags
}

// inside is a pod's namespace as testutil sees it.
func inside(p *lab.Pod) *testutil.NS { return &testutil.NS{Name: p.NS, Path: netns.NamedPath(p.NS)} }

func short(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), effect)
	t.Cleanup(cancel)
	return ctx
}
