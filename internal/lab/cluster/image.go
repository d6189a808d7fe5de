// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/lab/kube"
)

// Images that all nodes have, besides the mesh's own, which are called as the manifests call them.
const (
	// AppImage is the server and client of tests: internal/lab/cluster/app says what its commands are.
	AppImage = "sluice.test/app:1"
	dnsImage = "sluice.test/coredns:1"
	// busyboxImage is the one of manifests/examples, made of the distribution's busybox.
	busyboxImage = "docker.io/library/busybox:1.37"
)

// buildFolder is where make puts what it builds: all that a cluster needs is there.
func buildFolder(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"k8s/coredns", "containerd/containerd", "cni/bridge", "bin/ztunnel", "bin/sluice-installer", "bin/sluice-cni"} {
		kube.Built(t, name)
	}
	return filepath.Dir(filepath.Dir(kube.Binary(t, "hyperkube")))
}

// buildPrograms makes the programs of nodes and pods, and the images of pods, our own of the binaries under test.
func (c *Cluster) buildPrograms() {
	c.t.Helper()
	c.must(os.MkdirAll(c.path("bin"), 0o755), os.MkdirAll(c.path("images"), 0o755), os.MkdirAll(c.path("linux"), 0o755))
	const here = "github.com/sluice-mesh/sluice/internal/lab/cluster/"
	c.goRun([]string{"CGO_ENABLED=0"}, "build", "-ldflags=-s -w", "-o", c.path("bin")+"/", here+"app", here+"nodeinit")
	c.must(os.Symlink(filepath.Join(c.build, "bin"), c.path("linux", "linux-"+runtime.GOARCH)))
	c.goRun(nil, "run", "github.com/sluice-mesh/sluice/internal/tools/image", "-archs", runtime.GOARCH, "-bin", c.path("linux"), "-out", c.path("images"))
	c.must(writeImage(AppImage, c.path("images", "app.tar"), c.path("bin", "app"), "/app"),
		writeImage(dnsImage, c.path("images", "coredns.tar"), kube.Binary(c.t, "coredns"), "/coredns"))
	if busybox, err := exec.LookPath("busybox"); err != nil {
		c.t.Fatal(err)
	} else {
		c.must(writeImage(busyboxImage, c.path("images", "busybox.tar"), busybox, "/bin/sh", "/bin/httpd", "/bin/wget", "/bin/sleep"))
	}
}

func (c *Cluster) goRun(env []string, args ...string) {
	c.t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("go %v: %v\n%s", args, err, out)
	}
}

// deployDNS has the cluster answer for names of services once it has a node.
func (c *Cluster) deployDNS() {
	c.t.Helper()
	c.Apply(c.t, "", fmt.Sprintf(dnsManifest, dnsImage, dnsAddress))
}

// importImages gives the node's runtime all images.
func (n *Node) importImages() {
	n.c.t.Helper()
	archives, err := filepath.Glob(n.c.path("images", "*.tar"))
	n.c.must(err)
	for _, a := range archives {
		_, err := n.Run("ctr", "--namespace=k8s.io", "images", "import", a)
		n.c.must(err)
	}
}

// writeImage packs one static program into an archive that "ctr images import" takes, under each of the paths. The first is
// what a container runs that does not say.
func writeImage(name, archive, program string, paths ...string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	for _, p := range paths {
		files[strings.TrimPrefix(p, "/")] = content
	}
	layer, err := pack(0o755, files)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config": map[string]any{"Entrypoint": paths[:1], "Env": []string{"PATH=/bin:/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	image, err := pack(0o644, map[string][]byte{"manifest.json": manifest, "config.json": config, "layer.tar": layer})
	if err != nil {
		return err
	}
	return os.WriteFile(archive, image, 0o644)
}

func pack(mode int64, files map[string][]byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}
