// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"os/exec"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func TestServerKeepsItsStateOverAnOutage(t *testing.T) {
	s := NewAPIServer(t)
	ctx := t.Context()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	if _, err := s.Client().CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	checkPolicyIsValidated(ctx, t, s)

	s.Stop()
	if _, err := s.Client().CoreV1().Namespaces().Get(ctx, "shop", metav1.GetOptions{}); err == nil {
		t.Error("the API server answers although it was stopped")
	}
	s.Start()
	if _, err := s.Client().CoreV1().Namespaces().Get(ctx, "shop", metav1.GetOptions{}); err != nil {
		t.Errorf("after the outage: %v", err)
	}

	config, err := clientcmd.BuildConfigFromFlags("", s.KubeconfigFor("nobody-special"))
	if err != nil {
		t.Fatal(err)
	}
	stranger := kubernetes.NewForConfigOrDie(config)
	if _, err := stranger.CoreV1().Pods("").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a user without a role lists pods: got %v, want forbidden", err)
	}
}

// checkPolicyIsValidated shows that Istio's schema is in force: one mode exists, the other does not.
func checkPolicyIsValidated(ctx context.Context, t *testing.T, s *APIServer) {
	t.Helper()
	policy := func(mode string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": map[string]any{"name": "default"},
			"spec": map[string]any{"mtls": map[string]any{"mode": mode}},
		}}
	}
	client := s.Dynamic().Resource(PeerAuthentications).Namespace("shop")
	if _, err := client.Create(ctx, policy("STRONG"), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("mode STRONG: got %v, want invalid", err)
	}
	if _, err := client.Create(ctx, policy("STRICT"), metav1.CreateOptions{}); err != nil {
		t.Errorf("mode STRICT: %v", err)
	}
}

func TestServersLeaveNoProcess(t *testing.T) {
	var s *APIServer
	t.Run("server", func(t *testing.T) { s = NewAPIServer(t) })
	if s == nil {
		t.Skip("no server was started")
	}
	if out, err := exec.Command("pgrep", "-f", s.dir).Output(); err == nil {
		t.Errorf("still there: %s", out)
	}
}
