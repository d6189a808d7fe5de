// SPDX-License-Identifier: Apache-2.0

package programs

import (
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
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const (
	// effect bounds how long a change may take to be seen.
	effect = 15 * time.Second
	// commandTimeout bounds one run of a client.
	commandTimeout = 90 * time.Second
)

const manifests = `
apiVersion: v1
kind: Namespace
metadata: {name: mesh, labels: {istio.io/dataplane-mode: ambient}}
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

// world is two nodes with a captured pod on each: client on the first, server on the second. All tests share them; each
// has ports of its own.
type world struct {
	*lab.Lab
	client, server *lab.Pod
}

var (
	shared = sync.OnceValues(newWorld)
	// down takes away what newWorld made, so far as it came.
	down = func() error { return nil }
)

// TestMain takes down what the tests share. It is also the program in the pods that TestIdleConnections runs.
func TestMain(m *testing.M) {
	if role := os.Getenv(idleRole); role != "" {
		os.Exit(runIdle(role, os.Args[1:], os.Stdin, os.Stdout))
	}
	code := m.Run()
	if err := down(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func newWorld() (*world, error) {
	build, done, err := lab.Binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sluice-programs-")
	if err != nil {
		return nil, errors.Join(err, done())
	}
	w := &world{Lab: lab.New("pr-"+strings.ToLower(rand.Text()[:5]), filepath.Join(dir, "lab"), build)}
	down = func() error { return errors.Join(w.Down(), os.RemoveAll(dir), done()) }
	if err := os.MkdirAll(w.Manifests(), 0o755); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Write("mesh.yaml", manifests), w.Up()); err != nil {
		return nil, err
	}
	if w.server, err = w.Nodes[1].AddPod(lab.PodSpec{Name: "server", Namespace: "mesh"}); err != nil {
		return nil, err
	}
	if w.client, err = w.Nodes[0].AddPod(lab.PodSpec{Name: "client", Namespace: "mesh"}); err != nil {
		return nil, err
	}
	return w, w.known()
}

// known waits until the client's node knows that the server is in the mesh; before, it is reached in clear, as any pod.
func (w *world) known() error {
	const port = 7000
	l, err := w.Listen(w.server.NS, fmt.Sprintf("[::]:%d", port))
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	go echoAll(l)
	return lab.Poll(effect, func() error {
		for _, family := range families {
			to := at(w.server, family, port)
			c, err := w.DialTimeout(w.client.NS, to.String(), effect)
			if err != nil {
				return err
			}
			_ = c.Close()
			if len(w.inbound(to, mtls)) == 0 {
				return fmt.Errorf("no connection in mutual TLS to %v yet", to)
			}
		}
		return nil
	})
}

// place is where one test runs its programs.
type place struct {
	*world
	t *testing.T
}

// enter returns the shared world. Whoever measures what others would disturb leaves out parallel: such tests run first,
// one at a time.
func enter(t *testing.T) *place {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	w, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return &place{w, t}
}
