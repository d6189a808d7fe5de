// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	labkube "github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// published returns a client of a cluster that has a root, and the root.
func published(t *testing.T) (kubernetes.Interface, controlplane.RootPEM) {
	t.Helper()
	client := labkube.NewAPIServer(t).Client()
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "mesh"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	root, err := Root(t.Context(), client, "mesh", "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	if err := PublishRoot(t.Context(), client, "mesh", root); err != nil {
		t.Fatal(err)
	}
	return client, root
}

// deleteSecret leaves the certificate where ztunnels find it.
func deleteSecret(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	if err := client.CoreV1().Secrets("mesh").Delete(t.Context(), RootSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// A process that comes to a mesh whose root's key is gone makes no other root, which would cut the mesh in two.
func TestLostRootIsNotReplaced(t *testing.T) {
	client, _ := published(t)
	deleteSecret(t, client)
	_, err := Root(t.Context(), client, "mesh", "cluster.local")
	if err == nil || !strings.Contains(err.Error(), RootSecret) || !strings.Contains(err.Error(), RootConfigMap) {
		t.Errorf("got %v, want an error that names %s and %s", err, RootSecret, RootConfigMap)
	}
	if err := client.CoreV1().ConfigMaps("mesh").Delete(t.Context(), RootConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Root(t.Context(), client, "mesh", "cluster.local"); err != nil {
		t.Errorf("with neither: %v, want a new root", err)
	}
}

// A replica that serves and does not lead puts back what it serves: the one that leads may have come too late to know it.
func TestReplicaPutsBackTheRootThatItServes(t *testing.T) {
	client, root := published(t)
	roots := NewRoots(client, "mesh", "cluster.local", slog.New(slog.DiscardHandler))
	held, err := roots.Next(t.Context(), controlplane.RootPEM{})
	if err != nil {
		t.Fatal(err)
	}
	deleteSecret(t, client)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := roots.Next(ctx, held)
		ended <- err
	}()
	testutil.Eventually(t, time.Minute, func() error {
		_, err := client.CoreV1().Secrets("mesh").Get(ctx, RootSecret, metav1.GetOptions{})
		return err
	})
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Errorf("got %v, want it to wait for another root", err)
	}
	if back, err := Root(t.Context(), client, "mesh", "cluster.local"); err != nil || string(back.Key) != string(root.Key) {
		t.Errorf("root after that: error %v, the same key: %v", err, string(back.Key) == string(root.Key))
	}
}

// A replica that served before it came to lead puts back what it serves.
func TestNewLeaderPutsBackTheRootThatItServes(t *testing.T) {
	client, root := published(t)
	roots := NewRoots(client, "mesh", "cluster.local", slog.New(slog.DiscardHandler))
	if _, err := roots.Next(t.Context(), controlplane.RootPEM{}); err != nil {
		t.Fatal(err)
	}
	deleteSecret(t, client)
	ctx, cancel := context.WithCancel(t.Context())
	kept := make(chan error, 1)
	go func() { kept <- roots.Keep(ctx) }()
	testutil.Eventually(t, time.Minute, func() error {
		_, err := client.CoreV1().Secrets("mesh").Get(ctx, RootSecret, metav1.GetOptions{})
		return err
	})
	cancel()
	if err := <-kept; err != nil {
		t.Error(err)
	}
	if back, err := Root(t.Context(), client, "mesh", "cluster.local"); err != nil || string(back.Key) != string(root.Key) {
		t.Errorf("root after that: error %v, the same key: %v", err, string(back.Key) == string(root.Key))
	}
}
