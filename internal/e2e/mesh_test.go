// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
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

const (
	echoPort = 7000
	// effect bounds how long a change may take to be seen.
	effect = 15 * time.Second
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
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: mesh, labels: {app: client}}
spec: {serviceAccountName: client}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: mesh, labels: {app: server}}
spec: {serviceAccountName: server}
`

// build makes the binaries once for all tests, unless make has left them.
var build = sync.OnceValues(func() (dir string, err error) {
	dir, unbuild, err = lab.Binaries()
	return dir, err
})

// unbuild removes what build made.
var unbuild func() error

func TestMain(m *testing.M) {
	code := m.Run()
	if unbuild != nil {
		_ = unbuild()
	}
	os.Exit(code)
}

// mesh is a lab with a client on node 1, and on node 2 a server that echoes.
type mesh struct {
	*lab.Lab
	t              *testing.T
	client, server *lab.Pod
}

// newLab returns a lab without pods, taken down with the test; when it failed, the logs are shown.
func newLab(t *testing.T) *mesh {
	t.Helper()
	t.Parallel() // names and folders are the lab's own
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{Lab: lab.New("e2e-"+strings.ToLower(rand.Text()[:5]), filepath.Join(t.TempDir(), "lab"), dir), t: t}
	t.Cleanup(func() {
		if t.Failed() {
			m.showLogs()
		}
		if err := m.Down(); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	return m
}

// newMesh brings up everything, and returns once both pods have their certificates: whose ztunnel does not know the server
// yet speaks plain text to it.
func newMesh(t *testing.T) *mesh {
	t.Helper()
	m := newLab(t)
	m.mkdir(m.Manifests())
	m.write("mesh.yaml", manifests)
	m.must(m.Up())
	m.server = m.addPod(1, "server", "mesh")
	m.client = m.addPod(0, "client", "mesh")
	m.echo(m.server)
	for i, p := range []*lab.Pod{m.client, m.server} {
		m.wantLog(m.Nodes[i].Ztunnel.Name, "certificate received", "/sa/"+p.Name)
	}
	return m
}

func (m *mesh) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *mesh) mkdir(dir string) { m.t.Helper(); m.must(os.MkdirAll(dir, 0o755)) }

func (m *mesh) write(name, content string) { m.t.Helper(); m.must(m.Write(name, content)) }

func (m *mesh) addPod(node int, name, namespace string) *lab.Pod {
	m.t.Helper()
	p, err := m.Nodes[node].AddPod(lab.PodSpec{Name: name, Namespace: namespace})
	m.must(err)
	return p
}

// inside is a pod's namespace as testutil sees it.
func inside(p *lab.Pod) *testutil.NS { return &testutil.NS{Name: p.NS, Path: netns.NamedPath(p.NS)} }

// echo starts a server that says its pod's name.
func (m *mesh) echo(p *lab.Pod) {
	m.t.Helper()
	inside(p).Echo(m.t, p.Name, fmt.Sprintf("[::]:%d", echoPort))
}

func echoOf(p *lab.Pod, family int) netip.AddrPort {
	return netip.AddrPortFrom(p.Addr(family), echoPort)
}

// reaches asks the echo server of a pod and wants the client's own address to have been seen.
func reaches(from, to *lab.Pod, family int) error {
	got, err := inside(from).AskFrom(echoOf(to, family))
	if err == nil && (got.Name != to.Name || got.From.Addr() != from.Addr(family)) {
		err = fmt.Errorf("%s answered and saw %v, want %s to see %v", got.Name, got.From, to.Name, from.Addr(family))
	}
	return err
}

// wantReach fails the test unless client and server talk, over both families.
func (m *mesh) wantReach(what string) {
	m.t.Helper()
	for _, family := range []int{4, 6} {
		if err := reaches(m.client, m.server, family); err != nil {
			m.t.Fatalf("%s: IPv%d: %v", what, family, err)
		}
	}
}

// open opens a connection from client to server that stays.
func (m *mesh) open() net.Conn {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), effect)
	defer cancel()
	c, err := inside(m.client).Dial(ctx, "tcp", echoOf(m.server, 4).String())
	m.must(err)
	m.t.Cleanup(func() { c.Close() })
	_, err = testutil.Ask(c)
	m.must(err)
	return c
}

// wantLog waits for a line with all of parts in one of the logs of a process.
func (m *mesh) wantLog(name string, parts ...string) {
	m.t.Helper()
	testutil.Eventually(m.t, effect, func() error {
		if len(m.Lines(name, parts...)) > 0 {
			return nil
		}
		return fmt.Errorf("no line with %q in the log of %s", parts, name)
	})
}

// showLogs prints the last lines of every log.
func (m *mesh) showLogs() {
	paths, _ := filepath.Glob(filepath.Join(m.Logs(), "*.log"))
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		m.t.Logf("%s:\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}
