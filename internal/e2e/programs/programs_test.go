// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// startTimeout bounds how long a server may take until it listens.
const startTimeout = 30 * time.Second

// program finds a command of the distribution, in folders too that are not on a user's PATH.
func program(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, pattern := range []string{"/usr/sbin/", "/sbin/", "/usr/lib/postgresql/*/bin/"} {
		if found, _ := filepath.Glob(pattern + name); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	t.Fatalf("%s is not installed; make test-packages installs it", name)
	return ""
}

// serve runs a server in a pod until the test ends, and waits until it listens on port.
func (p *place) serve(pod *lab.Pod, name string, port uint16, argv ...string) {
	p.t.Helper()
	argv[0] = program(p.t, argv[0])
	proc, err := p.Start(pod.NS, name, argv...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if p.t.Failed() {
			log, _ := os.ReadFile(p.LogPath(name))
			p.t.Logf("log of %s:\n%s", name, log[max(0, len(log)-2000):])
		}
		if err := errors.Join(proc.Stop(effect), p.listens(pod, name, port, false)); err != nil {
			p.t.Error(err)
		}
	})
	if err := p.listens(pod, name, port, true); err != nil {
		p.t.Fatal(err)
	}
	if !proc.Alive() {
		p.t.Fatalf("%s has ended", name)
	}
}

// listens waits until somebody listens on a port of a pod, or nobody does any more: the threads of a server may outlive
// the one that the process is named after, and hold its sockets.
func (p *place) listens(pod *lab.Pod, name string, port uint16, want bool) error {
	return lab.Poll(startTimeout, func() error {
		ports, err := p.Listening(pod.NS)
		if err == nil && ports[int(port)] != want {
			err = fmt.Errorf("%s: listening on port %d: %v, want %v", name, port, !want, want)
		}
		return err
	})
}

// run runs a client in the client's pod to its end and returns what it printed, on both channels.
func (p *place) run(t *testing.T, argv ...string) string {
	t.Helper()
	argv[0] = program(t, argv[0])
	out, err := p.Output(p.client.NS, commandTimeout, argv...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out[max(0, len(out)-2000):])
	}
	return out
}

// homeOf is a temporary folder that belongs to a user of the system, directly below the system's own.
func homeOf(t *testing.T, name string) string {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	dir, err := os.MkdirTemp("", "sluice-programs-"+name+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return dir
}

// must runs a command outside all pods.
func must(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(program(t, argv[0]), argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

// writeFile puts a file into a folder and returns its path.
func writeFile(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// randomFile puts a file of random bytes into a folder.
func randomFile(t *testing.T, dir, name string, size int) string {
	t.Helper()
	return writeFile(t, dir, name, string(randomBytes(size)))
}

func randomBytes(size int) []byte {
	block := make([]byte, size)
	_, _ = rand.Read(block)
	return block
}

// sameFiles fails the test unless both have the same bytes.
func sameFiles(t *testing.T, got, want string) {
	t.Helper()
	g, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	w, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(g, w) {
		t.Errorf("%s has %d bytes, or others than the %d of %s", got, len(g), len(w), want)
	}
}

// wantAll fails the test unless text has every part.
func wantAll(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s: no %q in\n%s", what, part, text)
		}
	}
}
