// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
)

// policies are Istio's kinds that are carried out.
var policies = []schema.GroupVersionResource{
	{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"},
	{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"},
}

// absentPause is between two looks for a kind that the cluster does not have.
const absentPause = 5 * time.Second

// policyInformer is of a kind that has no Go types here.
func (c *Cluster) policyInformer(kind schema.GroupVersionResource) cache.SharedIndexInformer {
	i := c.policies.ForResource(kind).Informer()
	_ = i.SetTransform(trimPolicy) // fails for informers that run, which this one does not
	return i
}

// await follows a kind once the cluster has it, or until ctx ends.
func (c *Cluster) await(ctx context.Context, kind schema.GroupVersionResource) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(absentPause):
		}
		if served, err := c.serves(ctx, kind); err != nil {
			c.log.Warn("kind of policy cannot be looked for", "kind", kind.GroupResource(), "err", err)
		} else if served {
			break
		}
	}
	c.log.Info("the cluster has this kind now", "kind", kind.GroupResource())
	i := c.policyInformer(kind)
	if _, err := c.follow(i); err != nil {
		c.log.Error("policies cannot be watched", "kind", kind.GroupResource(), "err", err)
		return
	}
	i.RunWithContext(ctx)
}

// serves asks whether the API has a kind, for as long as the API does not answer.
func (c *Cluster) serves(ctx context.Context, kind schema.GroupVersionResource) (bool, error) {
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		_, err := c.dynamic.Resource(kind).List(ctx, metav1.ListOptions{Limit: 1})
		switch {
		case err == nil:
			return true, nil
		case apierrors.IsNotFound(err):
			return false, nil
		case apierrors.IsForbidden(err):
			return false, fmt.Errorf("list %s: %w", kind.Resource, err)
		}
		c.log.Warn("kubernetes API does not answer", "err", err, "again_in", pause)
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// trimPolicy drops what others keep with a policy: who wrote which field, and the text of an earlier version.
func trimPolicy(object any) (any, error) {
	if o, ok := object.(*unstructured.Unstructured); ok {
		o.SetManagedFields(nil)
		o.SetAnnotations(trimAnnotations(o.GetAnnotations()))
		delete(o.Object, "status")
	}
	return object, nil
}
