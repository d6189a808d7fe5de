// SPDX-License-Identifier: Apache-2.0

// Package enroll takes a pod from "should be in the mesh" to "is", and back.
//
// The agent knows a pod from CNI ADD, whether or not it is enrolled then; one that started before the agent is looked for
// once it is wanted, and then known as if ADD had told:
//
//	         decide: no              label set
//	(ADD) ──────────────► known ─────────────────────┐
//	  │                    ▲                         ▼
//	  │ decide: yes        └──── label taken ──── served ◄──┐
//	  └──────────────────► admitted ─────────────────┘      │ restart: found in pins
//	                            plugin attached: serve      └──────────────────────
//
// A pod of which a step of the way out failed is leaving: nobody serves it, and every comparison tries again.
// A pod whose pins are found but whose namespace cannot be opened is lost until it can.
//
// DEL, GC, or the end of the pod's network namespace forgets it. What is wanted (the catalog) and what is (pins, ztunnel,
// workload files) are compared over and over, so that a lost event, a restart or an undone change only costs time.
package enroll

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/running"
	"github.com/sluice-mesh/sluice/installer/ztunnels"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// Catalog says which pods are wanted in the mesh, and as whom. *controlplane.Catalog is one.
type Catalog interface {
	Snapshot() *controlplane.Snapshot
}

// Config of an Enroller. Fields without a default must be set.
type Config struct {
	Node     *bpf.Node
	Ztunnels *ztunnels.Server
	Catalog  Catalog
	NodeName string
	// StateDir holds one file per known pod, in the folder "pods".
	StateDir string
	// WorkloadsDir gets one file per served pod, for the control planes. Empty means that whoever asks for States tells them.
	WorkloadsDir string
	// Await, if set, returns once the Catalog knows of a pod whose ADD has come. After an error the pod is judged by what is
	// known; if that cannot tell that it stays out of the mesh, its ADD fails.
	Await func(ctx context.Context, namespace, name, uid string) error
	// Changed, if set, is called when States may have changed. It must not block, nor call back.
	Changed func()
	// Refused, if set, is called with the reason why a pod's ADD failed, as a user should read it. As with Changed.
	Refused func(namespace, name, uid, reason string)
	// Find, if set, looks for pods that run although no ADD has told of them: they started before the agent, or its records
	// were lost. Its answers are in the order of pods.
	Find func(ctx context.Context, pods []*corev1.Pod) []running.Found
	// Settings are those of pods that have no annotations.
	Settings Settings
	// Host says which programs serve the node as a whole; the zero value is none.
	Host bpf.HostConfig
	// ServeTimeout bounds the bringing up of one pod; 0 means 10 s.
	ServeTimeout time.Duration
	// AdmitTimeout is how long a pod may stay admitted before it is taken for one whose ADD died half-way; 0 means 2 min.
	AdmitTimeout time.Duration
	// Resync is the time between two looks at all pods; 0 means 5 s.
	Resync time.Duration
	// ProxyDownLimit is for how long connections may wait for a ztunnel before listeners are closed and clients refused.
	// 0 means forever.
	ProxyDownLimit time.Duration
	Logger         *slog.Logger
}

// Enroller knows the node's pods. Safe for concurrent use.
type Enroller struct {
	cfg    Config
	log    *slog.Logger
	bootID string
	kick   chan struct{}
	// workloads serialises what happens to the sandboxes of one pod name. It is held over ZDS round trips, during which
	// ztunnel asks for listeners; that path takes only mu.
	workloads keyedMutex

	// mu guards the fields below and the mutable fields of every pod. It is never held over a system call that waits.
	mu      sync.Mutex
	pods    map[string]*pod // by container id
	current map[string]*pod // by uid: the sandbox that ztunnel is told of
	// refusing is set while listeners are closed because no ztunnel has been there for ProxyDownLimit.
	refusing bool
	ready    bool
	host     host
	// unmet are the wanted pods that run and were not found, by uid.
	unmet map[string]search
}

// phase is how far into the mesh a pod is.
type phase string

const (
	// known pods are not in the mesh.
	known phase = "known"
	// admitted pods are being attached by the plugin, which will ask to have them served.
	admitted phase = "admitted"
	// serving pods are on their way to served: ztunnel may ask for their listeners.
	serving phase = "serving"
	served  phase = "served"
	// leaving pods are on their way out of the mesh: nobody serves them, but something of them may be left.
	leaving phase = "leaving"
	// lost pods have programs, but their namespace cannot be opened: nobody serves them, and nothing leaves in clear.
	lost phase = "lost"
)

// fate is what becomes of a pod once it has left the mesh.
type fate string

const (
	// stays is for a pod that may come back.
	stays fate = ""
	// doomed is for a deleted pod, whose programs whoever deleted it takes off.
	doomed fate = "forget"
	// doomedWithPrograms is for a pod whose programs nobody but the agent takes off.
	doomedWithPrograms fate = "detach and forget"
)

// pod is one sandbox.
type pod struct {
	// Set once.
	sandbox nodeapi.Pod // as the first network's ADD told it; its addresses are those that Kubernetes knows
	netns   namespace
	ended   chan struct{} // closed when DEL comes: whoever brings the pod up gives up
	endOnce sync.Once

	// Guarded by Enroller.mu.
	phase   phase
	since   time.Time // of phase
	fate    fate
	account string // service account that ztunnel has acked
	next    string // service account that ztunnel is being told
	// lastAccount is the service account that the pod was last known to have, by its own uid.
	lastAccount string
	inside      *inside // set while serving or served
	// interfaces are what to attach to: the sandbox's, and those of other networks (Multus).
	interfaces []nodeapi.Interface
	settings   Settings // in force, or to be once it is attached
	problem    string   // why the pod is not as it should be; empty when it is
	seenBy     Depth    // how close a look found problem
}

func (p *pod) id() string       { return p.sandbox.ContainerID }
func (p *pod) workload() string { return p.sandbox.Namespace + "/" + p.sandbox.Name }

// end tells whoever is bringing the pod up to give up.
func (p *pod) end() { p.endOnce.Do(func() { close(p.ended) }) }

// inMeshLocked reports whether ztunnel serves the pod or is just learning of it.
func (p *pod) inMeshLocked() bool { return p.phase == serving || p.phase == served }

// New returns an Enroller that knows nothing yet; call Restore next.
func New(cfg Config) (*Enroller, error) {
	setDefault(&cfg.ServeTimeout, 10*time.Second)
	setDefault(&cfg.AdmitTimeout, 2*time.Minute)
	setDefault(&cfg.Resync, 5*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	bootID, err := nodeapi.BootID()
	if err != nil {
		return nil, err
	}
	e := &Enroller{
		cfg: cfg, log: cfg.Logger, bootID: bootID, kick: make(chan struct{}, 1),
		pods: map[string]*pod{}, current: map[string]*pod{}, unmet: map[string]search{},
	}
	if err := os.MkdirAll(e.recordsDir(), 0o700); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	return e, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

// Kick has Run compare everything soon.
func (e *Enroller) Kick() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// MayImpersonate reports whether a pod with this identity is in the mesh on this node; only for such may this node's
// ztunnel have certificates.
func (e *Enroller) MayImpersonate(identity string) bool {
	path, ok := strings.CutPrefix(identity, "spiffe://")
	if !ok {
		return false
	}
	parts := strings.Split(path, "/") // trust domain, "ns", namespace, "sa", service account
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.pods {
		if p.inMeshLocked() && p.sandbox.Namespace == parts[2] && (p.account == parts[4] || p.next == parts[4]) {
			return true
		}
	}
	return false
}

func (e *Enroller) get(containerID string) *pod {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pods[containerID]
}

// all returns the known pods in a fixed order.
func (e *Enroller) all() []*pod {
	e.mu.Lock()
	defer e.mu.Unlock()
	pods := make([]*pod, 0, len(e.pods))
	for _, p := range e.pods {
		pods = append(pods, p)
	}
	slices.SortFunc(pods, func(a, b *pod) int {
		if c := strings.Compare(a.sandbox.UID, b.sandbox.UID); c != 0 {
			return c
		}
		return strings.Compare(a.id(), b.id())
	})
	return pods
}

func (e *Enroller) phaseOf(p *pod) phase {
	e.mu.Lock()
	defer e.mu.Unlock()
	return p.phase
}

func (e *Enroller) setPhase(p *pod, to phase) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p.phase, p.since = to, time.Now()
	e.changed()
}

// setProblem keeps what a close look found until a look as close finds it gone.
func (e *Enroller) setProblem(p *pod, problem string, seenBy Depth) (changed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if (problem == "" || problem == p.problem) && p.problem != "" && seenBy < p.seenBy {
		return false
	}
	p.seenBy = seenBy
	changed = p.problem != problem
	p.problem = problem
	if changed {
		e.changed()
	}
	return changed
}

func (e *Enroller) recordsDir() string { return filepath.Join(e.cfg.StateDir, "pods") }

func (e *Enroller) podLog(p *pod) *slog.Logger {
	return e.log.With("namespace", p.sandbox.Namespace, "pod", p.sandbox.Name, "uid", p.sandbox.UID, "container", p.id())
}

// untilEnded returns a context that ends with ctx, with the pod, or after ServeTimeout.
func (e *Enroller) untilEnded(ctx context.Context, p *pod) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.ServeTimeout)
	go func() {
		select {
		case <-p.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
