// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
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
	// asked are the pods that the API was asked about before the watch told of them, by namespace/name. After an outage that
	// takes the watch up to a minute.
	asked map[string]*corev1.Pod
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
		changed: make(chan struct{}, 1), deleted: map[string]deletedObject{}, asked: map[string]*corev1.Pod{},
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

// put takes in what the API tells of.
func (n *Node) put(object any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if key, err := cache.MetaNamespaceKeyFunc(object); err == nil {
		if pod, ok := object.(*corev1.Pod); ok {
			if last := n.asked[key]; last != nil && pod.CreationTimestamp.Before(&last.CreationTimestamp) {
				return // Its successor is there already.
			}
			delete(n.asked, key)
		}
		delete(n.deleted, key)
	}
	_ = n.Put(object) // which has logged it
	n.kick()
}

// putAsked takes in a pod that the API was asked about, unless the watch told of it meanwhile, and of something newer.
func (n *Node) putAsked(pod *corev1.Pod) {
	key := pod.Namespace + "/" + pod.Name
	n.mu.Lock()
	defer n.mu.Unlock()
	if o, ok, err := n.pods.GetStore().GetByKey(key); err == nil && ok && o.(*corev1.Pod).UID == pod.UID {
		pod = o.(*corev1.Pod)
	} else {
		n.asked[key] = pod
	}
	delete(n.deleted, key)
	_ = n.Put(pod) // which has logged it
	n.kick()
}

func (n *Node) remove(object any) {
	if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = last.Obj
	}
	key, err := cache.MetaNamespaceKeyFunc(object)
	if err != nil {
		return // neither a pod nor a namespace
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.removeLocked(key, object)
}

func (n *Node) removeLocked(key string, object any) {
	if pod, ok := object.(*corev1.Pod); ok && n.asked[key] != nil {
		if n.asked[key].UID != pod.UID {
			return // Its successor is there already.
		}
		delete(n.asked, key)
	}
	// One that was deleted at once is to look as any other: nobody is to look for a pod, or to go by a namespace.
	if meta, ok := object.(metav1.Object); ok && meta.GetDeletionTimestamp() == nil {
		object = object.(runtime.Object).DeepCopyObject()
		object.(metav1.Object).SetDeletionTimestamp(&metav1.Time{Time: time.Now()})
		_ = n.Put(object)
		n.kick()
	}
	n.deleted[key] = deletedObject{object, time.Now()}
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
			n.askAgain(ctx)
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
	n.putAsked(pod)
	n.Publish()
	return nil
}

// list is all pods of this node that the API is known to have, and what it said of each last.
func (n *Node) list() (all []*corev1.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, key := range n.pods.GetStore().ListKeys() {
		if o, ok, err := n.pods.GetStore().GetByKey(key); err == nil && ok && n.asked[key] == nil {
			all = append(all, o.(*corev1.Pod))
		}
	}
	return slices.AppendSeq(all, maps.Values(n.asked))
}

// answered is told what the API said of a pod when it was written to. The watch tells it, too, but maybe late.
func (n *Node) answered(pod *corev1.Pod) {
	key := pod.Namespace + "/" + pod.Name
	n.mu.Lock()
	defer n.mu.Unlock()
	if before := n.asked[key]; before != nil && before.UID == pod.UID {
		_, _ = trimForNode(pod) // cannot fail
		n.asked[key] = pod
	}
}

// askAgain has the pods go of which the watch never told since they were gone before it could.
func (n *Node) askAgain(ctx context.Context) {
	n.mu.Lock()
	asked := slices.Collect(maps.Values(n.asked))
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	for _, pod := range asked {
		switch now, err := n.cfg.Client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{}); {
		case apierrors.IsNotFound(err), err == nil && now.UID != pod.UID:
			n.neverTold(pod)
		case err != nil:
			return // The next tick asks again.
		}
	}
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

// neverTold removes a pod that the API no longer has, if the watch did not tell of it, or of its successor, at last.
func (n *Node) neverTold(pod *corev1.Pod) {
	key := pod.Namespace + "/" + pod.Name
	n.mu.Lock()
	defer n.mu.Unlock()
	if last := n.asked[key]; last != nil && last.UID == pod.UID {
		n.removeLocked(key, last)
	}
}
