// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// Istio's two kinds that are installed.
var (
	PeerAuthentications   = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}
	AuthorizationPolicies = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}

	definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
)

// installPolicies installs the definitions that istio.io/api carries, and returns once both kinds are served.
func (s *APIServer) installPolicies() {
	s.t.Helper()
	client := s.Dynamic()
	for _, d := range policyDefinitions(s.t) {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if _, err := client.Resource(definitions).Create(ctx, d, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			s.t.Fatalf("install %s: %v", d.GetName(), err)
		}
	}
	for _, kind := range []schema.GroupVersionResource{PeerAuthentications, AuthorizationPolicies} {
		testutil.Eventually(s.t, startTimeout, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_, err := client.Resource(kind).List(ctx, metav1.ListOptions{})
			return err
		})
	}
}

func policyDefinitions(t testing.TB) (wanted []*unstructured.Unstructured) {
	t.Helper()
	names := []string{"peerauthentications.security.istio.io", "authorizationpolicies.security.istio.io"}
	file := filepath.Join(goList(t, "-m", "istio.io/api"), "kubernetes", "customresourcedefinitions.gen.yaml")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096); ; {
		u := &unstructured.Unstructured{}
		if err := d.Decode(&u.Object); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if slices.Contains(names, u.GetName()) {
			wanted = append(wanted, u)
		}
	}
	if len(wanted) != len(names) {
		t.Fatalf("%s: has %d of %v", file, len(wanted), names)
	}
	return wanted
}

// moduleRoot is the folder of this repository.
func moduleRoot(t testing.TB) string { t.Helper(); return goList(t, "-m") }

// goList asks for the folder of a module.
func goList(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-f", "{{.Dir}}"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}
