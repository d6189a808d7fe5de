// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/rand"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// cniPlugins are built from the modules that go.mod pins.
var cniPlugins = []string{"main/bridge", "main/ptp", "ipam/host-local", "meta/portmap"}

// buildFolder is what "make build" left, or a folder with the plugins alone.
func buildFolder(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("SLUICE_BUILD"); dir != "" {
		return dir
	}
	dir := t.TempDir()
	args := []string{"build", "-o", filepath.Join(dir, "cni") + "/"}
	for _, p := range cniPlugins {
		args = append(args, "github.com/containernetworking/plugins/plugins/"+p)
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return dir
}

// newLab returns a lab with a random name that is taken down with the test.
func newLab(t *testing.T) *Lab {
	t.Helper()
	name := "lab-" + strings.ToLower(rand.Text()[:5])
	l := New(name, filepath.Join(t.TempDir(), "lab"), buildFolder(t))
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	return l
}

func TestBarePodsReachEachOtherAndGoAway(t *testing.T) {
	testutil.RequireRoot(t)
	l := newLab(t)
	if err := l.UpBare(); err != nil {
		t.Fatal(err)
	}
	client, err := l.Nodes[0].AddPod(PodSpec{Name: "client", Namespace: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Nodes[1].AddPod(PodSpec{Name: "server", Namespace: "demo", HostPort: 18080, ContainerPort: 80})
	if err != nil {
		t.Fatal(err)
	}
	inside := &testutil.NS{Name: server.NS, Path: "/run/netns/" + server.NS}
	inside.Echo(t, "server", "[::]:80")
	from := &testutil.NS{Name: client.NS, Path: "/run/netns/" + client.NS}
	for name, to := range map[string]struct {
		addr netip.Addr
		port uint16
		want netip.Addr
	}{
		"pod, IPv4":       {server.Addr4, 80, client.Addr4},
		"pod, IPv6":       {server.Addr6, 80, client.Addr6},
		"host port, IPv4": {l.Nodes[1].Wire4, 18080, client.Addr4},
		"host port, IPv6": {l.Nodes[1].Wire6, 18080, client.Addr6},
	} {
		got, err := from.AskFrom(netip.AddrPortFrom(to.addr, to.port))
		if err != nil || got.Name != "server" || got.From.Addr() != to.want {
			t.Errorf("%s: got %v, %v, want server seeing %v", name, got, err, to.want)
		}
	}
	if err := l.Nodes[0].DelPod(client); err != nil {
		t.Errorf("delete pod: %v", err)
	}
	if err := l.Nodes[0].DelPod(client); err != nil {
		t.Errorf("delete pod again: %v", err)
	}
}

func TestDownStopsOnlyOurProcesses(t *testing.T) {
	testutil.RequireRoot(t)
	l := newLab(t)
	if err := l.UpBare(); err != nil {
		t.Fatal(err)
	}
	p, err := l.Start(l.NS("node1"), "sleeper", "sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	// A note about a number that now belongs to another process: us.
	stranger := &Proc{Name: "stranger", PID: os.Getpid(), Start: 1, dir: p.dir}
	if err := stranger.save(); err != nil {
		t.Fatal(err)
	}
	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("the process still runs")
	}
	if l.IsUp() {
		t.Error("the lab is still up")
	}
}

func TestDownNamesWhatItCannotRemove(t *testing.T) {
	testutil.RequireRoot(t)
	l := newLab(t)
	if err := l.UpBare(); err != nil {
		t.Fatal(err)
	}
	p, err := l.Start(l.NS("node1"), "sleeper", "sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.forget(); err != nil {
		t.Fatal(err)
	}
	if err := l.Down(); err == nil || !strings.Contains(err.Error(), "still runs in "+l.NS("node1")) {
		t.Errorf("got %v, want the process named that still runs", err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
}

func TestStopAsksBeforeItKills(t *testing.T) {
	testutil.RequireRoot(t)
	l := newLab(t)
	if err := l.UpBare(); err != nil {
		t.Fatal(err)
	}
	deaf, err := l.Start(l.NS("node1"), "deaf", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
	if err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, 5*time.Second, func() error {
		_, err := os.Stat(l.LogPath("deaf"))
		return err
	})
	if err := deaf.Stop(200 * time.Millisecond); err != nil || deaf.Alive() {
		t.Errorf("got %v, alive %v, want it killed", err, deaf.Alive())
	}
}
