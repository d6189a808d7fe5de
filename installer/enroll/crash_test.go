// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/ztunnels"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// Environment of a test binary that is to be an agent.
const (
	crashDirEnv  = "SLUICE_TEST_AGENT_DIR"
	crashRootEnv = "SLUICE_TEST_AGENT_PINS"
	crashAtEnv   = "SLUICE_TEST_AGENT_KILLED_AT" // lines of "ACTION: STEP"; each kills once
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		if err := beAgent(dir, os.Getenv(crashRootEnv), strings.Split(os.Getenv(crashAtEnv), "\n")); err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// beAgent is an agent's inside in a process of its own, which kills itself at some steps of some actions. It notes
// the steps that it gets to.
func beAgent(dir, root string, at []string) error {
	path := func(name string) string { return filepath.Join(dir, name) }
	steps, err := os.OpenFile(path("steps"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	faults = func(step string) {
		action, _ := os.ReadFile(path("action"))
		step = string(action) + ": " + step
		fmt.Fprintln(steps, step)
		if !slices.Contains(at, step) {
			return
		}
		// One agent is killed there, not the ones after it.
		if os.Mkdir(path("killed at "+step), 0o700) == nil {
			_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	catalog, err := controlplane.NewCatalog(controlplane.CatalogConfig{
		ManifestsDir: path("manifests"), WorkloadsDir: path("workloads"), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	node, err := bpf.LoadNode(root)
	if err != nil {
		return err
	}
	var e *Enroller
	zt, err := ztunnels.Listen(ztunnels.Config{Path: path("ztunnel.sock"), Timeout: 2 * time.Second, Changed: func() { e.Kick() }, Logger: log})
	if err != nil {
		return err
	}
	e, err = New(Config{
		Node: node, Ztunnels: zt, Catalog: catalog, NodeName: "node1", StateDir: path("state"), WorkloadsDir: path("workloads"),
		Resync: 50 * time.Millisecond, AdmitTimeout: 300 * time.Millisecond, Logger: log,
	})
	if err != nil {
		return err
	}
	changes, cancel := catalog.Subscribe()
	defer cancel()
	if err := e.Restore(); err != nil {
		return err
	}
	api, err := nodeapi.Listen(path("agent.sock"), e, log)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { e.Run(ctx, changes) })
	wg.Go(func() { _ = catalog.Run(ctx) })
	wg.Go(func() { _ = zt.Serve(ctx) })
	wg.Go(func() { _ = api.Serve(ctx) })
	wg.Wait()
	return nil
}

// crashLab is a lab whose agent is another process, started again whenever it dies.
type crashLab struct {
	*lab
	z     *ztunnel
	alive map[*sandbox]bool // to whether it is wanted in the mesh
}

func newCrashLab(t *testing.T, at ...string) *crashLab {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	l := &lab{t: t, node: testutil.NewNode(t), root: filepath.Join(testutil.BPFFS(t), "sluice", "v1"), dir: t.TempDir()}
	for _, d := range []string{"manifests", "workloads", "state"} {
		l.must(os.Mkdir(l.path(d), 0o700))
	}
	l.client.Socket = l.path("agent.sock")
	var err error
	l.catalog, err = controlplane.NewCatalog(controlplane.CatalogConfig{ // not the agent's: to read files back
		ManifestsDir: l.path("manifests"), WorkloadsDir: l.path("workloads"), Logger: slog.New(slog.DiscardHandler),
	})
	l.must(err)
	l.enrolNamespace("mesh", true)
	l.enrolNamespace("late", false)
	c := &crashLab{lab: l, alive: map[*sandbox]bool{}}
	c.begin("start")
	c.supervise(at)
	l.eventually(func() (err error) {
		l.bpf, err = bpf.OpenNode(l.root)
		return err
	})
	t.Cleanup(func() { _ = l.bpf.Close() })
	c.z = l.ztunnel("z")
	return c
}

// supervise runs one agent after the other until the test ends.
func (c *crashLab) supervise(at []string) {
	self, err := os.Executable()
	c.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			cmd := exec.CommandContext(ctx, self)
			cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
			cmd.WaitDelay = patience
			cmd.Env = append(os.Environ(), crashDirEnv+"="+c.dir, crashRootEnv+"="+c.root, crashAtEnv+"="+strings.Join(at, "\n"))
			cmd.Stderr = c.t.Output()
			_ = cmd.Run()
		}
	})
	c.t.Cleanup(func() { cancel(); wg.Wait() })
}

// begin names what happens next.
func (c *crashLab) begin(action string) {
	c.t.Helper()
	aside := c.path("action.new")
	c.must(os.WriteFile(aside, []byte(action), 0o600))
	c.must(os.Rename(aside, c.path("action")))
}

// crashActions is a life of two pods. Each waits for nothing; the lab's settle does after it.
var crashActions = []struct {
	name string
	do   func(c *crashLab, a, b *sandbox)
}{
	{"ADD", func(c *crashLab, a, b *sandbox) {
		c.alive[a], c.alive[b] = true, false
		c.untilDone(b.add, b.del)
		c.untilDone(a.add, a.del)
	}},
	{"enrol", func(c *crashLab, _, b *sandbox) {
		c.alive[b] = true
		c.enrolNamespace("late", true)
	}},
	{"annotate", func(_ *crashLab, a, _ *sandbox) { a.annotate(annotationCapture, "all") }},
	{"un-enrol", func(c *crashLab, _, b *sandbox) {
		c.alive[b] = false
		c.enrolNamespace("late", false)
	}},
	{"DEL", func(c *crashLab, a, _ *sandbox) {
		delete(c.alive, a)
		c.untilDone(a.del, nil)
		a.Delete(c.t)
	}},
	{"enrol again", func(c *crashLab, _, b *sandbox) {
		c.alive[b] = true
		c.enrolNamespace("late", true)
	}},
	{"vanish", func(c *crashLab, _, b *sandbox) {
		delete(c.alive, b)
		b.Run(c.t, "ip", "link", "del", "eth0")
		b.Delete(c.t)
	}},
}

// untilDone is what a runtime does: it undoes what failed and asks again.
func (c *crashLab) untilDone(do, undo func() error) {
	c.t.Helper()
	c.eventually(func() error {
		err := do()
		if err != nil && undo != nil {
			err = errors.Join(err, undo())
		}
		return err
	})
}

// live runs all actions and wants the state that belongs to each.
func (c *crashLab) live() {
	c.t.Helper()
	a, b := c.pod("mesh", "a"), c.pod("late", "b")
	peer := c.pod("plain", "peer")
	for _, action := range crashActions {
		c.begin(action.name)
		action.do(c, a, b)
		c.eventually(c.settled)
		for s, wanted := range c.alive {
			if wanted {
				peer.wantGreeting(netip.AddrPortFrom(s.Addr4, 80), "z inbound4")
			}
		}
	}
}

// settled compares everything that an agent leaves somewhere with what it should be.
func (c *crashLab) settled() error {
	c.z.retry(c.t.Context())
	st, err := c.agentStatus()
	if err != nil {
		return err
	}
	var errs []error
	want := map[string]bool{}
	for s, wanted := range c.alive {
		if wanted {
			want[s.api.Name] = true
		}
		errs = append(errs, s.isAs(wanted, st))
	}
	if len(st.Pods) != len(c.alive) {
		errs = append(errs, fmt.Errorf("agent knows %d pods, want %d", len(st.Pods), len(c.alive)))
	}
	pins, perr := c.pinnedNames()
	files, ferr := c.fileNames("workloads")
	records, rerr := c.fileNames(filepath.Join("state", "pods"))
	errs = append(errs, perr, ferr, rerr)
	if len(records) != len(c.alive) {
		errs = append(errs, fmt.Errorf("records %v, want %d", records, len(c.alive)))
	}
	for what, got := range map[string][]string{"pins": pins, "workload files": files, "ztunnel": c.z.table()} {
		slices.Sort(got)
		if w := sortedKeys(want); !slices.Equal(got, w) {
			errs = append(errs, fmt.Errorf("%s: got %v, want %v", what, got, w))
		}
	}
	return errors.Join(errs...)
}

func sortedKeys(m map[string]bool) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (l *lab) agentStatus() (*Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resp, _, err := l.client.Do(ctx, &nodeapi.Request{Verb: nodeapi.VerbStatus})
	if err != nil {
		return nil, err
	}
	var st Status
	return &st, json.Unmarshal(resp.Status, &st)
}

func (l *lab) pinnedNames() (names []string, err error) {
	infos, err := l.bpf.Pods()
	for _, info := range infos {
		names = append(names, info.Name)
	}
	return names, err
}

// fileNames are the last words of the names of a folder's files.
func (l *lab) fileNames(folder string) (names []string, err error) {
	entries, err := os.ReadDir(l.path(folder))
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), filepath.Ext(e.Name())); ok && !strings.HasPrefix(name, ".") {
			names = append(names, name[strings.LastIndex(name, "_")+1:])
		}
	}
	return names, err
}

// isAs compares one pod with what it should be.
func (s *sandbox) isAs(enrolled bool, st *Status) error {
	i := slices.IndexFunc(st.Pods, func(p PodStatus) bool { return p.ContainerID == s.api.ContainerID })
	if i < 0 {
		return fmt.Errorf("%s: not known to the agent", s.api.Name)
	}
	p := st.Pods[i]
	want, slots := string(known), 0
	if enrolled {
		want, slots = string(served), len(p.Listeners)
	}
	if p.Phase != want || p.Problem != "" || len(p.Drift) > 0 || enrolled && slots == 0 || s.slots() < slots {
		return fmt.Errorf("%s: %s, problem %q, drift %v, listeners %v (%d), want %s", s.api.Name, p.Phase, p.Problem, p.Drift, p.Listeners, s.slots(), want)
	}
	return nil
}

// TestAgentKilledAtAnyStepConverges kills agents with SIGKILL at each step that they get to in each action, one step of
// every action in each life, and wants what the next agent makes of it to be what there would have been without.
func TestAgentKilledAtAnyStepConverges(t *testing.T) {
	c := newCrashLab(t)
	c.live()
	text, err := os.ReadFile(c.path("steps"))
	c.must(err)
	var lives [][]string
	count, seen := map[string]int{}, map[string]bool{}
	for step := range strings.Lines(string(text)) {
		step = strings.TrimSpace(step)
		if seen[step] {
			continue
		}
		seen[step] = true
		action, _, _ := strings.Cut(step, ": ")
		if count[action] == len(lives) {
			lives = append(lives, nil)
		}
		lives[count[action]] = append(lives[count[action]], step)
		count[action]++
	}
	if len(seen) < 25 || len(count) < len(crashActions) {
		t.Fatalf("only these steps: %q", lives)
	}
	for _, steps := range lives {
		t.Run(strings.Join(steps, ", "), func(t *testing.T) {
			c := newCrashLab(t, steps...)
			c.live()
			for _, step := range steps {
				if _, err := os.Stat(c.path("killed at " + step)); err != nil {
					t.Logf("not killed at %q: it did not get there this time", step)
				}
			}
		})
	}
}
