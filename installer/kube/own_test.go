// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// daemonSet makes one that no controller cares for.
func (c *cluster) daemonSet(namespace, name string) {
	c.Helper()
	labels := map[string]string{"app": name}
	_, err := c.client.AppsV1().DaemonSets(namespace).Create(c.Context(), &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: "agent:1"}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		c.Fatal(err)
	}
}

func TestAgentLeavesWhenItsDaemonSetDoes(t *testing.T) {
	c := newCluster(t)
	n, _ := c.node(t.TempDir(), controlplane.Rules{})
	remove := func(policy metav1.DeletionPropagation) func(namespace string) {
		return func(namespace string) {
			if err := c.client.AppsV1().DaemonSets(namespace).Delete(t.Context(), "agent", metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		change func(namespace string)
		// away: the API is, by the time the agent ends.
		away, leaves bool
		reason       string
	}{
		"upgrade":                 {func(string) {}, false, false, "is there"},
		"API away":                {func(string) {}, true, false, "cannot be asked"},
		"deleted":                 {remove(metav1.DeletePropagationBackground), false, true, "deleted"},
		"deleted after its pods":  {remove(metav1.DeletePropagationForeground), false, true, "deleted"},
		"deleted, then API away":  {remove(metav1.DeletePropagationBackground), true, true, "was deleted"},
		"namespace, then no more": {c.deleteNamespace, true, true, "namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			space := "own-" + strings.Map(func(r rune) rune {
				if r < 'a' || r > 'z' {
					return '-'
				}
				return r
			}, strings.ToLower(name))
			c.namespace(space, nil)
			c.daemonSet(space, "agent")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			own, err := WatchOwn(ctx, n, space, "agent")
			if err != nil {
				t.Fatal(err)
			}
			testutil.Eventually(t, c.wait, func() error {
				if _, known, _ := n.spaces.GetStore().GetByKey(space); !own.seen.Load() || !known {
					return fmt.Errorf("not seen yet")
				}
				return nil
			})
			tc.change(space)
			if tc.away {
				if tc.leaves {
					testutil.Eventually(t, c.wait, func() error {
						if own.deleted() == "" {
							return fmt.Errorf("the deletion is not seen yet")
						}
						return nil
					})
				}
				c.Stop()
				defer c.Start()
			}
			if leaves, reason := own.Leaving(t.Context()); leaves != tc.leaves || !strings.Contains(reason, tc.reason) {
				t.Errorf("got %v, %q, want %v, %q", leaves, reason, tc.leaves, tc.reason)
			}
		})
	}
	own, err := WatchOwn(t.Context(), n, "default", "typo")
	if err != nil {
		t.Fatal(err)
	}
	if leaves, reason := own.Leaving(t.Context()); leaves || !strings.Contains(reason, "never there") {
		t.Errorf("a DaemonSet that was never there: got %v, %q", leaves, reason)
	}
}

// TestAgentThatStartsWithoutTheAPILeavesLater: an uninstall days after an outage is an uninstall.
func TestAgentThatStartsWithoutTheAPILeavesLater(t *testing.T) {
	c := newCluster(t)
	c.namespace("late", nil)
	c.daemonSet("late", "agent")
	n, _ := c.node(t.TempDir(), controlplane.Rules{})
	c.Stop()
	own, err := WatchOwn(t.Context(), n, "late", "agent")
	if err != nil {
		t.Fatal(err)
	}
	c.Start()
	testutil.Eventually(t, c.wait, func() error {
		if !own.seen.Load() {
			return fmt.Errorf("not seen yet")
		}
		return nil
	})
	if err := c.client.AppsV1().DaemonSets("late").Delete(t.Context(), "agent", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if leaves, reason := own.Leaving(t.Context()); !leaves {
		t.Errorf("it stays: %s", reason)
	}
}

// deleteNamespace leaves it in the state of being deleted: no controller finishes that.
func (c *cluster) deleteNamespace(name string) {
	c.Helper()
	if err := c.client.CoreV1().Namespaces().Delete(c.Context(), name, metav1.DeleteOptions{}); err != nil {
		c.Fatal(err)
	}
}
