// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// TestAgentAndZtunnelRunInTheirContainers runs our images with the rights that manifests/base gives them: capabilities,
// seccomp, root file system, namespaces. Only folders are the lab's, since many nodes share this machine.
func TestAgentAndZtunnelRunInTheirContainers(t *testing.T) {
	each(t, func(t *testing.T, r release) {
		n := newNode(t, r)
		n.importOurImages()
		lists := n.giveFoldersTo(1000)
		n.runDaemon("agent.yaml", "--run-dir="+n.RunDir(), "--state-dir="+n.StateDir(), "--pin-root="+n.PinRoot(),
			"--source=files", "--manifests="+n.lab.Manifests(), "--workloads="+n.lab.Workloads(), "--ca-dir="+n.lab.CA(), "--cri-socket=/host"+n.socket())
		n.waitChain("bridge", "portmap", "recorder", "sluice-cni")
		for _, list := range lists {
			if st, err := os.Stat(list); err != nil || st.Sys().(*syscall.Stat_t).Uid != 1000 {
				t.Errorf("%s is not its owner's any more: %+v, %v", list, st, err)
			}
		}
		n.runDaemon("ztunnel.yaml", "--zds-socket="+filepath.Join(n.RunDir(), "ztunnel.sock"), "--agent-socket="+n.AgentSocket(),
			"--pin-root="+n.PinRoot(), "--xds-address=unix://"+filepath.Join(n.RunDir(), "controlplane.sock"))
		// Pods that come after the agent: it must see namespaces that were mounted later.
		var member, server *pod
		n.eventuallyRuns("member", &member)
		n.eventuallyRuns("server", &server)
		n.wantMesh("in containers", member, server, n.mustRun("stranger", "plain"))
	})
}

// giveFoldersTo makes another user the owner of the CNI folders, as kubespray does, and of the lists that it returns.
func (n *node) giveFoldersTo(uid int) (lists []string) {
	n.t.Helper()
	lists, err := filepath.Glob(filepath.Join(n.NetDir(), "*"))
	n.must(err)
	for _, path := range append([]string{n.NetDir(), n.BinDir()}, lists...) {
		n.must(os.Chown(path, uid, uid))
	}
	return lists
}

// eventuallyRuns makes a pod of the mesh; until ztunnel is there its ADD is to be tried again.
func (n *node) eventuallyRuns(name string, p **pod) {
	n.t.Helper()
	n.must(lab.Poll(callTimeout, func() (err error) { *p, err = n.runPod(name, "mesh"); return err }))
}

// shareMounts makes dir what / is on a node run by systemd: what is mounted below it shows in containers that ask for it.
func shareMounts(dir string) error {
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", dir, "", unix.MS_SHARED, "")
}

// importOurImages makes the images as "make image" does, of the binaries under test. The other architecture is only there
// to be left alone by the runtime.
func (n *node) importOurImages() {
	n.t.Helper()
	b, err := build()
	n.must(err)
	bin, out := n.t.TempDir(), n.t.TempDir()
	const other = "riscv64"
	for _, arch := range []string{other, runtime.GOARCH} {
		n.must(os.Symlink(filepath.Join(b.dir, "bin"), filepath.Join(bin, "linux-"+arch)))
	}
	cmd := exec.Command("go", "run", "../../tools/image", "-archs", other+","+runtime.GOARCH, "-bin", bin, "-out", out)
	if text, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("image: %v\n%s", err, text)
	}
	for _, name := range []string{"sluice-agent", "ztunnel"} {
		text, err := n.lab.Output(n.NS, effect, "ctr", "-a", n.socket(), "-n", "k8s.io", "images", "import", filepath.Join(out, name+".oci.tar"))
		if err != nil {
			n.t.Fatalf("import %s: %v\n%s", name, err, text)
		}
	}
}

// runDaemon starts the DaemonSet's pod, as the kubelet of a node would.
func (n *node) runDaemon(file string, flags ...string) {
	n.t.Helper()
	spec := daemonSet(n.t, file).Spec.Template.Spec
	c := spec.Containers[0]
	ns := &cri.NamespaceOption{Network: namespaceMode(spec.HostNetwork), Pid: cri.NamespaceMode_CONTAINER}
	if spec.HostPID {
		ns.Pid = cri.NamespaceMode_NODE
	}
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: c.Name, Namespace: "sluice-system", Uid: strings.ToLower(rand.Text())},
		LogDirectory: n.lab.Logs(),
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/" + n.lab.Name, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ns}},
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), callTimeout)
	defer cancel()
	s, err := n.cri.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	n.must(err)
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: c.Name}, Image: &cri.ImageSpec{Image: c.Image},
		Args: append(c.Args, flags...), LogPath: c.Name + ".log", Mounts: n.mounts(spec),
		Envs:  []*cri.KeyValue{{Key: "NODE_NAME", Value: []byte(n.Name)}, {Key: "POD_NAMESPACE", Value: []byte("sluice-system")}},
		Linux: &cri.LinuxContainerConfig{SecurityContext: securityContext(c.SecurityContext, ns)},
	}
	made, err := n.cri.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: s.PodSandboxId, SandboxConfig: sandbox, Config: config})
	n.must(err)
	_, err = n.cri.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
	n.must(err)
}

func namespaceMode(host bool) cri.NamespaceMode {
	if host {
		return cri.NamespaceMode_NODE
	}
	return cri.NamespaceMode_POD
}

// mounts are the manifest's host paths. Those that belong to one node are the lab's folder, under its own name.
func (n *node) mounts(spec corev1.PodSpec) []*cri.Mount {
	var mounts []*cri.Mount
	dir := n.lab.Dir
	for _, v := range spec.Volumes {
		switch {
		case v.Name == "cgroup":
			mounts = append(mounts, &cri.Mount{HostPath: v.HostPath.Path, ContainerPath: v.HostPath.Path, Readonly: true})
		case v.Name == "host":
			mounts = append(mounts, &cri.Mount{HostPath: dir, ContainerPath: "/host" + dir, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER})
		}
	}
	return append(mounts, &cri.Mount{HostPath: dir, ContainerPath: dir, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER})
}

// securityContext is what a kubelet makes of the container's, the paths that it hides and protects included.
func securityContext(s *corev1.SecurityContext, ns *cri.NamespaceOption) *cri.LinuxContainerSecurityContext {
	var caps cri.Capability
	for _, c := range s.Capabilities.Add {
		caps.AddCapabilities = append(caps.AddCapabilities, string(c))
	}
	for _, c := range s.Capabilities.Drop {
		caps.DropCapabilities = append(caps.DropCapabilities, string(c))
	}
	return &cri.LinuxContainerSecurityContext{
		Capabilities: &caps, NamespaceOptions: ns, Privileged: *s.Privileged, NoNewPrivs: !*s.AllowPrivilegeEscalation,
		RunAsUser: &cri.Int64Value{Value: *s.RunAsUser}, RunAsGroup: &cri.Int64Value{Value: *s.RunAsGroup},
		ReadonlyRootfs: *s.ReadOnlyRootFilesystem,
		Seccomp:        &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
			"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}
}

// daemonSet reads the one of a file of manifests/base.
func daemonSet(t *testing.T, file string) *appsv1.DaemonSet {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../../manifests/base", file))
	if err != nil {
		t.Fatal(err)
	}
	for doc := range bytes.SplitSeq(data, []byte("\n---\n")) {
		var ds appsv1.DaemonSet
		if err := yaml.Unmarshal(doc, &ds); err == nil && ds.Kind == "DaemonSet" {
			return &ds
		}
	}
	t.Fatal(fmt.Errorf("no DaemonSet in %s", file))
	return nil
}
