// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

const echoPort = 7000

// pod is a sandbox with a container that serves as the pod's name.
type pod struct {
	*testutil.NS
	config       *cri.PodSandboxConfig
	name         string
	sandbox, app string
	addr4, addr6 netip.Addr
}

// runPod makes a pod as a kubelet does. On error nothing of it stays.
func (n *node) runPod(name, namespace string) (*pod, error) {
	return n.runSandbox(name, &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: strings.ToLower(rand.Text())},
		Hostname: name, LogDirectory: n.ctrd("podlogs"),
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + n.lab.Name},
	})
}

func (n *node) runSandbox(name string, config *cri.PodSandboxConfig) (*pod, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	r, err := n.cri.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, err
	}
	p := &pod{config: config, name: name, sandbox: r.PodSandboxId}
	if err := errors.Join(n.startApp(p), n.inspect(ctx, p)); err != nil {
		return nil, errors.Join(err, n.removePod(p))
	}
	return p, nil
}

// startApp returns when the app listens.
func (n *node) startApp(p *pod) error {
	log := filepath.Join(p.config.LogDirectory, p.name+".log")
	if err := os.Remove(log); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	c, err := n.cri.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.sandbox, SandboxConfig: p.config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "app"}, Image: &cri.ImageSpec{Image: imageName},
			Command: []string{"/app", p.name, fmt.Sprintf("[::]:%d", echoPort)}, LogPath: p.name + ".log",
			Linux: &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		return err
	}
	p.app = c.ContainerId
	if _, err = n.cri.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.app}); err != nil {
		return err
	}
	return lab.Poll(callTimeout, func() error {
		said, err := os.ReadFile(log)
		if err == nil && !strings.Contains(string(said), "serving") {
			err = fmt.Errorf("%s does not listen yet: %s", p.name, said)
		}
		return err
	})
}

// restartApp replaces the container in its sandbox, as a kubelet does after a crash.
func (n *node) restartApp(p *pod) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if _, err := n.cri.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.app}); err != nil {
		return err
	}
	if _, err := n.cri.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.app}); err != nil {
		return err
	}
	return n.startApp(p)
}

// inspect finds out the pod's addresses and network namespace.
func (n *node) inspect(ctx context.Context, p *pod) error {
	s, err := n.cri.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.sandbox, Verbose: true})
	if err != nil {
		return err
	}
	ips := []string{s.Status.Network.Ip}
	for _, ip := range s.Status.Network.AdditionalIps {
		ips = append(ips, ip.Ip)
	}
	for _, ip := range ips {
		addr, err := netip.ParseAddr(ip)
		switch {
		case err != nil:
			return err
		case addr.Is4():
			p.addr4 = addr
		default:
			p.addr6 = addr
		}
	}
	var info struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
	}
	if err := json.Unmarshal([]byte(s.Info["info"]), &info); err != nil {
		return err
	}
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" {
			p.NS = &testutil.NS{Name: p.name, Path: ns.Path}
			return nil
		}
	}
	return fmt.Errorf("pod %s has no network namespace of its own", p.name)
}

// removePod stops and removes the pod.
func (n *node) removePod(p *pod) error { return n.removeSandbox(p.sandbox) }

func (n *node) removeSandbox(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if _, err := n.cri.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err := n.cri.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// mustRun is runPod for pods that have to work.
func (n *node) mustRun(name, namespace string) *pod {
	n.t.Helper()
	p, err := n.runPod(name, namespace)
	if err != nil {
		n.t.Fatalf("pod %s/%s: %v", namespace, name, err)
	}
	return p
}

// reaches has a process of one pod ask the app of another, over both families.
func reaches(from, to *pod) error {
	for _, a := range [][2]netip.Addr{{from.addr4, to.addr4}, {from.addr6, to.addr6}} {
		got, err := from.AskFrom(netip.AddrPortFrom(a[1], echoPort))
		if err == nil && (got.Name != to.name || got.From.Addr() != a[0]) {
			err = fmt.Errorf("%s answered and saw %v", got.Name, got.From)
		}
		if err != nil {
			return fmt.Errorf("%s (%v) to %s (%v): %w", from.name, a[0], to.name, a[1], err)
		}
	}
	return nil
}

// wantMesh fails the test unless member reaches the server, which takes nothing but mTLS, and the stranger does not.
func (n *node) wantMesh(what string, member, server, stranger *pod) {
	n.t.Helper()
	testutil.Eventually(n.t, effect, func() error {
		if err := reaches(member, server); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
	if err := reaches(stranger, server); err == nil {
		n.t.Errorf("%s: %s reached %s in clear", what, stranger.name, server.name)
	}
	if err := reaches(server, stranger); err != nil {
		n.t.Errorf("%s: out of the mesh: %v", what, err)
	}
}
