// SPDX-License-Identifier: Apache-2.0

package strange

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/leak"
	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const (
	echoPort = 7000
	// effect bounds how long a change may take to be seen.
	effect = 15 * time.Second
)

// names are the pods of the mesh, each with a service account of its name. Listed here so that the control plane knows
// them all from the start.
var names = []string{
	"peer", "twonets", "addresses", "anycast", "docker", "tap", "ports", "binds", "fastopen", "multipath", "device", "rules",
	"tunnel", "userns", "large", "small", "mapped", "self", "db0", "db1", "db2", "stream", "sysctls",
}

func manifests() string {
	var s strings.Builder
	s.WriteString(`
apiVersion: v1
kind: Namespace
metadata: {name: mesh, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: Service
metadata: {name: self, namespace: mesh}
spec:
  clusterIP: 10.96.0.20
  clusterIPs: [10.96.0.20, "fd00:10:96::20"]
  ipFamilies: [IPv4, IPv6]
  selector: {app: self}
  ports: [{name: tcp, port: 80, targetPort: 7000}]
`)
	for _, name := range names {
		fmt.Fprintf(&s, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: mesh, labels: {app: %s}}\nspec: {serviceAccountName: %s}\n", name, name, name)
	}
	return s.String()
}

// world is two nodes. On the second are an ordinary pod of the mesh and one outside it; both echo, as the host does
// that is no pod. Strange pods go on the first.
type world struct {
	*lab.Lab
	peer, legacy *lab.Pod
	closers      []func() error
}

var shared = sync.OnceValues(func() (*world, error) { return newWorld(false) })

var (
	binaries = sync.OnceValues(func() (string, error) {
		dir, done, err := lab.Binaries()
		if err == nil {
			atEnd(done)
		}
		return dir, err
	})
	ends   []func() error
	endsMu sync.Mutex
)

func atEnd(f func() error) {
	endsMu.Lock()
	defer endsMu.Unlock()
	ends = append(ends, f)
}

// TestMain takes down what the tests share.
func TestMain(m *testing.M) {
	if os.Getenv(inUserNS) != "" {
		os.Exit(runApp(os.Stdin, os.Stdout))
	}
	code := m.Run()
	for i := len(ends) - 1; i >= 0; i-- {
		if err := ends[i](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func newWorld(ipv6Only bool) (*world, error) {
	build, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sluice-strange-")
	if err != nil {
		return nil, err
	}
	w := &world{Lab: lab.New("st-"+strings.ToLower(rand.Text()[:5]), filepath.Join(dir, "lab"), build)}
	w.IPv6Only = ipv6Only
	atEnd(func() error {
		var errs []error
		for _, c := range w.closers {
			errs = append(errs, c())
		}
		return errors.Join(append(errs, w.Down(), os.RemoveAll(dir))...)
	})
	if err := os.MkdirAll(w.Manifests(), 0o755); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Write("mesh.yaml", manifests()), w.Up()); err != nil {
		return nil, err
	}
	if w.peer, err = w.Nodes[1].AddPod(lab.PodSpec{Name: "peer", Namespace: "mesh"}); err != nil {
		return nil, err
	}
	if w.legacy, err = w.Nodes[1].AddPod(lab.PodSpec{Name: "legacy", Namespace: "plain"}); err != nil {
		return nil, err
	}
	for _, name := range []string{"peer", "legacy", "outside"} {
		l, err := w.Listen(w.NS(name), fmt.Sprintf("[::]:%d", echoPort))
		if err != nil {
			return nil, err
		}
		w.closers = append(w.closers, l.Close)
		go serve(l, name)
	}
	return w, nil
}

// strange is the pod under test.
type strange struct {
	*lab.Pod
	*testutil.NS
	w     *world
	t     *testing.T
	leaks *leak.Watch // from known on
}

// newStrange makes one of the named pods on the first node, with an echo server.
func newStrange(t *testing.T, name string, edit ...func(*lab.PodSpec)) *strange {
	t.Helper()
	t.Parallel() // the pods are each test's own
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	w, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return w.add(t, name, edit...)
}

// add makes a pod, with an echo server unless it has a namespace of its own making.
func (w *world) add(t *testing.T, name string, edit ...func(*lab.PodSpec)) *strange {
	t.Helper()
	spec := lab.PodSpec{Name: name, Namespace: "mesh"}
	for _, e := range edit {
		e(&spec)
	}
	p, err := w.Nodes[0].AddPod(spec)
	if err != nil {
		t.Fatal(err)
	}
	s := &strange{Pod: p, NS: inside(p), w: w, t: t}
	t.Cleanup(func() {
		if t.Failed() {
			s.explain()
		}
		if err := w.Nodes[0].DelPod(p); err != nil {
			t.Errorf("delete pod %s: %v", p.Name, err)
		}
	})
	if spec.MakeNS == nil {
		s.echo(t, fmt.Sprintf("[::]:%d", echoPort))
		s.known()
	}
	return s
}

// known waits until the other node knows that the pod is in the mesh; before, it is reached in clear, as any new pod. From
// then on nothing may be.
func (s *strange) known() {
	s.t.Helper()
	s.leaks = s.watch()
	testutil.Eventually(s.t, effect, func() error {
		for _, family := range s.families() {
			before := s.count(bpf.VerdictHBONE)
			if _, err := inside(s.w.peer).AskFrom(at(s.Pod, family)); err != nil {
				return err
			}
			if len(s.w.lines(s.w.Nodes[1], `"dst.hbone_addr":"`+at(s.Pod, family).String()+`"`)) == 0 && s.count(bpf.VerdictHBONE) == before {
				return fmt.Errorf("reached in clear at %v", s.Addr(family))
			}
		}
		return nil
	})
	s.leaks.SetMembers(s.members()...)
}

// inside is a pod's namespace as testutil sees it.
func inside(p *lab.Pod) *testutil.NS { return namespaceOf(p.NS) }

func namespaceOf(name string) *testutil.NS {
	return &testutil.NS{Name: name, Path: netns.NamedPath(name)}
}

func at(p *lab.Pod, family int) netip.AddrPort { return netip.AddrPortFrom(p.Addr(family), echoPort) }

// explain shows what the programs counted, and the access log's lines about the pod.
func (s *strange) explain() {
	counts, err := s.verdicts()
	s.t.Logf("verdicts of %s: %v %v", s.Pod.Name, counts, err)
	for _, n := range s.w.Nodes {
		found := s.w.lines(n, "sa/"+s.Pod.Name+`"`)
		for _, line := range found[max(0, len(found)-12):] {
			s.t.Logf("%s: %s", n.Name, line)
		}
		for _, line := range s.w.lines(n, `"error"`) {
			if strings.Contains(line, s.Addr4.String()+":") || strings.Contains(line, s.Addr6.String()+"]") {
				s.t.Logf("%s: %s", n.Name, line)
			}
		}
	}
}

func (s *strange) verdicts() (all map[bpf.Verdict]uint64, err error) {
	err = s.pinned(func(p *bpf.Pod) (err error) {
		all, err = p.Verdicts()
		return err
	})
	return all, err
}

// pinned hands f what is attached to the pod.
func (s *strange) pinned(f func(*bpf.Pod) error) error {
	n, err := bpf.OpenNode(s.w.Nodes[0].PinRoot())
	if err != nil {
		return err
	}
	defer func() { _ = n.Close() }()
	infos, err := n.Pods()
	if err != nil {
		return err
	}
	for _, info := range infos {
		if info.ContainerID != s.ContainerID {
			continue
		}
		p, err := n.Pod(info.ID)
		if err != nil {
			return err
		}
		defer func() { _ = p.Close() }()
		return f(p)
	}
	return fmt.Errorf("pod %s has no pins", s.Pod.Name)
}

func (s *strange) count(v bpf.Verdict) uint64 {
	s.t.Helper()
	all, err := s.verdicts()
	if err != nil {
		s.t.Fatal(err)
	}
	return all[v]
}

// lines are those of a node's ztunnel with all of parts.
func (w *world) lines(n *lab.Node, parts ...string) []string {
	return w.Lines("ztunnel-"+n.Name, parts...)
}

var _ net.Listener = (*net.TCPListener)(nil)
