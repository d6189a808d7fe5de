// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

func TestAddEnrolsAndReturnsPrevResult(t *testing.T) {
	l := newLab(t)
	s, pod := l.sandbox("mesh", "web")
	o := l.cni("ADD", s, nil).wantOK(t)
	wantSameJSON(t, []byte(o.stdout), []byte(s.prev))
	if err := oneValue(o.stdout, new(any)); err != nil {
		t.Errorf("stdout: %v", err)
	}

	calls := l.agent.requests()
	if len(calls) != 2 || calls[0].Verb != nodeapi.VerbDecide || calls[1].Verb != nodeapi.VerbServe {
		t.Fatalf("agent was asked %+v", calls)
	}
	if asked := calls[0].Pod.Interfaces; calls[0].DryRun || len(asked) != 1 || asked[0].HostIfindex != pod.HostIfindex {
		t.Errorf("decide: got %+v, want eth0 with host ifindex %d", calls[0], pod.HostIfindex)
	}
	got := *calls[1].Pod
	if got.Namespace != "mesh" || got.Name != "web" || got.UID != s.uid || got.ContainerID != s.containerID || got.Netns != pod.Path || got.Network != "pods" {
		t.Errorf("serve: got pod %+v", got)
	}
	if want := []string{pod.Addr4.String(), pod.Addr6.String()}; fmt.Sprint(got.Addresses()) != fmt.Sprint(want) {
		t.Errorf("serve: got addresses %v, want %v", got.Addresses(), want)
	}
	if len(got.Interfaces) != 1 || got.Interfaces[0].Name != "eth0" || got.Interfaces[0].HostIfindex != pod.HostIfindex {
		t.Errorf("serve: got interfaces %+v, want eth0 with host ifindex %d", got.Interfaces, pod.HostIfindex)
	}
	pods, err := l.bpfNode.Pods()
	if err != nil || len(pods) != 1 {
		t.Fatalf("pods: %+v, %v", pods, err)
	}
	if info := pods[0]; info.ID != s.uid || !slices.Equal(info.Interfaces, []string{"eth0"}) || !slices.Equal(info.HostIfindexes, []int{pod.HostIfindex}) {
		t.Errorf("pins: got %+v", info)
	}
}

func TestAddLeavesPodsAloneThatAreNotEnrolled(t *testing.T) {
	l := newLab(t)
	for name, tc := range map[string]struct {
		namespace string
		asked     []nodeapi.Verb
	}{
		"namespace not enrolled": {"plain", []nodeapi.Verb{nodeapi.VerbDecide}},
		"excluded":               {"kube-system", nil},
		"excluded, ours":         {"sluice-system", nil},
		"no Kubernetes":          {"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, pod := l.sandbox(tc.namespace, "p")
			before := l.snapshot(pod.NS)
			o := l.cni("ADD", s, nil).wantOK(t)
			wantSameJSON(t, []byte(o.stdout), []byte(s.prev))
			l.agent.wantVerbs(tc.asked...)
			wantSame(t, "after ADD", l.snapshot(pod.NS), before)
			l.cni("CHECK", s, nil).wantOK(t)
			l.cni("DEL", s, nil).wantOK(t)
			wantSame(t, "after DEL", l.snapshot(pod.NS), before)
			l.agent.verbs()
		})
	}
}

func TestExcludeNamespacesIsASetting(t *testing.T) {
	l := newLab(t)
	s, _ := l.sandbox("mesh", "p")
	l.cni("ADD", s, map[string]any{"excludeNamespaces": []string{"mesh"}}).wantOK(t)
	l.agent.wantVerbs()
	s, _ = l.sandbox("kube-system", "p")
	l.cni("ADD", s, map[string]any{"excludeNamespaces": []string{}}).wantOK(t)
	l.agent.wantVerbs(nodeapi.VerbDecide)
}

func TestBadConfigurationIsNamed(t *testing.T) {
	l := newLab(t)
	s, pod := l.sandbox("mesh", "p")
	before := l.snapshot(pod.NS)
	for name, tc := range map[string]struct {
		extra map[string]any
		words []string
	}{
		"unknown key":       {map[string]any{"agentSock": "/a"}, []string{"sluice-cni: invalid configuration", `unknown key "agentSock"`}},
		"wrong type":        {map[string]any{"pinRoot": 5}, []string{"pinRoot: want a string, got number 5"}},
		"relative path":     {map[string]any{"stateDir": "state"}, []string{`stateDir: "state" is not an absolute path`}},
		"all at once":       {map[string]any{"color": 1, "pinRoot": 5, "stateDir": "state"}, []string{`"color"`, "pinRoot: ", "stateDir: "}},
		"prevResult a list": {map[string]any{"prevResult": []int{1}}, []string{"sluice-cni: invalid prevResult", "want an object, got array [1]"}},
		"prevResult holes":  {map[string]any{"prevResult": json.RawMessage(`{"cniVersion":"1.1.0","ips":[null]}`)}, []string{"ips[0] is null"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, verb := range []string{"ADD", "CHECK"} {
				l.cni(verb, s, tc.extra).wantError(t, types.ErrInvalidNetworkConfig, tc.words...)
			}
		})
	}
	l.agent.wantVerbs()
	wantSame(t, "after all", l.snapshot(pod.NS), before)
}

func TestAddWithoutPrevResultSaysToChain(t *testing.T) {
	l := newLab(t)
	s, _ := l.sandbox("mesh", "p")
	s.prev = ""
	for _, extra := range []map[string]any{nil, {"prevResult": nil}} {
		l.cni("ADD", s, extra).wantError(t, types.ErrInvalidNetworkConfig, "prevResult is missing", "chain it after a main plugin")
		l.cni("CHECK", s, extra).wantError(t, types.ErrInvalidNetworkConfig, "prevResult is missing")
	}
}

func TestHalfAnIdentityIsRefused(t *testing.T) {
	l := newLab(t)
	s, _ := l.sandbox("mesh", "p")
	s.name = ""
	l.cni("ADD", s, nil).wantError(t, types.ErrInvalidEnvironmentVariables, `K8S_POD_NAME: "" is not the name of a pod`)
}

// absences are the ways an agent can be of no help. Each returns the words its error must have.
var absences = map[string]func(t *testing.T, socket string) string{
	"missing":   func(*testing.T, string) string { return "no such socket" },
	"no folder": func(t *testing.T, socket string) string { _ = os.Remove(filepath.Dir(socket)); return "no such socket" },
	"a file": func(t *testing.T, socket string) string {
		if err := os.WriteFile(socket, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		return "not a socket but a file"
	},
	"refused": func(t *testing.T, socket string) string {
		ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		_ = ln.Close()
		return "connection refused"
	},
	"hangs":           func(t *testing.T, socket string) string { answer(t, socket, ""); return "no answer in time" },
	"garbage":         func(t *testing.T, socket string) string { answer(t, socket, "HTTP/1.1 200 OK"); return "not the agent" },
	"no decision":     func(t *testing.T, socket string) string { answer(t, socket, `{"version":1}`); return "no decision" },
	"another release": func(t *testing.T, socket string) string { answer(t, socket, `{"version":99}`); return "version 99" },
}

// An agent that refuses is not away. It may know that the pod is enrolled, whatever it knew when it wrote that down.
func TestAddFailsWhenTheAgentRefuses(t *testing.T) {
	t.Parallel()
	refused := func(code nodeapi.Code) string {
		return fmt.Sprintf(`{"version":1,"error":{"code":%q,"message":"something went wrong"}}`, code)
	}
	for name, tc := range map[string]struct {
		answer string
		code   uint
		words  []string
	}{
		"try again":        {refused(nodeapi.CodeTryAgain), types.ErrTryAgainLater, []string{"something went wrong", "see that both run"}},
		"internal":         {refused(nodeapi.CodeInternal), types.ErrTryAgainLater, []string{"something went wrong", "the agent's log"}},
		"not found":        {refused(nodeapi.CodeNotFound), types.ErrTryAgainLater, []string{"something went wrong"}},
		"a code of later":  {refused("too-hot"), types.ErrTryAgainLater, []string{"something went wrong"}},
		"bad request":      {refused(nodeapi.CodeBadRequest), types.ErrInternal, []string{"something went wrong", "the agent's log"}},
		"enrolled, no pin": {`{"version":1,"decision":{"enrolled":true}}`, types.ErrInternal, []string{"without a pin id"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.agent.stop()
			answer(t, l.settings["agentSocket"].(string), tc.answer)
			l.knows() // nothing enrolled
			s, pod := l.sandbox("plain", "p")
			before := l.snapshot(pod.NS)
			for _, verb := range []string{"ADD", "CHECK"} {
				l.cni(verb, s, nil).wantError(t, tc.code, append(tc.words, "pod plain/p: decide: agent: ")...)
			}
			wantSame(t, "after the failed ADD", l.snapshot(pod.NS), before)
		})
	}
}

// answer accepts at socket and sends text to everyone; an empty text means silence.
func answer(t *testing.T, socket, text string) {
	t.Helper()
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			if text != "" {
				_, _ = c.Write([]byte(text))
			}
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { _ = ln.Close() })
}

// With the agent away, pods that are known not to be in the mesh start, all others wait for it.
func TestAddWithoutAgent(t *testing.T) {
	t.Parallel()
	for name, absence := range absences {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.agent.stop()
			words := absence(t, l.settings["agentSocket"].(string))

			l.knows("mesh")
			s, pod := l.sandbox("mesh", "p")
			before := l.snapshot(pod.NS)
			start := time.Now()
			l.cni("ADD", s, nil).wantError(t, types.ErrTryAgainLater,
				"enrol pod mesh/p", words, `namespace "mesh" has pods in the mesh`, "the Sluice agent and its ztunnel on this node")
			if d := time.Since(start); d > 8*time.Second {
				t.Errorf("took %v", d)
			}
			wantSame(t, "after the failed ADD", l.snapshot(pod.NS), before)

			plain, pod := l.sandbox("plain", "p")
			before = l.snapshot(pod.NS)
			o := l.cni("ADD", plain, nil).wantOK(t)
			wantSameJSON(t, []byte(o.stdout), []byte(plain.prev))
			wantSame(t, "after the ADD of a pod that is not enrolled", l.snapshot(pod.NS), before)
			l.cni("DEL", plain, nil).wantOK(t)
			l.cni("DEL", s, nil).wantOK(t)
		})
	}
}

// A namespace that came while no agent watched may belong into the mesh.
func TestAddWithoutAgentFailsClosedInANewNamespace(t *testing.T) {
	l := newLab(t)
	l.agent.stop()
	l.must((&nodeapi.LastKnown{All: []string{"plain"}}).Save(l.dir + "/state"))
	young, _ := l.sandbox("young", "p")
	l.cni("ADD", young, nil).wantError(t, types.ErrTryAgainLater, "enrol pod young/p", `namespace "young" came after the agent last ran`)
	for _, namespace := range []string{"plain", "kube-system"} {
		s, _ := l.sandbox(namespace, "p")
		l.cni("ADD", s, nil).wantOK(t)
	}
}

func TestAddWithoutAgentFailsClosedWhenNothingIsKnown(t *testing.T) {
	l := newLab(t)
	l.agent.stop()
	s, _ := l.sandbox("plain", "p")
	file := filepath.Join(l.dir, "state", "enrolment.json")
	l.cni("ADD", s, nil).wantError(t, types.ErrTryAgainLater, "enrol pod plain/p", "no agent has ever run here")
	for _, bad := range []string{"", "{", `{"version":1}`, `{"version":7,"namespaces":[]}`, "null"} {
		l.must(os.WriteFile(file, []byte(bad), 0o600))
		l.cni("ADD", s, nil).wantError(t, types.ErrTryAgainLater, file)
	}
	l.must(os.Remove(file))
	excluded, _ := l.sandbox("kube-system", "p")
	l.cni("ADD", excluded, nil).wantOK(t)
}

// Each step of ADD fails in turn; what is left afterwards is what was there before.
func TestAddUndoesItselfAfterEachStep(t *testing.T) {
	t.Parallel()
	const decide, serve, release = nodeapi.VerbDecide, nodeapi.VerbServe, nodeapi.VerbRelease
	enrolledAs := func(pinID string) func(*nodeapi.Request) (nodeapi.Answer, *nodeapi.Error) {
		return func(*nodeapi.Request) (nodeapi.Answer, *nodeapi.Error) {
			return nodeapi.Answer{Response: nodeapi.Response{Decision: &nodeapi.Decision{Enrolled: true, PinID: pinID}}}, nil
		}
	}
	for name, tc := range map[string]struct {
		breakIt func(l *lab, s *sandbox)
		extra   map[string]any
		code    uint
		words   string
		asked   []nodeapi.Verb
	}{
		"netns is gone": {func(_ *lab, s *sandbox) { s.netns += "-gone" }, nil, codeDatapath, "no such file", []nodeapi.Verb{decide, release}},
		"netns is a file": {func(l *lab, s *sandbox) {
			s.netns = filepath.Join(l.dir, "file")
			l.must(os.WriteFile(s.netns, nil, 0o600))
		}, nil, codeDatapath, "not a network namespace", []nodeapi.Verb{decide, release}},
		"netns of the node": {func(l *lab, s *sandbox) { s.netns = l.node.Path }, nil, codeDatapath, "CNI_NETNS is the node's own", []nodeapi.Verb{decide, release}},
		"interface is not there": {func(_ *lab, s *sandbox) { s.prev = strings.Replace(s.prev, "eth0", "eth9", 1) }, nil,
			codeDatapath, `interface "eth9" of prevResult`, []nodeapi.Verb{decide, release}},
		"only loopback": {func(_ *lab, s *sandbox) { s.prev = strings.Replace(s.prev, "eth0", "lo", 1) }, nil,
			codeDatapath, "no interface inside the pod but loopback", []nodeapi.Verb{decide, release}},
		"node not loaded": {func(*lab, *sandbox) {}, map[string]any{"pinRoot": "/nowhere"}, types.ErrTryAgainLater, "not loaded", []nodeapi.Verb{decide, release}},
		"programs do not attach": {func(l *lab, _ *sandbox) { l.agent.put(decide, enrolledAs("a/b")) }, nil,
			codeDatapath, `pod id "a/b"`, []nodeapi.Verb{decide, release}},
		"no ztunnel": {func(l *lab, _ *sandbox) { l.agent.refuse(serve, nodeapi.CodeTryAgain, "no ztunnel is connected") }, nil,
			types.ErrTryAgainLater, "serve: agent: no ztunnel is connected", []nodeapi.Verb{decide, serve, release}},
		"agent fails": {func(l *lab, _ *sandbox) { l.agent.refuse(serve, nodeapi.CodeInternal, "out of descriptors") }, nil,
			types.ErrTryAgainLater, "out of descriptors", []nodeapi.Verb{decide, serve, release}},
		"agent does not understand": {func(l *lab, _ *sandbox) { l.agent.refuse(serve, nodeapi.CodeBadRequest, "what pod?") }, nil,
			types.ErrInternal, "what pod?", []nodeapi.Verb{decide, serve, release}},
		"release fails too": {func(l *lab, _ *sandbox) {
			l.agent.refuse(serve, nodeapi.CodeInternal, "out of descriptors")
			l.agent.refuse(release, nodeapi.CodeInternal, "still out of descriptors")
		}, nil, types.ErrTryAgainLater, "out of descriptors", []nodeapi.Verb{decide, serve, release}},
		"agent served, then failed": {func(l *lab, _ *sandbox) {
			l.agent.put(serve, func(r *nodeapi.Request) (nodeapi.Answer, *nodeapi.Error) {
				if err := l.agent.serve(r.Pod); err != nil {
					return nodeapi.Answer{}, nodeapi.Errorf(nodeapi.CodeBadRequest, "%w", err)
				}
				return nodeapi.Answer{}, nodeapi.Errorf(nodeapi.CodeTryAgain, "ztunnel went away")
			})
		}, nil, types.ErrTryAgainLater, "ztunnel went away", []nodeapi.Verb{decide, serve, release}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			s, pod := l.sandbox("mesh", "p")
			tc.breakIt(l, s)
			before := l.snapshot(pod.NS)
			l.cni("ADD", s, tc.extra).wantError(t, tc.code, "sluice-cni: enrol pod mesh/p: ", tc.words)
			wantSame(t, "after the failed ADD", l.snapshot(pod.NS), before)
			l.wantAttached()
			l.agent.wantVerbs(tc.asked...)
		})
	}
}

// The agent takes the question and never answers it.
func TestAddGivesUpOnAnAgentThatHangsWhileServing(t *testing.T) {
	l := newLab(t)
	s, pod := l.sandbox("mesh", "p")
	before := l.snapshot(pod.NS)
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	hang := func(*nodeapi.Request) (nodeapi.Answer, *nodeapi.Error) { <-done; return nodeapi.Answer{}, nil }
	l.agent.put(nodeapi.VerbServe, hang)
	l.agent.put(nodeapi.VerbRelease, hang)
	start := time.Now()
	l.cni("ADD", s, nil).wantError(t, types.ErrTryAgainLater, "mesh/p", "no answer in time")
	if d := time.Since(start); d > 15*time.Second {
		t.Errorf("took %v, want at most 15s", d)
	}
	wantSame(t, "after the failed ADD", l.snapshot(pod.NS), before)
	l.wantAttached()
}

func TestAddUndoesItselfWhenNobodyTakesTheResult(t *testing.T) {
	l := newLab(t)
	s, pod := l.sandbox("mesh", "p")
	before := l.snapshot(pod.NS)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	l.must(err)
	defer func() { _ = full.Close() }()
	if o := l.cniTo("ADD", s, l.stdin(s, nil), full); o.code == 0 {
		t.Error("ADD succeeded")
	}
	wantSame(t, "after the failed ADD", l.snapshot(pod.NS), before)
	l.agent.wantVerbs(nodeapi.VerbDecide, nodeapi.VerbServe, nodeapi.VerbRelease)
}

func TestAddTwiceIsAddOnce(t *testing.T) {
	l := newLab(t)
	s, pod := l.sandbox("mesh", "p")
	before := l.snapshot(pod.NS)
	l.cni("ADD", s, nil).wantOK(t)
	once := l.snapshot(pod.NS)
	l.cni("ADD", s, nil).wantOK(t)
	wantSame(t, "after the second ADD", l.snapshot(pod.NS), once)
	l.cni("CHECK", s, nil).wantOK(t)

	// A repetition that fails must not take the first one's capture away: the pod may be running.
	l.agent.refuse(nodeapi.VerbServe, nodeapi.CodeTryAgain, "no ztunnel is connected")
	l.cni("ADD", s, nil).wantError(t, types.ErrTryAgainLater, "no ztunnel")
	l.wantAttached(s.containerID)

	l.cni("DEL", s, nil).wantOK(t)
	wantSame(t, "after DEL", l.snapshot(pod.NS), before)
}

// The kubelet makes a new sandbox for the same pod, and the DEL of the old one comes late or never.
func TestNewSandboxOfTheSamePodReplacesTheOld(t *testing.T) {
	l := newLab(t)
	older, oldPod := l.sandbox("mesh", "p")
	before := l.snapshot(oldPod.NS)
	l.cni("ADD", older, nil).wantOK(t)
	newer, _ := l.sandbox("mesh", "p")
	newer.uid = older.uid
	l.cni("ADD", newer, nil).wantOK(t)
	l.wantAttached(newer.containerID)

	l.cni("DEL", older, nil).wantOK(t)
	l.wantAttached(newer.containerID)
	l.cni("CHECK", newer, nil).wantOK(t)
	l.cni("DEL", newer, nil).wantOK(t)
	l.wantAttached()
	if got := l.snapshot(oldPod.NS); strings.Count(got, "programs eth0 in 0 out 0") != strings.Count(before, "programs eth0 in 0 out 0") {
		t.Errorf("the old sandbox keeps programs:\n%s", got)
	}
}

// Another process holds the pod's lock and does not let go of it.
func TestAddGivesUpOnALock(t *testing.T) {
	l := newLab(t)
	s, pod := l.sandbox("mesh", "p")
	before := l.snapshot(pod.NS)
	dir := filepath.Join(l.pinRoot, "work", s.uid)
	l.must(os.Mkdir(dir, 0o700))
	lock, err := os.Open(dir)
	l.must(err)
	defer func() { _ = lock.Close() }()
	l.must(unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	start := time.Now()
	if o := l.cni("ADD", s, nil); o.code == 0 {
		t.Error("ADD succeeded")
	}
	if d := time.Since(start); d > 18*time.Second {
		t.Errorf("took %v", d)
	}
	wantSame(t, "after the failed ADD", l.snapshot(pod.NS), before)
}

// The runtime never closes stdin: a wait that has no limit of its own.
func TestAddGivesUpAfterAWhile(t *testing.T) {
	l := newLab(t)
	s, _ := l.sandbox("mesh", "p")
	r, w, err := os.Pipe()
	l.must(err)
	defer func() { _, _ = r.Close(), w.Close() }()
	cmd := l.command("ADD", s, nil)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout = r, &out
	start := time.Now()
	err = l.node.Do(cmd.Run)
	if d := time.Since(start); err == nil || d > 18*time.Second {
		t.Errorf("got %v after %v", err, d)
	}
	o := outcome{code: cmd.ProcessState.ExitCode()}
	l.must(oneValue(out.String(), &o.err))
	o.wantError(t, types.ErrTryAgainLater, "not done after 15s", "see whether an agent or another sluice-cni hangs")
}

// The runtime loses patience and tells the plugin to end.
func TestAddUndoesItselfWhenTerminated(t *testing.T) {
	l := newLab(t)
	s, pod := l.sandbox("mesh", "p")
	before := l.snapshot(pod.NS)
	done, asked := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(done) })
	l.agent.put(nodeapi.VerbServe, func(*nodeapi.Request) (nodeapi.Answer, *nodeapi.Error) {
		close(asked)
		<-done
		return nodeapi.Answer{}, nil
	})
	cmd := l.command("ADD", s, l.stdin(s, nil))
	var out strings.Builder
	cmd.Stdout = &out
	l.must(l.node.Do(cmd.Start))
	<-asked
	l.must(cmd.Process.Signal(unix.SIGTERM))
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), `"code":11`) {
		t.Errorf("got %v, %s, want code 11", err, out.String())
	}
	wantSame(t, "after the failed ADD", l.snapshot(pod.NS), before)
	l.agent.wantVerbs(nodeapi.VerbDecide, nodeapi.VerbServe, nodeapi.VerbRelease)
}

func TestTwentyAddsAtOnce(t *testing.T) {
	l := newLab(t)
	const pods = 20
	var all []*sandbox
	var want []string
	for i := range pods {
		s, _ := l.sandbox("mesh", fmt.Sprintf("p%d", i))
		all = append(all, s)
		want = append(want, s.containerID)
	}
	atOnce := func(verb string) {
		var wg sync.WaitGroup
		outcomes := make([]outcome, pods)
		for i, s := range all {
			wg.Go(func() { outcomes[i] = l.cni(verb, s, nil) })
		}
		wg.Wait()
		for i, o := range outcomes {
			if o.code != 0 {
				t.Errorf("%s %d: %+v\n%s", verb, i, o.err, o.stderr)
			}
		}
	}
	atOnce("ADD")
	slices.Sort(want)
	got := l.attached()
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("attached %v, want %v", got, want)
	}
	atOnce("CHECK")
	atOnce("DEL")
	l.wantAttached()
	if removed, err := l.bpfNode.Collect(func(bpf.PodInfo) bool { return true }); err != nil || len(removed) != 0 {
		t.Errorf("left behind: %v, %v", removed, err)
	}
}
