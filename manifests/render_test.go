// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// objects are what one rendering holds, by "Kind namespace/name".
type objects map[string]runtime.Object

// built returns the path of a program that the Makefile makes, and makes it if it is not there.
func built(t *testing.T, target string) string {
	t.Helper()
	if dir := os.Getenv("SLUICE_BUILD"); dir != "" {
		path := filepath.Join(dir, target)
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%v (make build/%s makes it)", err, target)
		}
		return path
	}
	out, err := exec.Command("make", "-C", "..", "build/"+target).CombinedOutput()
	if err != nil {
		t.Fatalf("make build/%s: %v\n%s", target, err, out)
	}
	return filepath.Join("..", "build", target)
}

func kustomize(t *testing.T, folder string) objects {
	t.Helper()
	return decode(t, output(t, built(t, "k8s/kustomize"), "build", folder))
}

func helm(t *testing.T, args ...string) objects {
	t.Helper()
	return decode(t, output(t, built(t, "k8s/helm"), chartArgs(args...)...))
}

// chartArgs name a version of Kubernetes: helm takes its own, which only helm's releases set right.
func chartArgs(args ...string) []string {
	return append([]string{"template", "sluice", "helm/sluice", "--namespace", "sluice-system", "--kube-version", "1.30.0"}, args...)
}

func output(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	readAll(t)
	cmd := exec.Command(program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, stderr.Bytes())
	}
	return out
}

// readAll reads the manifests. Go's cache of test results knows what this process has read, not what its children have.
func readAll(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		_, err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// decode reads documents as the API server would with strict field validation: unknown and repeated fields are errors.
func decode(t *testing.T, text []byte) objects {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, policyv1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	scheme.AddKnownTypes(schema.GroupVersion{Group: "monitoring.coreos.com", Version: "v1"}, &PodMonitor{})
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	all := objects{}
	for docs := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		obj, _, err := strict.Decode(doc, nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		meta := obj.(metav1.Object)
		name := fmt.Sprintf("%s %s/%s", obj.GetObjectKind().GroupVersionKind().Kind, meta.GetNamespace(), meta.GetName())
		if _, twice := all[name]; twice {
			t.Fatalf("%s is there twice", name)
		}
		all[name] = obj
	}
}

// PodMonitor has the fields that our manifests use, as the Prometheus operator's API spells them.
type PodMonitor struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		Selector            metav1.LabelSelector `json:"selector"`
		PodMetricsEndpoints []struct {
			Port string `json:"port"`
			Path string `json:"path"`
		} `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

// DeepCopyObject implements runtime.Object.
func (p *PodMonitor) DeepCopyObject() runtime.Object { c := *p; return &c }

func (all objects) daemonSet(t *testing.T, name string) *appsv1.DaemonSet {
	t.Helper()
	ds, ok := all["DaemonSet "+name].(*appsv1.DaemonSet)
	if !ok {
		t.Fatalf("no DaemonSet %s", name)
	}
	return ds
}
