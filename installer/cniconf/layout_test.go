// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	flannel = `{"name":"cbr0","cniVersion":"1.0.0","plugins":[{"type":"flannel"},{"type":"portmap"}]}`
	calico  = `{"name":"k8s-pod-network","cniVersion":"0.3.1","plugins":[{"type":"calico"}]}`
	ptp     = `{"name":"net","cniVersion":"0.3.1","plugins":[{"type":"ptp"}]}`
	multus  = `{"name":"multus-cni-network","type":"multus-shim","cniVersion":"0.3.1"}`
	crio    = `{"name":"crio","cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}`
)

// node is what a kind of node has on disk: files by path, "-> target" for symbolic links.
type node struct {
	files            map[string]string
	layout           string
	binDir, confPath string // resolved, below the node's root
}

var nodes = map[string]node{
	"K3s": {files: map[string]string{
		"/var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist": flannel,
		"/var/lib/rancher/k3s/data/cni/flannel":                        "",
		"/var/lib/rancher/k3s/data/current/bin/flannel":                "",
	}, layout: "K3s", binDir: "/var/lib/rancher/k3s/data/cni", confPath: "/var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist"},
	"K3s before 1.29": {files: map[string]string{
		"/var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist": flannel,
		"/var/lib/rancher/k3s/data/0f1e/bin/flannel":                   "",
		"/var/lib/rancher/k3s/data/current":                            "-> /var/lib/rancher/k3s/data/0f1e",
	}, layout: "K3s before 1.29", binDir: "/var/lib/rancher/k3s/data/0f1e/bin", confPath: "/var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist"},
	"MicroK8s": {files: map[string]string{
		"/var/snap/microk8s/7180/args/cni-network/10-calico.conflist": calico,
		"/var/snap/microk8s/7180/opt/cni/bin/calico":                  "",
		"/var/snap/microk8s/current":                                  "-> 7180",
	}, layout: "MicroK8s", binDir: "/var/snap/microk8s/7180/opt/cni/bin", confPath: "/var/snap/microk8s/7180/args/cni-network/10-calico.conflist"},
	"kind": {files: map[string]string{
		"/etc/cni/net.d/10-kindnet.conflist": ptp,
		"/opt/cni/bin/ptp":                   "",
	}, layout: "usual", binDir: "/opt/cni/bin", confPath: "/etc/cni/net.d/10-kindnet.conflist"},
	"minikube": {files: map[string]string{
		"/etc/cni/net.d/1-k8s.conflist":                        crio,
		"/etc/cni/net.d/200-loopback.conf":                     `{"cniVersion":"1.0.0","name":"loopback","type":"loopback"}`,
		"/etc/cni/net.d/87-podman-bridge.conflist.mk_disabled": crio,
		"/opt/cni/bin/bridge":                                  "",
	}, layout: "usual", binDir: "/opt/cni/bin", confPath: "/etc/cni/net.d/1-k8s.conflist"},
	"GKE": {files: map[string]string{
		"/etc/cni/net.d/10-gke-ptp.conflist": ptp,
		"/home/kubernetes/bin/ptp":           "",
		"/opt/cni/bin":                       "",
	}, layout: "GKE", binDir: "/home/kubernetes/bin", confPath: "/etc/cni/net.d/10-gke-ptp.conflist"},
	"OpenShift": {files: map[string]string{
		"/etc/kubernetes/cni/net.d/00-multus.conf": multus,
		"/etc/cni/net.d/100-crio-bridge.conflist":  crio,
		"/etc/cni/net.d/200-loopback.conflist":     `{"cniVersion":"1.0.0","name":"loopback","plugins":[{"type":"loopback"}]}`,
		"/var/lib/cni/bin/multus-shim":             "",
		"/usr/libexec/cni/bridge":                  "",
	}, layout: "OpenShift", binDir: "/var/lib/cni/bin", confPath: "/etc/kubernetes/cni/net.d/00-multus.conf"},
	"Bottlerocket": {files: map[string]string{
		"/etc/cni/net.d/10-aws.conflist": `{"cniVersion":"0.4.0","name":"aws-cni","plugins":[{"type":"aws-cni"},{"type":"portmap"}]}`,
		"/opt/cni/bin/aws-cni":           "",
	}, layout: "usual", binDir: "/opt/cni/bin", confPath: "/etc/cni/net.d/10-aws.conflist"},
	"Talos": {files: map[string]string{
		"/etc/cni/net.d/00-flannel.conflist": flannel,
		"/opt/cni/bin/flannel":               "",
	}, layout: "usual", binDir: "/opt/cni/bin", confPath: "/etc/cni/net.d/00-flannel.conflist"},
	"CRI-O from packages": {files: map[string]string{
		"/etc/cni/net.d/100-crio-bridge.conflist": crio,
		"/usr/libexec/cni/bridge":                 "",
	}, layout: "CRI-O's own", binDir: "/usr/libexec/cni", confPath: "/etc/cni/net.d/100-crio-bridge.conflist"},
}

// tree lays a node's files out and returns its root.
func (n node) tree(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	for path, content := range n.files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, link := strings.CutPrefix(content, "-> "); {
		case link:
			err = os.Symlink(target, path)
		case filepath.Ext(path) == "" && filepath.Base(path) == "bin":
			err = os.Mkdir(path, 0o755)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestLayoutsAreFoundAndServed(t *testing.T) {
	for name, n := range nodes {
		t.Run(name, func(t *testing.T) {
			root := n.tree(t)
			got, err := FindLayout(root)
			if err != nil {
				t.Fatal(err)
			}
			if got.Name != n.layout {
				t.Errorf("got the layout %q, want %q", got.Name, n.layout)
			}
			bin, err := Under(root, got.BinDir)
			if want := filepath.Join(root, n.binDir); err != nil || bin != want {
				t.Errorf("plugins: got %q, %v, want %q", bin, err, want)
			}
			conf, err := Under(root, got.ConfDir)
			if err != nil {
				t.Fatal(err)
			}
			if path, err := Primary(conf); err != nil || path != filepath.Join(root, n.confPath) {
				t.Errorf("configuration: got %q, %v, want %q", path, err, n.confPath)
			}
			before := contents(t, conf)
			mustInstall(t, conf)
			if _, err := Uninstall(conf); err != nil {
				t.Fatal(err)
			}
			if after := contents(t, conf); len(after) != len(before) || after[filepath.Base(n.confPath)] != before[filepath.Base(n.confPath)] {
				t.Errorf("installed and uninstalled: got %v, want %v", after, before)
			}
		})
	}
}

func TestNoLayoutIsNoConfigYet(t *testing.T) {
	root := node{files: map[string]string{"/etc/cni/net.d/README": "", "/opt/cni/bin/ptp": ""}}.tree(t)
	if _, err := FindLayout(root); !errors.Is(err, ErrNoConfig) || !strings.Contains(err.Error(), "/etc/cni/net.d") {
		t.Errorf("got %v, want %v with the folders", err, ErrNoConfig)
	}
}

func TestUnderStaysBelowRoot(t *testing.T) {
	root := node{files: map[string]string{
		"/a/file": "", "/b": "-> ../../../a", "/c": "-> /b", "/loop": "-> loop",
	}}.tree(t)
	for path, want := range map[string]string{"/a/file": "/a/file", "/b/file": "/a/file", "/c/../c/file": "/a/file", "/a/../../../a/file": "/a/file"} {
		if got, err := Under(root, path); err != nil || got != filepath.Join(root, want) {
			t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"/loop", "/none/file"} {
		if got, err := Under(root, path); err == nil {
			t.Errorf("%s: got %q, want an error", path, got)
		}
	}
}
