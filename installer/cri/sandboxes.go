// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxesTimeout bounds the questions about all sandboxes of a node.
const sandboxesTimeout = 20 * time.Second

// Sandbox is a pod as the runtime knows it.
type Sandbox struct {
	ID, Namespace, Name, UID string
	// Netns is the path of its network namespace on the node; empty if the runtime does not tell, as for one in the host's.
	Netns string
	// PID is a process in it, 0 if there is none.
	PID int
}

// Sandboxes are those that are ready, of the pods that wanted picks by uid. A sandbox that goes meanwhile is left out.
func Sandboxes(ctx context.Context, socket string, wanted func(uid string) bool) ([]Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, sandboxesTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("ask runtime at %q: %w", socket, err)
	}
	defer func() { _ = conn.Close() }()
	c := runtime.NewRuntimeServiceClient(conn)
	ready := &runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}}
	list, err := c.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: ready})
	if err != nil {
		return nil, fmt.Errorf("ask runtime at %q for sandboxes: %w", socket, err)
	}
	var all []Sandbox
	for _, item := range list.Items {
		if item.State != runtime.PodSandboxState_SANDBOX_READY || !wanted(item.Metadata.GetUid()) {
			continue
		}
		s := Sandbox{ID: item.Id, Namespace: item.Metadata.GetNamespace(), Name: item.Metadata.GetName(), UID: item.Metadata.GetUid()}
		status, err := c.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: item.Id, Verbose: true})
		if ctx.Err() != nil {
			return all, fmt.Errorf("ask runtime at %q for sandbox %s: %w", socket, item.Id, ctx.Err())
		}
		if err == nil {
			s.read(status.Info["info"])
			all = append(all, s)
		}
	}
	return all, nil
}

// read takes what containerd and CRI-O tell alike of a sandbox. What cannot be read is left out.
func (s *Sandbox) read(text string) {
	var info struct {
		PID         int `json:"pid"`
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		} `json:"runtimeSpec"`
	}
	if json.Unmarshal([]byte(text), &info) != nil {
		return
	}
	s.PID = info.PID
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" {
			s.Netns = ns.Path
		}
	}
}
