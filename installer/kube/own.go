// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"
)

// Own tells whether the agent that ends is to come back, by its DaemonSet: deleted, or upgraded.
//
// It watches, and does not only ask in the end: who deletes all of the mesh's objects at once deletes the agent's rights
// before its pod.
type Own struct {
	node            *Node
	namespace, name string
	set             cache.SharedIndexInformer
	seen            atomic.Bool // that it is not there means something only once it was
}

// WatchOwn watches a DaemonSet until ctx ends. The API may be away at first.
func WatchOwn(ctx context.Context, node *Node, namespace, name string) (*Own, error) {
	source := cache.NewListWatchFromClient(node.cfg.Client.AppsV1().RESTClient(), "daemonsets", namespace, fields.OneTermEqualSelector("metadata.name", name))
	o := &Own{node: node, namespace: namespace, name: name, set: cache.NewSharedIndexInformer(source, &appsv1.DaemonSet{}, 0, nil)}
	if err := o.set.SetWatchErrorHandlerWithContext(node.watchFailed); err != nil {
		return nil, err
	}
	_, err := o.set.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { o.seen.Store(true) }})
	if err != nil {
		return nil, err
	}
	go o.set.RunWithContext(ctx)
	return o, nil
}

// Leaving reports whether the DaemonSet or its namespace is gone or about to go, and how that is known. If the API does not
// say so the agent is to come back.
func (o *Own) Leaving(ctx context.Context) (leaving bool, reason string) {
	if at := o.deleted(); at != "" {
		return true, at
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	set, err := o.node.cfg.Client.AppsV1().DaemonSets(o.namespace).Get(ctx, o.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) && !o.seen.Load():
		return false, o.what() + " was never there: is --own-daemonset right?"
	case apierrors.IsNotFound(err), err == nil && set.DeletionTimestamp != nil:
		return true, o.what() + " is deleted"
	case err != nil:
		return false, fmt.Sprintf("%s cannot be asked for: %v", o.what(), err)
	}
	return false, o.what() + " is there"
}

// deleted is what the watches have seen, empty for nothing.
func (o *Own) deleted() string {
	if space, ok, err := o.node.spaces.GetStore().GetByKey(o.namespace); err == nil && ok && space.(*corev1.Namespace).DeletionTimestamp != nil {
		return "namespace " + o.namespace + " is being deleted"
	}
	if !o.seen.Load() {
		return ""
	}
	set, ok, err := o.set.GetStore().GetByKey(o.namespace + "/" + o.name)
	if err == nil && (!ok || set.(*appsv1.DaemonSet).DeletionTimestamp != nil) {
		return o.what() + " was deleted"
	}
	return ""
}

func (o *Own) what() string { return "DaemonSet " + o.namespace + "/" + o.name }
