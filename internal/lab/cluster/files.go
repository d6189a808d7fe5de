// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

var (
	servicePrefix4 = netip.MustParsePrefix("10.252.0.0/24")
	servicePrefix6 = netip.MustParsePrefix("fd00:10:252::/112")
)

// runtimePath is where containerd looks for its shim and for runc.
func (n *Node) runtimePath() string {
	return filepath.Join(n.c.build, "containerd") + ":/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// writeFiles puts on the node's disk what an installer of Kubernetes would.
func (n *Node) writeFiles() {
	n.c.t.Helper()
	for _, dir := range []string{"etc/cni/net.d", "etc/containerd", "etc/kubernetes", "opt/cni/bin", "var/lib", "var/log", "work/etc", "work/opt"} {
		n.c.must(os.MkdirAll(filepath.Join(n.dir, dir), 0o755))
	}
	cert, key := n.c.api.Certificate("system:node:"+n.Name, "system:nodes", n.ips()...)
	n.put("etc/kubernetes/kubelet.crt", read(n, cert))
	n.put("etc/kubernetes/kubelet.key", read(n, key))
	n.put("etc/kubernetes/ca.crt", read(n, n.c.api.CA()))
	n.put("etc/kubernetes/kubelet.kubeconfig", read(n, n.c.api.KubeconfigFor("system:node:"+n.Name, "system:nodes")))
	n.put("etc/kubernetes/proxy.kubeconfig", read(n, n.c.api.KubeconfigFor("system:kube-proxy")))
	n.put("etc/kubernetes/kubelet.yaml", fmt.Sprintf(kubeletConfig, n.Addr4))
	n.put("etc/kubernetes/kube-proxy.yaml", fmt.Sprintf(proxyConfig, n.Name, n.Addr4))
	n.put("etc/containerd/config.toml", runtimeConfig)
	n.put("etc/resolv.conf", "# The cluster's own names only: nothing leaves this machine.\n")
	n.put("etc/cni/net.d/10-lab.conflist", n.conflist())
	for _, name := range []string{"ptp", "host-local", "portmap"} {
		data := read(n, filepath.Join(n.c.build, "cni", name))
		n.put("opt/cni/bin/"+name, data)
		n.c.must(os.Chmod(filepath.Join(n.dir, "opt/cni/bin", name), 0o755))
	}
}

func (n *Node) put(name, content string) {
	n.c.t.Helper()
	n.c.must(os.WriteFile(filepath.Join(n.dir, name), []byte(content), 0o600))
}

func read(n *Node, path string) string {
	n.c.t.Helper()
	data, err := os.ReadFile(path)
	n.c.must(err)
	return string(data)
}

// conflist is the primary CNI: a route to each pod, leases by prefix, host ports.
func (n *Node) conflist() string {
	conf, err := json.MarshalIndent(map[string]any{"cniVersion": "1.1.0", "name": "lab", "plugins": []any{
		map[string]any{"type": "ptp", "ipMasq": false, "ipam": map[string]any{
			"type": "host-local", "routes": []any{map[string]string{"dst": "0.0.0.0/0"}, map[string]string{"dst": "::/0"}},
			"ranges": []any{[]any{map[string]string{"subnet": n.Pods4.String()}}, []any{map[string]string{"subnet": n.Pods6.String()}}},
		}},
		map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": false, "backend": "nftables"},
	}}, "", "  ")
	n.c.must(err)
	return string(conf)
}

// cgroup is the node's folder in each cgroup hierarchy of the machine.
func (n *Node) cgroup() string { return "/" + n.c.Outside.Name + "-" + n.Name }

// removeCgroups removes what is left of the node in all hierarchies.
func (n *Node) removeCgroups() {
	tops, _ := filepath.Glob("/sys/fs/cgroup/*" + n.cgroup())
	var dirs []string
	for _, top := range append(tops, "/sys/fs/cgroup"+n.cgroup()) {
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	err := lab.Poll(5*time.Second, func() error { // one is busy until its last process is reaped
		var errs []error
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		n.c.t.Errorf("cgroups of %s: %v", n.Name, err)
	}
}

// Files lists what is on the node's disk below a folder (/etc/cni, /opt/cni/bin, /var/lib/sluice), as "MODE PATH".
func (n *Node) Files(folder string) (list []string, err error) {
	out, err := n.Run("find", folder, "-printf", "%M %p %l\n")
	return strings.Split(strings.TrimSpace(out), "\n"), err
}
