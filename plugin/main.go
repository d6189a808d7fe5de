// SPDX-License-Identifier: Apache-2.0

// Sluice-cni is the CNI plugin that puts pods into the mesh as they are created.
//
// It is chained behind the plugins that wire the pod, asks the node's agent whether the pod is enrolled, and if so
// attaches the capture programs and returns only when the pod is served. Pods that are not enrolled pass untouched.
//
//	ADD     ask agent ─► attach programs ─► ask agent to serve ─► prevResult      (any failure: all undone)
//	DEL     ask agent to release ─► detach programs
//	CHECK   compare programs, rule, route and listeners with what ADD made
//	GC      detach the pods that are not in the runtime's list
//	STATUS  fails until the agent has been ready once since boot
//
// It runs inside pod creation: it has no Kubernetes client and no credentials, and every wait has a limit.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// How long a verb may wait for the agent. Together that stays below verbTimeout, at which the process ends itself: it
// is for waits that have no limit of their own, such as another process's lock on the pod's pins.
const (
	decideTimeout  = 5 * time.Second // ADD, CHECK: the agent's answer whether the pod is enrolled
	addTimeout     = 12 * time.Second
	releaseTimeout = 2 * time.Second // DEL, GC, and ADD when it undoes itself
	verbTimeout    = 15 * time.Second
)

var versions = version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")

func main() { os.Exit(run(os.Stdout, os.Stderr)) }

// run takes the verb from the environment and stdin, as skel reads them, and returns the exit code.
func run(stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	p := &plugin{ctx: ctx, stdout: stdout, stderr: stderr, exit: os.Exit, gaveUp: make(chan struct{})}
	defer time.AfterFunc(verbTimeout, p.giveUp).Stop()
	return p.finish(skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status,
	}, versions, "sluice-cni, a chained CNI plugin that puts pods into the Sluice mesh"))
}

// plugin is one run of the binary: one verb.
type plugin struct {
	ctx    context.Context // ends when the runtime wants us gone; what was done is then undone
	stdout io.Writer       // for the result and nothing else
	stderr io.Writer

	writer atomic.Int32  // whose stdout is: nobody's, the verb's or the clock's. It never changes hands again
	exit   func(int)     // os.Exit, but for tests
	gaveUp chan struct{} // closed when the clock has written its error
}

const (
	nobody int32 = iota
	verb
	clock
)

// claim gives stdout to the first who asks. A verb that ends without a word claims it too: the clock must not speak then.
func (p *plugin) claim(by int32) bool { return p.writer.CompareAndSwap(nobody, by) }

// errGaveUp ends a verb that is done too late.
var errGaveUp = errors.New("done when the time was up")

// succeed writes the result of ADD.
func (p *plugin) succeed(result []byte) error {
	if !p.claim(verb) {
		<-p.gaveUp
		return errGaveUp
	}
	_, err := p.stdout.Write(result)
	return err
}

// finish tells the runtime how the verb ended, if nothing was told yet, and returns the exit code.
func (p *plugin) finish(err *types.Error) int {
	switch {
	case p.claim(verb):
		if err != nil {
			p.tell(err)
		}
	case p.writer.Load() == clock:
		<-p.gaveUp
		return 1
	case err != nil: // the result, or part of it, is on stdout: an error behind it would make both unreadable
		_, _ = fmt.Fprintln(p.stderr, "sluice-cni:", err)
	}
	if err != nil {
		return 1
	}
	return 0
}

// tell writes the error as CNI has it. Only who claimed stdout may.
func (p *plugin) tell(err *types.Error) {
	if err := json.NewEncoder(p.stdout).Encode(err); err != nil {
		_, _ = fmt.Fprintln(p.stderr, "sluice-cni: write error result:", err)
	}
}

// giveUp ends the process. What ADD has done by then is undone by the DEL that follows a failed ADD, or collected by
// the agent if it is half-made.
func (p *plugin) giveUp() {
	if !p.claim(clock) {
		return
	}
	p.tell(types.NewError(types.ErrTryAgainLater, fmt.Sprintf("sluice-cni: not done after %v", verbTimeout),
		"something on this node holds up the plugin: see whether an agent or another sluice-cni hangs; the runtime tries again by itself"))
	close(p.gaveUp)
	p.exit(1)
}

// log is for the runtime's journal: what happened to which pod, never the only place an error is told.
func (p *plugin) log(c *config, id identity, args *skel.CmdArgs) *slog.Logger {
	h := slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: c.LogLevel})
	return slog.New(h).With("plugin", "sluice-cni", "pod", id.String(), "container", args.ContainerID)
}

// strictConfig is parseConfig for the verbs that refuse to work with a mistake.
func strictConfig(stdin []byte) (*config, error) {
	c, err := parseConfig(stdin)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "sluice-cni: invalid configuration", oneLine(err))
	}
	return c, nil
}

// requirePrevResult returns what the plugins before us made.
func requirePrevResult(c *config) (*prevResult, error) {
	if c.PrevResult == nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig,
			"sluice-cni: prevResult is missing",
			"sluice-cni makes no interfaces: chain it after a main plugin (bridge, ptp, ...), as a later entry of the conflist's plugins")
	}
	prev, err := parsePrevResult(c.PrevResult, c.CNIVersion)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "sluice-cni: invalid prevResult", oneLine(err))
	}
	return prev, nil
}

// request is what ADD and CHECK were called with.
type request struct {
	config *config
	prev   *prevResult
	id     identity
	pod    *nodeapi.Pod
	log    *slog.Logger

	elsewhere  []netip.Prefix // addresses that prevResult gives to no interface of the pod
	unresolved error          // why the pod's links are not known
}

func (p *plugin) parse(args *skel.CmdArgs) (*request, error) {
	c, err := strictConfig(args.StdinData)
	if err != nil {
		return nil, err
	}
	prev, err := requirePrevResult(c)
	if err != nil {
		return nil, err
	}
	id, err := parseArgs(args.Args)
	if err != nil {
		return nil, err
	}
	r := &request{config: c, prev: prev, id: id, pod: podOf(c, args, id), log: p.log(c, id, args)}
	r.pod.Interfaces, r.elsewhere = prev.Interfaces(args.IfName, args.Netns)
	return r, nil
}

// podOf is the sandbox as the agent is told of it.
func podOf(c *config, args *skel.CmdArgs, id identity) *nodeapi.Pod {
	uid := id.UID
	if uid == "" {
		uid = args.ContainerID
	}
	return &nodeapi.Pod{
		UID:         uid,
		Namespace:   id.Namespace,
		Name:        id.Name,
		ContainerID: args.ContainerID,
		Netns:       args.Netns,
		Network:     c.Network,
	}
}

// ask puts one question to the agent, for at most timeout.
func ask(ctx context.Context, c *config, timeout time.Duration, req *nodeapi.Request) (*nodeapi.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, fds, err := nodeapi.Client{Socket: c.AgentSocket}.Do(ctx, req)
	nodeapi.CloseFDs(fds) // no answer to our verbs has any
	return resp, err
}
