// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// output is a writer that tests read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// invoke runs the program to its end.
func invoke(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut output
	code = run(t.Context(), args, &out, &errOut)
	return code, out.String(), errOut.String()
}

// place is a node's folders.
type place struct {
	t   *testing.T
	dir string
	pin string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	p := &place{t: t, dir: t.TempDir(), pin: filepath.Join(testutil.BPFFS(t), "sluice", "v1")}
	for _, d := range []string{"manifests", "bin", "net.d"} {
		if err := os.Mkdir(p.path(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.write("manifests/ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: mesh, labels: {istio.io/dataplane-mode: ambient}}\n")
	return p
}

func (p *place) path(name string) string { return filepath.Join(p.dir, name) }

func (p *place) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(p.path(name), []byte(text), 0o755); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) flags() []string {
	return []string{"--run-dir", p.path("run"), "--state-dir", p.path("state"), "--pin-root", p.pin}
}

// start runs an agent; the returned func ends it and returns its exit code.
func (p *place) start(more ...string) (log *output, stop func() int) {
	p.t.Helper()
	return p.startWith(append([]string{"--manifests", p.path("manifests")}, more...)...)
}

// startWith starts an agent that has no manifests of itself.
func (p *place) startWith(more ...string) (log *output, stop func() int) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log = &output{}
	args := append([]string{"agent", "--node-name", "node1"}, p.flags()...)
	done := make(chan int, 1)
	go func() { done <- run(ctx, append(args, more...), io.Discard, log) }()
	var once sync.Once
	var code int
	stop = func() int {
		once.Do(func() { cancel(); code = <-done })
		return code
	}
	p.t.Cleanup(func() { stop() })
	return log, stop
}

func waitLog(t *testing.T, log *output, want string) {
	t.Helper()
	testutil.Eventually(t, 15*time.Second, func() error {
		if !strings.Contains(log.String(), want) {
			return fmt.Errorf("log has no %q:\n%s", want, log)
		}
		return nil
	})
}

func TestMistakesOfTheCommandLineAreUsageErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"no command":      {nil, []string{"Usage: sluice-installer COMMAND"}},
		"unknown command": {[]string{"dance"}, []string{`unknown command "dance"`}},
		"unknown flag":    {[]string{"agent", "--dance"}, []string{"flag provided but not defined: -dance"}},
		"all mistakes at once": {
			[]string{"agent", "--run-dir", "run", "--node-name", "A_B", "--resync", "0s", "--metrics-address", "x", "extra"},
			[]string{`--run-dir: "run" is not an absolute path`, "--manifests: is required", `--node-name: "A_B"`, "--resync: 0s is too short", "--metrics-address", `unexpected argument "extra"`},
		},
		"install without folders": {[]string{"install"}, []string{"--cni-bin-dir, --cni-conf-dir: give at least one"}},
		"status format":           {[]string{"status", "-o", "xml"}, []string{`-o: "xml" is neither table nor json`}},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := invoke(t, tc.args...)
			if code != exitUsage || stdout != "" {
				t.Errorf("exit code %d, stdout %q, want %d and nothing", code, stdout, exitUsage)
			}
			for _, w := range tc.want {
				if !strings.Contains(stderr, w) {
					t.Errorf("stderr: got %q, want %q", stderr, w)
				}
			}
		})
	}
}

func TestHelpAndVersionSucceed(t *testing.T) {
	for want, args := range map[string][]string{
		"Commands:":           {"--help"},
		"-proxy-down-limit":   {"agent", "--help"},
		"-cni-conf-dir":       {"install", "-h"},
		"sluice-installer ":   {"version"},
		"table or json":       {"status", "--help"},
		"the runtime's folde": {"uninstall", "--help"},
	} {
		if code, stdout, stderr := invoke(t, args...); code != exitOK || stderr != "" || !strings.Contains(stdout, want) {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}

func TestAgentBecomesReadyAndLeavesQuietly(t *testing.T) {
	p := newPlace(t)
	log, stop := p.start("--metrics-address", fmt.Sprintf("127.0.0.1:%d", testutil.FreePort(t)))
	waitLog(t, log, "agent ready")
	if ready, err := nodeapi.ReadySinceBoot(p.path("run")); err != nil || !ready {
		t.Errorf("ready marker: %v, %v", ready, err)
	}
	for _, s := range []string{"agent.sock", "ztunnel.sock", "controlplane.sock"} {
		st, err := os.Stat(filepath.Join(p.path("run"), s))
		if err != nil || st.Mode().Type() != os.ModeSocket || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", s, st, err)
		}
	}
	if code := stop(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, log)
	}
	log, stop = p.start()
	waitLog(t, log, "agent ready")
	if code := stop(); code != exitOK {
		t.Errorf("second run: exit code %d\n%s", code, log)
	}
}

func TestLastKnownEnrolmentFollowsTheManifests(t *testing.T) {
	p := newPlace(t)
	log, _ := p.start()
	waitLog(t, log, "agent ready")
	expect := func(want ...string) {
		t.Helper()
		testutil.Eventually(t, 15*time.Second, func() error {
			got, err := nodeapi.LoadLastKnown(p.path("state"))
			if err != nil || !slices.Equal(got.Namespaces, want) {
				return fmt.Errorf("got %+v, %v, want %v", got, err, want)
			}
			return nil
		})
	}
	expect("mesh")
	p.write("manifests/pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: lone, labels: {istio.io/dataplane-mode: ambient}}\n")
	expect("lone", "mesh")
	p.write("manifests/pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: lone\n")
	waitLog(t, log, "manifests/pod.yaml")
	expect("lone", "mesh") // What does not parse changes nothing.
	p.write("manifests/ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: mesh}\n")
	expect("lone")
}

func TestOnlyOneAgentPerNode(t *testing.T) {
	p := newPlace(t)
	log, stop := p.start()
	waitLog(t, log, "agent ready")
	a := &agent{cfg: agentConfig{paths: paths{RunDir: p.path("run")}}}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := a.claimNode(ctx); err == nil || !strings.Contains(err.Error(), "another agent runs on") {
		t.Errorf("second claim: %v", err)
	}
	stop()
	f, err := a.claimNode(t.Context())
	if err != nil {
		t.Fatalf("claim after the first agent's end: %v", err)
	}
	_ = f.Close()
}

func TestStatusShowsAgentAndPods(t *testing.T) {
	p := newPlace(t)
	log, stop := p.start()
	waitLog(t, log, "agent ready")
	req := &nodeapi.Request{Verb: nodeapi.VerbDecide, Pod: &nodeapi.Pod{
		UID: "u1", Namespace: "plain", Name: "p1", ContainerID: "c1", Netns: "/proc/self/ns/net",
	}}
	if _, _, err := (nodeapi.Client{Socket: filepath.Join(p.path("run"), "agent.sock")}).Do(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := invoke(t, append([]string{"status"}, p.flags()...)...)
	if code != exitFailure || !strings.Contains(stderr, "not all is well") { // There is no ztunnel.
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	for _, want := range []string{"ready on node node1", "0 connected", "attached  by ", "probe     on: ", "plain      p1   known"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("status has no %q:\n%s", want, stdout)
		}
	}
	_, stdout, _ = invoke(t, append([]string{"status", "-o", "json"}, p.flags()...)...)
	var r report
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || !r.Ready || len(r.Pods) != 1 || r.Pods[0].Name != "p1" {
		t.Errorf("json: %v\n%s", err, stdout)
	}
	stop()
	code, stdout, _ = invoke(t, append([]string{"status"}, p.flags()...)...)
	if code != exitFailure || !strings.Contains(stdout, "does not answer") {
		t.Errorf("without agent: exit code %d\n%s", code, stdout)
	}
}

func TestMetricsAndReadiness(t *testing.T) {
	p := newPlace(t)
	addr := fmt.Sprintf("127.0.0.1:%d", testutil.FreePort(t))
	if err := os.Remove(p.path("net.d")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(p.path("net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.write("sluice-cni", "#!/bin/false\n")
	log, _ := p.start("--metrics-address", addr, "--cni-conf-dir", p.path("net.d"), "--cni-bin-dir", p.path("bin"), "--plugin", p.path("sluice-cni"))
	waitLog(t, log, "waiting for a CNI configuration")
	if code, _ := get(t, "http://"+addr+"/healthz/ready"); code != http.StatusServiceUnavailable {
		t.Errorf("readiness before the conflist entry is in: %d", code)
	}
	p.write("net.d/10-net.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp"}]}`)
	waitLog(t, log, "agent ready")
	if code, _ := get(t, "http://"+addr+"/healthz/ready"); code != http.StatusOK {
		t.Errorf("readiness: %d", code)
	}
	if code, _ := get(t, "http://"+addr+"/healthz/live"); code != http.StatusOK {
		t.Errorf("liveness: %d", code)
	}
	_, body := get(t, "http://"+addr+"/metrics")
	for _, want := range []string{
		"sluice_agent_ztunnels_connected 0", `sluice_datapath_verdicts_total{verdict="drop-leak"} 0`, "sluice_destinations_complete 0",
		`sluice_host_program_attached{program="probe"} `,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics have no %q", want)
		}
	}
	if !strings.Contains(body, "sluice_flows_open 0") {
		t.Errorf("metrics:\n%s", body)
	}
	b, err := os.ReadFile(p.path("net.d/10-net.conflist"))
	if err != nil || !strings.Contains(string(b), `"agentSocket":"`+filepath.Join(p.path("run"), "agent.sock")) {
		t.Errorf("conflist: %s, %v", b, err)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	var code int
	var body []byte
	testutil.Eventually(t, 10*time.Second, func() error {
		resp, err := http.Get(url)
		var refused *net.OpError
		if errors.As(err, &refused) {
			return err
		}
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		code = resp.StatusCode
		body, err = io.ReadAll(resp.Body)
		return err
	})
	return code, string(body)
}

func TestInstallAndUninstallLeaveNoTrace(t *testing.T) {
	p := newPlace(t)
	p.write("sluice-cni", "#!/bin/false\n")
	const before = `{
  "cniVersion": "1.0.0",
  "name": "net",
  "plugins": [
    {"type": "ptp"}
  ]
}
`
	p.write("net.d/10-net.conflist", before)
	dirs := append(p.flags(), "--cni-bin-dir", p.path("bin"), "--cni-conf-dir", p.path("net.d"))
	for range 2 {
		if code, _, stderr := invoke(t, append([]string{"install", "--plugin", p.path("sluice-cni")}, dirs...)...); code != exitOK {
			t.Fatalf("install: exit code %d: %s", code, stderr)
		}
	}
	b, err := os.ReadFile(p.path("net.d/10-net.conflist"))
	if err != nil || strings.Count(string(b), `"sluice-cni"`) != 1 {
		t.Errorf("conflist: %s, %v", b, err)
	}
	if st, err := os.Stat(p.path("bin/sluice-cni")); err != nil || st.Mode().Perm()&0o111 == 0 {
		t.Errorf("plugin: %v, %v", st, err)
	}
	for _, want := range [][]string{{"conflist entry removed", "plugin removed"}, {"no conflist entry to remove", "no plugin to remove"}} {
		code, _, stderr := invoke(t, append([]string{"uninstall"}, dirs...)...)
		if code != exitOK {
			t.Fatalf("uninstall: exit code %d: %s", code, stderr)
		}
		for _, said := range want {
			if strings.Count(stderr, said) != 1 || strings.Count(stderr, "msg=") != len(want) {
				t.Errorf("uninstall: want %q said, got %s", want, stderr)
			}
		}
	}
	if b, err := os.ReadFile(p.path("net.d/10-net.conflist")); err != nil || string(b) != before {
		t.Errorf("conflist after uninstall: %s, %v", b, err)
	}
	if entries, err := os.ReadDir(p.path("bin")); err != nil || len(entries) != 0 {
		t.Errorf("plugin folder after uninstall: %v, %v", entries, err)
	}
}

func TestAgentSaysWhatIsWrongWithItsFolders(t *testing.T) {
	p := newPlace(t)
	for name, tc := range map[string]struct {
		flags []string
		want  string
	}{
		"no manifests folder": {[]string{"--manifests", p.path("none")}, "none"},
		"pins not on a bpffs": {[]string{"--pin-root", p.path("manifests")}, "manifests"},
		"run dir is a file":   {[]string{"--run-dir", p.path("manifests/ns.yaml")}, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"agent", "--node-name", "n", "--manifests", p.path("manifests")}, p.flags()...)
			code, _, stderr := invoke(t, append(args, tc.flags...)...)
			if code != exitFailure || !strings.Contains(stderr, tc.want) {
				t.Errorf("exit code %d, stderr %q, want %q", code, stderr, tc.want)
			}
		})
	}
}
