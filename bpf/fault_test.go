// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// diedOfFault is the exit code of a process that was stopped at the step it was told.
const diedOfFault = 77

// faultEnv tells a child of this test what to do and where to stop.
const faultEnv = "SLUICE_TEST_FAULT"

// doomed is what such a child does until it dies.
type doomed struct {
	Root   string
	Verb   string
	Config PodConfig
	Step   int // counted from 1
}

// TestDoomed is not a test but the child: it dies after the given step, as by kill -9.
func TestDoomed(t *testing.T) {
	text := os.Getenv(faultEnv)
	if text == "" {
		return // not asked for: run by TestKilledAtEveryStep
	}
	var d doomed
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	n, err := OpenNode(d.Root)
	if err != nil {
		t.Fatal(err)
	}
	steps := 0
	faults = func(step string) {
		if steps++; steps == d.Step {
			fmt.Println("step", step)
			os.Exit(diedOfFault)
		}
	}
	switch d.Verb {
	case "attach":
		_, err = n.AttachPod(d.Config)
	case "detach":
		err = n.DetachPod(d.Config.ID)
	case "collect":
		_, err = n.Collect(func(PodInfo) bool { return false })
	}
	if err != nil {
		t.Fatal(err)
	}
}

// die runs a child in the node's namespace. It returns the step that the child died at, "" if it came to its end.
func (w *world) die(t *testing.T, d doomed) (step string) {
	t.Helper()
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestDoomed$")
	cmd.Env = append(os.Environ(), faultEnv+"="+string(text))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	w.host.MustDo(t, cmd.Start)
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == diedOfFault {
		_, step, _ = strings.Cut(strings.TrimSpace(out.String()), "step ")
		return step
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", d.Verb, err, &out)
	}
	return ""
}

// TestKilledAtEveryStep: whatever step of whatever change a process dies at, a fresh one comes to the state that it is
// told, and a pod that was attached before and is to be attached afterwards is captured all along.
func TestKilledAtEveryStep(t *testing.T) {
	other := map[AttachMode]AttachMode{AttachTCX: AttachClsact, AttachClsact: AttachTCX}
	for _, tt := range []struct {
		name, verb string
		attached   bool
		switched   bool // the node's mode, after the pod was attached
	}{
		{name: "attach", verb: "attach"},
		{name: "replace", verb: "attach", attached: true},
		{name: "replace by the other mode", verb: "attach", attached: true, switched: true},
		{name: "detach", verb: "detach", attached: true},
		{name: "collect", verb: "collect", attached: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			pod, server := w.host.Pod(t, "pod"), w.host.Pod(t, "server")
			w.mesh(t, server)
			addr := netip.AddrPortFrom(server.Addr4, 80)
			x := newProxy(t, w.Node, pod)
			listening := func(c *PodConfig) { c.Listeners = x.fds(t) }
			before, mode := w.trace(t, pod), w.mode
			for step := 1; ; step++ {
				w.setMode(t, mode)
				if tt.attached {
					_ = w.attach(t, pod, listening).Close()
				}
				if tt.switched {
					w.setMode(t, other[mode])
				}
				name := w.die(t, doomed{w.root, tt.verb, w.config(pod), step})
				if tt.attached && tt.verb == "attach" {
					wantAnswer(t, pod.NS, addr, "outbound@"+addr.String(), pod.Addr4)
				}
				w.converge(t, fmt.Sprintf("%d %q", step, name), step, pod, listening, before)
				if name == "" || t.Failed() {
					t.Logf("%d steps", step-1)
					break
				}
			}
		})
	}
}

// setMode makes w the node of an agent with this mode.
func (w *world) setMode(t *testing.T, mode AttachMode) {
	t.Helper()
	n, err := LoadNode(w.root, WithAttachMode(mode))
	if err != nil {
		t.Fatal(err)
	}
	_ = n.Close()
	w.mode = mode
}

// converge does one of the things that a fresh process may want, and then takes the pod away.
func (w *world) converge(t *testing.T, step string, which int, pod *testutil.Pod, listening func(*PodConfig), before string) {
	t.Helper()
	switch which % 3 {
	case 0:
		p, err := w.tryAttach(pod, listening)
		if err != nil {
			t.Errorf("step %s: attach: %v", step, err)
			return
		}
		if err := w.check(p); err != nil {
			t.Errorf("step %s: %v", step, err)
		}
		_ = p.Close()
	case 1:
		if _, err := w.Collect(nil); err != nil {
			t.Errorf("step %s: collect: %v", step, err)
		}
		if half, err := w.ids(workDir); err != nil || len(half) > 0 {
			t.Errorf("step %s: collect left %v, %v", step, half, err)
		}
	}
	if err := w.DetachPod(pod.Name); err != nil {
		t.Errorf("step %s: detach: %v", step, err)
	}
	if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
		t.Errorf("step %s (-before +after):\n%s", step, diff)
	}
	w.wantNoPins(t)
}
