// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// NotReadyTaint is the key of the taint that whoever makes nodes may put on them, so that no pod is scheduled before the
// agent is ready.
const NotReadyTaint = "sluice.dev/not-ready"

// RemoveTaint takes the taint off the node, and tries until that is done or ctx ends. The node may have other taints, which
// others may change at the same time.
func RemoveTaint(ctx context.Context, client kubernetes.Interface, node string, log *slog.Logger) error {
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		err := removeTaint(ctx, client, node)
		if err == nil {
			return nil
		}
		log.Warn("taint stays on the node for now", "taint", NotReadyTaint, "err", err, "again_in", pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func removeTaint(ctx context.Context, client kubernetes.Interface, name string) error {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read node: %w", err)
	}
	left := slices.DeleteFunc(slices.Clone(node.Spec.Taints), func(t corev1.Taint) bool { return t.Key == NotReadyTaint })
	if len(left) == len(node.Spec.Taints) {
		return nil
	}
	// The resource version has the API refuse what was worked out from an older list.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": node.ResourceVersion}, "spec": map[string]any{"taints": left},
	})
	if err != nil {
		return err
	}
	if _, err := client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("patch node: %w", err)
	}
	return nil
}
