// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-mesh/sluice/internal/lab/kube"
)

// commandTimeout bounds one command, those that wait included.
const commandTimeout = 3 * time.Minute

// TryKubectl runs kubectl as the administrator and returns what it printed on both channels.
func (c *Cluster) TryKubectl(args ...string) (string, error) { return c.kubectl("", args...) }

// Kubectl is TryKubectl for what has to succeed.
func (c *Cluster) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.TryKubectl(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Apply gives YAML to "kubectl apply". An empty namespace: that of each object.
func (c *Cluster) Apply(t testing.TB, namespace, yaml string) {
	t.Helper()
	args := []string{"apply", "-f", "-"}
	if namespace != "" {
		args = append(args, "--namespace="+namespace)
	}
	if _, err := c.kubectl(yaml, args...); err != nil {
		t.Fatal(err)
	}
}

func (c *Cluster) kubectl(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	argv := append(c.outside(), kube.Binary(c.t, "kubectl"), "--kubeconfig="+c.kubeconfig)
	argv = append(argv, args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.WaitDelay = strings.NewReader(stdin), time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// Shell runs what a user would type in a folder, with kubectl on the path, and returns what was printed on both channels.
func (c *Cluster) Shell(t testing.TB, folder, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	argv := append(c.outside(), "bash", "-c", command)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.WaitDelay = folder, time.Second
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig, "PATH="+filepath.Dir(kube.Binary(c.t, "kubectl"))+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// Exec runs a command in the first container of a pod, by way of its kubelet.
func (c *Cluster) Exec(namespace, pod string, argv ...string) (string, error) {
	return c.TryKubectl(append([]string{"exec", "--namespace=" + namespace, pod, "--"}, argv...)...)
}

// Namespace makes one with the given labels ("key=value") and a name of its own, for the time of the test.
func (c *Cluster) Namespace(t testing.TB, labels ...string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "t-" + strings.ToLower(rand.Text()[:8]), Labels: map[string]string{}}}
	for _, l := range labels {
		key, value, _ := strings.Cut(l, "=")
		ns.Labels[key] = value
	}
	if _, err := c.client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.TryKubectl("describe", "pods", "--namespace="+ns.Name)
			t.Logf("pods of %s:\n%s", ns.Name, out)
		}
		if err := c.client.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("delete namespace: %v", err)
		}
	})
	return ns.Name
}

// Rollout waits until a Deployment, DaemonSet or StatefulSet ("deployment/web") is rolled out.
func (c *Cluster) Rollout(t testing.TB, namespace, what string) {
	t.Helper()
	c.Kubectl(t, "rollout", "status", "--namespace="+namespace, "--timeout=150s", what)
}

// Pods returns the pods that a selector ("app=web") picks and that are not about to end, by the name of their node.
func (c *Cluster) Pods(t testing.TB, namespace, selector string) map[string][]corev1.Pod {
	t.Helper()
	list, err := c.client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		t.Fatal(err)
	}
	byNode := map[string][]corev1.Pod{}
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			byNode[p.Spec.NodeName] = append(byNode[p.Spec.NodeName], p)
		}
	}
	return byNode
}
