// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/sluice-mesh/sluice/installer/controlplane"
)

const (
	// keepDeleted is how long a pod that is gone from the API stays known, and its namespace: it may be gone before its
	// containers are, and is not to go on in clear for the rest of its life.
	keepDeleted = 10 * time.Minute
	// settle is how long changes are gathered before they are published.
	settle = 20 * time.Millisecond
	// askWait bounds the question for one pod, which a CNI ADD waits for.
	askWait = 3 * time.Second
)

// NodeConfig says whose pods to watch. Fields without a default must be set.
type NodeConfig struct {
	Client   kubernetes.Interface
	NodeName string
	// Rules say which of the pods belong into the mesh.
	Rules controlplane.Rules
	// StateDir gets what was last known, for a start while the API is away.
	StateDir string
	// SyncWait is how long Start waits for the API when something is known from before; 0 means 5 s.
	SyncWait time.Duration
	Logger   *slog.Logger
}

// Node is what the API says of one node's pods, and of all namespaces. It is a [controlplane.Source]. Safe for concurrent
// use.
type Node struct {
	*controlplane.Set
	cfg     NodeConfig
	log     *slog.Logger
	pods    cache.SharedIndexInformer
	spaces  cache.SharedIndexInformer
	told    []cache.InformerSynced // what the API had at first is put in
	changed chan struct{}

	mu      sync.Mutex
	deleted map[string]deletedObject // by namespace/name, or the name of a namespace
}

// deletedObject is a pod, or a namespace: its labels say whether its last pods are in the mesh.
type deletedObject struct {
	object any
	at     time.Time
}

// NewNode asks nobody anything yet; call Start.
func NewNode(cfg NodeConfig) (*Node, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.SyncWait == 0 {
		cfg.SyncWait = 5 * time.Second
	}
	n := &Node{
		Set: controlplane.NewSet(cfg.Rules, cfg.Logger), cfg: cfg, log: cfg.Logger,
		changed: make(chan struct{}, 1), deleted: map[string]deletedObject{},
	}
	here := informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithTransform(trimForNode),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", cfg.NodeName).String()
		}))
	all := informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithTransform(trimForNode))
	n.pods, n.spaces = here.Core().V1().Pods().Informer(), all.Core().V1().Namespaces().Informer()
	for _, i := range []cache.SharedIndexInformer{n.pods, n.spaces} {
		if err := i.SetWatchErrorHandlerWithContext(n.watchFailed); err != nil {
			return nil, err
		}
		told, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: n.put, UpdateFunc: func(_, o any) { n.put(o) }, DeleteFunc: n.remove,
		})
		if err != nil {
			return nil, err
		}
		n.told = append(n.told, told.HasSynced)
	}
	return n, nil
}

// watchFailed logs in our words; the informers try again by themselves, less and less often.
func (n *Node) watchFailed(_ context.Context, _ *cache.Reflector, err error) {
	n.log.Warn("kubernetes API cannot be watched; what is known stays in force", "err", err)
}

func (n *Node) put(object any) {
	if key, err := cache.MetaNamespaceKeyFunc(object); err == nil {
		n.mu.Lock()
		delete(n.deleted, key)
		n.mu.Unlock()
	}
	_ = n.Put(object) // which has logged it
	n.kick()
}

func (n *Node) remove(object any) {
	if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = last.Obj
	}
	// One that was deleted at once is to look as any other: nobody is to look for a pod, or to go by a namespace.
	if meta, ok := object.(metav1.Object); ok && meta.GetDeletionTimestamp() == nil {
		object = object.(runtime.Object).DeepCopyObject()
		object.(metav1.Object).SetDeletionTimestamp(&metav1.Time{Time: time.Now()})
		_ = n.Put(object)
		n.kick()
	}
	key, err := cache.MetaNamespaceKeyFunc(object)
	if err != nil {
		return // neither a pod nor a namespace
	}
	n.mu.Lock()
	n.deleted[key] = deletedObject{object, time.Now()}
	n.mu.Unlock()
}

func (n *Node) kick() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Start has the informers run until ctx ends. It returns once the state of the API is known; or, when it does not answer
// in time, with that of before the restart. Without either it waits for the API for as long as ctx lasts: to know of no
// pod would be to take them all out of the mesh.
func (n *Node) Start(ctx context.Context) error {
	known, err := n.loadLast()
	if err != nil {
		n.log.Warn("what was last known of the API cannot be read", "err", err)
	}
	go n.pods.RunWithContext(ctx)
	go n.spaces.RunWithContext(ctx)
	wait, cancel := ctx, context.CancelFunc(func() {})
	if len(known) > 0 {
		wait, cancel = context.WithTimeout(ctx, n.cfg.SyncWait)
	}
	defer cancel()
	if n.synced(wait) {
		n.dropUnknown(known)
	} else if ctx.Err() != nil {
		return ctx.Err()
	} else {
		n.log.Warn("kubernetes API does not answer: going by what was known before the restart", "objects", len(known))
		go func() {
			if n.synced(ctx) {
				n.dropUnknown(known)
				n.kick()
			}
		}()
	}
	n.Publish()
	return nil
}

func (n *Node) synced(ctx context.Context) bool {
	return cache.WaitForCacheSync(ctx.Done(), n.told...)
}

// dropUnknown takes out what was known before the restart and is not in the API now.
func (n *Node) dropUnknown(known []any) {
	for _, o := range known {
		key, err := cache.MetaNamespaceKeyFunc(o)
		informer := n.pods
		if _, ok := o.(*corev1.Namespace); ok {
			informer = n.spaces
		}
		if _, exists, _ := informer.GetStore().GetByKey(key); err == nil && !exists {
			n.remove(o)
		}
	}
}

// Run implements [controlplane.Source]. Call it once, after Start.
func (n *Node) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			n.forgetDeleted(time.Now().Add(-keepDeleted))
		case <-n.changed:
			select {
			case <-time.After(settle):
			case <-ctx.Done():
			}
		}
		n.Publish()
		if err := n.saveLast(); err != nil {
			n.log.Error("what is known of the API is not kept for after a restart", "err", err)
		}
	}
}

func (n *Node) forgetDeleted(before time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, d := range n.deleted {
		if d.at.Before(before) {
			delete(n.deleted, name)
			_ = n.Delete(d.object) // cannot fail for a kind that was put in
		}
	}
}

// ErrUnknownPod reports that the API has no such pod.
var ErrUnknownPod = errors.New("the API server knows no such pod")

// Await returns once the pod is in the snapshot, for which it asks the API if the watch lags behind. An error that is not
// [ErrUnknownPod] says that the API does not answer.
func (n *Node) Await(ctx context.Context, namespace, name, uid string) error {
	known := n.has(namespace, name, uid)
	if known && n.Snapshot().Knows(namespace) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	if err := n.askNamespace(ctx, namespace); known {
		return nil // whether it told or not: the pod is one of a namespace that goes
	} else if err != nil {
		return err
	}
	pod, err := n.cfg.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w as %s/%s", ErrUnknownPod, namespace, name)
	case err != nil:
		return fmt.Errorf("ask the API for pod %s/%s: %w", namespace, name, err)
	case !controlplane.IsOf(pod, uid):
		return fmt.Errorf("%w: %s/%s has another uid there (%s)", ErrUnknownPod, namespace, name, pod.UID)
	}
	if _, err := trimForNode(pod); err != nil {
		return err
	}
	// The watch may have told meanwhile, and of something newer.
	if !n.has(namespace, name, uid) {
		n.put(pod)
		n.Publish()
	}
	return nil
}

// askNamespace has a namespace that is not there in the snapshot as the API tells of it.
func (n *Node) askNamespace(ctx context.Context, name string) error {
	if n.Snapshot().Knows(name) {
		return nil
	}
	ns, err := n.cfg.Client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: there is no namespace %s", ErrUnknownPod, name)
	case err != nil:
		return fmt.Errorf("ask the API for namespace %s: %w", name, err)
	}
	n.put(ns)
	n.Publish()
	return nil
}

func (n *Node) has(namespace, name, uid string) bool {
	p := n.Snapshot().Pods[controlplane.Name{Namespace: namespace, Name: name}]
	return p != nil && controlplane.IsOf(p.Pod, uid)
}
