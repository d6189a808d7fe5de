// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const (
	podsHere, podsElsewhere = 500, 5000
	// mostResidentKiB is several times what the agent needs: enough to tell that it keeps the pods of all nodes, or whole.
	mostResidentKiB = 128 << 10
)

// TestMemoryOfAnAgentWithManyPods runs the agent as a program, for its memory alone. docs/INSTALL.md has the figure.
func TestMemoryOfAnAgentWithManyPods(t *testing.T) {
	p := newPlace(t)
	server := kube.NewAPIServer(t)
	fillCluster(t, server)
	program := p.path("sluice-installer")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	log := &output{}
	args := append([]string{"agent", "--node-name", "node1", "--source", "api", "--kubeconfig", server.Kubeconfig(), "--xds-address", "unix:///nobody"}, p.flags()...)
	agent := exec.Command(program, args...)
	agent.Stdout, agent.Stderr = log, log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Process.Kill(); _ = agent.Wait() })
	testutil.Eventually(t, time.Minute, func() error {
		if !strings.Contains(log.String(), "agent ready") {
			return fmt.Errorf("not ready:\n%s", log)
		}
		return p.knowsPodsOfItsNode()
	})
	if last, err := nodeapi.LoadLastKnown(p.path("state")); err != nil || last.MayBeEnrolled("shop") || !last.MayBeEnrolled("new") {
		t.Errorf("for while no agent answers: %+v, %v; want shop to be out of the mesh, and namespaces that come later not", last, err)
	}
	got := resident(t, agent.Process.Pid)
	t.Logf("agent with %d pods of its node, none in the mesh, and %d of other nodes in the API: %.1f MiB resident", podsHere, podsElsewhere, float64(got)/1024)
	if got > mostResidentKiB {
		t.Errorf("resident memory: got %d KiB, want less than %d", got, mostResidentKiB)
	}
}

// fillCluster has pods with as much text in them as usual ones have.
func fillCluster(t *testing.T, server *kube.APIServer) {
	t.Helper()
	client := server.Client().CoreV1()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	if _, err := client.Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	g, ctx := errgroup.WithContext(context.Background())
	g.SetLimit(16)
	for i := range podsHere + podsElsewhere {
		node := "node1"
		if i >= podsHere {
			node = fmt.Sprintf("node%d", 2+i%10)
		}
		g.Go(func() error {
			_, err := client.Pods("shop").Create(ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("web-%d", i), Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"example.com/long": strings.Repeat("x", 4<<10)}},
				Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "app", Image: "app:1", Args: []string{strings.Repeat("y", 1<<10)}}}},
			}, metav1.CreateOptions{})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// knowsPodsOfItsNode reads what the agent keeps of the API for its next start.
func (p *place) knowsPodsOfItsNode() error {
	data, err := os.ReadFile(filepath.Join(p.path("state"), "lastapi.json"))
	if err != nil {
		return err
	}
	var known struct{ Pods []*corev1.Pod }
	if err := json.Unmarshal(data, &known); err != nil {
		return err
	}
	for _, pod := range known.Pods {
		if pod.Spec.NodeName != "node1" {
			return fmt.Errorf("knows pod %s of %s", pod.Name, pod.Spec.NodeName)
		}
	}
	if len(known.Pods) != podsHere {
		return fmt.Errorf("knows %d pods, want %d", len(known.Pods), podsHere)
	}
	return nil
}

// resident is VmRSS of proc(5), in KiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		t.Fatal("no VmRSS")
	}
	n, err := strconv.Atoi(fields[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
