// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// release is one containerd.
type release struct {
	name string
	path string // of the daemon; its shim stands beside it
	toml string // configuration, with %[1]s for the folder of all state
	// version of the CNI configuration, the newest that it can do.
	version string
	status  bool // asks plugins for STATUS
}

// releases are the oldest that we know to work, from the distribution, and a current one that "make build/containerd"
// compiles. Without the latter only the former is tested, but not in CI.
func releases(t *testing.T) []release {
	t.Helper()
	old := release{name: "1.6", path: "/usr/bin/containerd", toml: toml16, version: "1.0.0"}
	now := release{name: "2.4", path: filepath.Join(os.Getenv("SLUICE_BUILD"), "containerd", "containerd"), toml: toml2, version: "1.1.0", status: true}
	var found []release
	for _, r := range []release{old, now} {
		if err := r.check(); err == nil {
			found = append(found, r)
		} else if os.Getenv("CI") == "true" {
			t.Fatalf("%v (make packages build/containerd/containerd; CI=true: leaving it out is a failure)", err)
		}
	}
	if len(found) == 0 {
		t.Skipf("no containerd: %s (make packages), %s (make build/containerd/containerd)", old.path, now.path)
	}
	return found
}

// check asks the program for its version: the distribution may have another by now, of which other facts hold.
func (r release) check() error {
	out, err := exec.Command(r.path, "--version").CombinedOutput()
	if err == nil && !strings.Contains(string(out), " "+r.name+".") && !strings.Contains(string(out), " v"+r.name+".") {
		err = fmt.Errorf("%s is %q, not %s", r.path, out, r.name)
	}
	return err
}

// built holds what the tests make once: our binaries unless make left them, the recorder, and the image.
type built struct {
	dir   string // bin/ and cni/
	image string
	own   string // to be removed
}

var build = sync.OnceValues(func() (b built, err error) {
	if b.own, err = os.MkdirTemp("", "sluice-ctrd-"); err != nil {
		return b, err
	}
	toRemove = b.own
	if b.dir = os.Getenv("SLUICE_BUILD"); b.dir == "" {
		b.dir = b.own
		err = lab.Compile(b.dir)
	}
	for _, name := range []string{"app", "recorder"} {
		cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(b.own, name), "./"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, berr := cmd.CombinedOutput(); err == nil && berr != nil {
			err = fmt.Errorf("go build: %w\n%s", berr, text)
		}
	}
	if err != nil {
		return b, err
	}
	b.image = filepath.Join(b.own, "image.tar")
	return b, writeImage(filepath.Join(b.own, "app"), b.image)
})

var toRemove string

func TestMain(m *testing.M) {
	code := m.Run()
	if toRemove != "" {
		_ = os.RemoveAll(toRemove)
	}
	os.Exit(code)
}
