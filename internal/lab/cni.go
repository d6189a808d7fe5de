// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// cniTimeout bounds one run of the whole plugin chain.
const cniTimeout = 30 * time.Second

// PodSpec names a pod and what its runtime would tell the plugins.
type PodSpec struct {
	// Name is the pod's name; its network namespace is the lab's name, a dash and this.
	Name      string
	Namespace string
	// HostPort, when not 0, is mapped to ContainerPort by the portmap plugin.
	HostPort, ContainerPort int
	// MakeNS, if set, makes the pod's network namespace under the name it is given, in place of an ordinary one.
	MakeNS func(name string) error `json:"-"`
}

// Pod is a pod that the chain made.
type Pod struct {
	PodSpec
	ContainerID string
	UID         string
	NS          string // name of its network namespace
	Addr4       netip.Addr
	Addr6       netip.Addr
	AddTook     time.Duration
	node        *Node
}

// Addr returns the pod's address of a family, 4 or 6.
func (p *Pod) Addr(family int) netip.Addr {
	if family == 6 {
		return p.Addr6
	}
	return p.Addr4
}

// conflist is the node's primary CNI configuration before ours is inserted.
func (n *Node) conflist() map[string]any {
	var ranges [][]map[string]string
	var routes []map[string]string
	for _, p := range n.lab.prefixes(n.Pods4, n.Pods6) {
		ranges = append(ranges, []map[string]string{{"subnet": p.String()}})
	}
	for _, p := range n.lab.prefixes(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")) {
		routes = append(routes, map[string]string{"dst": p.String()})
	}
	ipam := map[string]any{"type": "host-local", "dataDir": n.path("ipam"), "ranges": ranges, "routes": routes}
	main := map[string]any{"type": n.plugin, "ipam": ipam}
	if n.plugin == "bridge" {
		main["bridge"], main["isGateway"] = "cni0", true
	}
	portmap := map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": false, "backend": "nftables"}
	return map[string]any{"cniVersion": "1.1.0", "name": "lab", "plugins": []any{main, portmap}}
}

// ConflistPath is the node's primary CNI configuration.
func (n *Node) ConflistPath() string { return filepath.Join(n.NetDir(), "10-lab.conflist") }

func (n *Node) writeConflist() error {
	data, err := json.MarshalIndent(n.conflist(), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(n.ConflistPath(), append(data, '\n'), 0o644)
}

// cni returns libcni over the node's folders, and the configuration as it is on disk now. What plugins write to stderr
// goes to log.
func (n *Node) cni(log io.Writer) (*libcni.CNIConfig, *libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromFile(n.ConflistPath())
	if err != nil {
		return nil, nil, err
	}
	exec := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: log}}
	return libcni.NewCNIConfigWithCacheDir([]string{n.BinDir()}, n.path("cnicache"), exec), list, nil
}

// runtimeConf is what a container runtime passes for the pod. Its ids follow from the names: a pod made again has the
// same ones, as a Kubernetes pod whose sandbox was made again.
func (n *Node) runtimeConf(p *Pod) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: p.ContainerID, NetNS: netns.NamedPath(p.NS), IfName: "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ContainerID}, {"K8S_POD_UID", p.UID},
		},
	}
	if p.HostPort != 0 {
		rt.CapabilityArgs = map[string]any{"portMappings": []map[string]any{
			{"hostPort": p.HostPort, "containerPort": p.ContainerPort, "protocol": "tcp"}}}
	}
	return rt
}

// Pod completes a spec with ids, for a pod that need not exist.
func (n *Node) Pod(spec PodSpec) *Pod {
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(n.lab.Name+"/"+spec.Namespace+"/"+spec.Name)))
	uid := fmt.Sprintf("%s-%s-4%s-8%s-%s", sum[:8], sum[8:12], sum[13:16], sum[17:20], sum[20:32])
	return &Pod{PodSpec: spec, ContainerID: sum, UID: uid, NS: n.lab.NS(spec.Name), node: n}
}

// AddPod makes the pod's namespace and runs the chain's ADD. The pod is noted on disk first, so that Down finds it
// whatever happens.
func (n *Node) AddPod(spec PodSpec) (*Pod, error) {
	p := n.Pod(spec)
	if err := n.notePod(p); err != nil {
		return nil, err
	}
	if err := p.makeNS(); err != nil {
		return nil, err
	}
	began := time.Now()
	result, err := n.Add(p)
	if err != nil {
		return nil, fmt.Errorf("CNI ADD of %s: %w", p.Name, err)
	}
	p.AddTook = time.Since(began)
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		if addr = addr.Unmap(); addr.Is4() {
			p.Addr4 = addr
		} else {
			p.Addr6 = addr
		}
	}
	return p, nil
}

func (p *Pod) makeNS() error {
	if p.MakeNS == nil {
		return createNS(p.NS)
	}
	if err := p.MakeNS(p.NS); err != nil {
		return err
	}
	return prepareNS(p.NS)
}

// Add runs the chain's ADD for a pod whose namespace exists.
func (n *Node) Add(p *Pod) (*current.Result, error) {
	var result types.Result
	err := n.chain(func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList) (err error) {
		result, err = c.AddNetworkList(ctx, list, n.runtimeConf(p))
		return err
	})
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(result)
}

// Check runs the chain's CHECK.
func (n *Node) Check(p *Pod) error {
	return n.chain(func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return c.CheckNetworkList(ctx, list, n.runtimeConf(p))
	})
}

// Del runs the chain's DEL and keeps the namespace.
func (n *Node) Del(p *Pod) error {
	return n.chain(func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return c.DelNetworkList(ctx, list, n.runtimeConf(p))
	})
}

// Status runs the chain's STATUS.
func (n *Node) Status() error {
	return n.chain(func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return c.GetStatusNetworkList(ctx, list)
	})
}

// GC runs the chain's GC with valid as all pods that the runtime knows.
func (n *Node) GC(valid ...*Pod) error {
	args := &libcni.GCArgs{}
	for _, p := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: p.ContainerID, IfName: "eth0"})
	}
	return n.chain(func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return c.GCNetworkList(ctx, list, args)
	})
}

// chain runs f inside the node's namespace, where plugins expect to run.
func (n *Node) chain(f func(context.Context, *libcni.CNIConfig, *libcni.NetworkConfigList) error) error {
	log, err := n.lab.openLog("cni-" + n.Name)
	if err != nil {
		return err
	}
	defer log.Close()
	c, list, err := n.cni(log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), cniTimeout)
	defer cancel()
	return In(n.NS, func() error { return f(ctx, c, list) })
}

// DelPod runs the chain's DEL, then removes the pod's namespace and note. Deleting again succeeds.
func (n *Node) DelPod(p *Pod) error {
	var err error
	if _, serr := os.Stat(netns.NamedPath(p.NS)); serr == nil {
		err = n.Del(p)
	}
	return errors.Join(err, netns.RemoveNamed(p.NS), n.forgetPod(p))
}

func (n *Node) notePod(p *Pod) error {
	if err := os.MkdirAll(n.path("pods"), 0o755); err != nil {
		return err
	}
	data, err := json.Marshal(p.PodSpec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.path("pods"), p.Name), data, 0o644)
}

func (n *Node) forgetPod(p *Pod) error {
	if err := os.Remove(filepath.Join(n.path("pods"), p.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// notedPods lists the pods that were made and not deleted, by this program or an earlier one.
func (n *Node) notedPods() ([]*Pod, error) {
	entries, err := os.ReadDir(n.path("pods"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var pods []*Pod
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(n.path("pods"), e.Name()))
		if err != nil {
			return nil, err
		}
		var spec PodSpec
		if err := json.Unmarshal(data, &spec); err != nil {
			return nil, fmt.Errorf("pod note %s: %w", e.Name(), err)
		}
		pods = append(pods, n.Pod(spec))
	}
	return pods, nil
}
