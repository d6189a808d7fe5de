// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/sluice-mesh/sluice/installer/controlplane"
)

// gather is how long changes are gathered before all is translated anew: what a rolling update of many pods costs.
const gather = 100 * time.Millisecond

// Cluster is all that a control plane goes by. It is a [controlplane.Source]. Safe for concurrent use.
type Cluster struct {
	*controlplane.Set
	log       *slog.Logger
	dynamic   dynamic.Interface
	policies  dynamicinformer.DynamicSharedInformerFactory
	informers []cache.SharedIndexInformer
	told      []cache.InformerSynced
	absent    []schema.GroupVersionResource // kinds that the cluster did not have when Start asked
	changed   chan struct{}
	authors   *policyEvents // nil if nobody is to be told
}

// NewCluster asks nobody anything yet; call Start.
func NewCluster(client kubernetes.Interface, dyn dynamic.Interface, log *slog.Logger) (*Cluster, error) {
	c := &Cluster{Set: controlplane.NewSet(controlplane.Rules{}, log), log: log, dynamic: dyn, changed: make(chan struct{}, 1)}
	c.policies = dynamicinformer.NewDynamicSharedInformerFactory(dyn, 0)
	all := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(trimForCluster))
	for _, i := range []cache.SharedIndexInformer{
		all.Core().V1().Namespaces().Informer(), all.Core().V1().Pods().Informer(), all.Core().V1().Services().Informer(),
		all.Core().V1().Nodes().Informer(), all.Discovery().V1().EndpointSlices().Informer(),
	} {
		if err := c.add(i); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// add has Start run an informer and wait for it.
func (c *Cluster) add(i cache.SharedIndexInformer) error {
	told, err := c.follow(i)
	if err != nil {
		return err
	}
	c.informers, c.told = append(c.informers, i), append(c.told, told)
	return nil
}

// follow takes in what an informer will come to know. The result says whether all of the beginning has been taken in.
func (c *Cluster) follow(i cache.SharedIndexInformer) (cache.InformerSynced, error) {
	if err := i.SetWatchErrorHandlerWithContext(c.watchFailed); err != nil {
		return nil, err
	}
	told, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: c.put, UpdateFunc: func(_, o any) { c.put(o) }, DeleteFunc: c.remove,
	})
	if err != nil {
		return nil, err
	}
	return told.HasSynced, nil
}

func (c *Cluster) watchFailed(_ context.Context, _ *cache.Reflector, err error) {
	c.log.Warn("kubernetes API cannot be watched; what is known stays in force", "err", err)
}

func (c *Cluster) put(object any) {
	c.authors.note(object)
	_ = c.Put(object) // which has logged it
	c.kick()
}

func (c *Cluster) remove(object any) {
	if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = last.Obj
	}
	c.authors.forget(object)
	_ = c.Delete(object) // cannot fail for a kind that was put in
	c.kick()
}

func (c *Cluster) kick() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Start has the informers run until ctx ends, and returns once all is known; a mesh of which only the workloads are known
// would be one without its policies. A kind of policy that is not installed in the cluster has none, and is left to Run.
func (c *Cluster) Start(ctx context.Context) error {
	for _, kind := range policies {
		served, err := c.serves(ctx, kind)
		if err != nil {
			return err
		}
		if !served {
			c.log.Warn("the cluster has no such kind: there are no policies of it until it is installed", "kind", kind.GroupResource())
			c.absent = append(c.absent, kind)
			continue
		}
		if err := c.add(c.policyInformer(kind)); err != nil {
			return err
		}
	}
	for _, i := range c.informers {
		go i.RunWithContext(ctx)
	}
	if !cache.WaitForCacheSync(ctx.Done(), c.told...) {
		return ctx.Err()
	}
	c.Publish()
	return nil
}

// Run implements [controlplane.Source]. Call it once, after Start.
func (c *Cluster) Run(ctx context.Context) error {
	defer c.authors.stop()
	var waiting sync.WaitGroup
	defer waiting.Wait()
	c.authors.tell(c.Snapshot())
	for _, kind := range c.absent {
		waiting.Go(func() { c.await(ctx, kind) })
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.changed:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(gather):
		}
		c.Publish()
		c.authors.tell(c.Snapshot())
	}
}

// MayImpersonate returns why a node's proxy may not have a certificate for an identity, or nil if a pod that runs on the
// node has it: ambient section 7.
func (c *Cluster) MayImpersonate(node, identity string) error {
	path, ok := strings.CutPrefix(identity, "spiffe://")
	parts := strings.Split(path, "/") // trust domain, "ns", namespace, "sa", service account
	if !ok || len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return errors.New("it is no identity of a pod")
	}
	elsewhere := false
	for _, p := range c.Snapshot().Pods {
		if p.Namespace != parts[2] || account(p.Pod) != parts[4] || p.Spec.HostNetwork || finished(p.Pod) {
			continue
		}
		if node != "" && p.Spec.NodeName == node {
			return nil
		}
		elsewhere = true
	}
	if elsewhere {
		return fmt.Errorf("no pod on the caller's node %q has it, but one of another node", node)
	}
	return fmt.Errorf("no pod that is known has it (the caller's node is %q)", node)
}

func account(p *corev1.Pod) string {
	if p.Spec.ServiceAccountName == "" {
		return "default"
	}
	return p.Spec.ServiceAccountName
}

func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// trimForCluster leaves of an object what is translated.
func trimForCluster(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Pod:
		trimPod(o)
	case *corev1.Namespace:
		o.ObjectMeta, o.Spec, o.Status = trimMeta(o.ObjectMeta), corev1.NamespaceSpec{}, corev1.NamespaceStatus{}
	case *corev1.Service:
		o.ObjectMeta, o.Status = trimMeta(o.ObjectMeta), corev1.ServiceStatus{}
	case *corev1.Node:
		o.ObjectMeta, o.Spec, o.Status = trimMeta(o.ObjectMeta), corev1.NodeSpec{}, corev1.NodeStatus{}
	case *discoveryv1.EndpointSlice:
		o.ObjectMeta = trimMeta(o.ObjectMeta)
	}
	return object, nil
}

func trimPod(o *corev1.Pod) {
	owners := o.OwnerReferences
	o.ObjectMeta = trimMeta(o.ObjectMeta)
	o.OwnerReferences = owners
	spec := corev1.PodSpec{NodeName: o.Spec.NodeName, ServiceAccountName: o.Spec.ServiceAccountName, HostNetwork: o.Spec.HostNetwork}
	spec.Containers, spec.InitContainers = trimContainers(o.Spec.Containers), trimContainers(o.Spec.InitContainers)
	status := corev1.PodStatus{Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs}
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.PodReady {
			status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	o.Spec, o.Status = spec, status
}

// trimContainers keeps named ports, and what tells a sidecar from what runs once.
func trimContainers(all []corev1.Container) (kept []corev1.Container) {
	for _, c := range all {
		if len(c.Ports) > 0 {
			kept = append(kept, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return kept
}
