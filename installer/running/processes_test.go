// SPDX-License-Identifier: Apache-2.0

package running

import "testing"

func TestCgroupNamesTellPodAndContainer(t *testing.T) {
	const uid, id = "1f0c2b7a-3d7e-4a52-9c55-0d3cf1b7a001", "9f3b0c"
	for name, tt := range map[string]struct{ text, uid, id string }{
		"v2, cgroupfs":               {"0::/kubepods/burstable/pod" + uid + "/" + id + "\n", uid, id},
		"v2, seen from below":        {"0::/../../kubepods/pod" + uid + "/" + id + "\n", uid, id},
		"v2, systemd, containerd":    {"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1f0c2b7a_3d7e_4a52_9c55_0d3cf1b7a001.slice/cri-containerd-" + id + ".scope\n", uid, id},
		"v2, systemd, CRI-O":         {"0::/kubepods.slice/kubepods-pod1f0c2b7a_3d7e_4a52_9c55_0d3cf1b7a001.slice/crio-" + id + ".scope/container\n", uid, id},
		"v1, systemd as a path":      {"12:pids:/kubepods-pod1f0c2b7a_3d7e_4a52_9c55_0d3cf1b7a001.slice:cri-containerd:" + id + "\n", uid, id},
		"v1, the second hierarchy":   {"12:misc:/\n4:cpu,cpuacct:/kubepods/pod" + uid + "/" + id + "\n0::/\n", uid, id},
		"v1, named hierarchy":        {"1:name=systemd:/kubepods/pod" + uid + "/" + id + "\n", uid, id},
		"the pod's own cgroup":       {"0::/kubepods/pod" + uid + "\n", "", ""},
		"a service of the node":      {"0::/system.slice/podman.service\n", "", ""},
		"a slice that is no pod's":   {"0::/user-pod.slice/app.scope\n", "", ""},
		"nothing":                    {"", "", ""},
		"a line that is no cgroup's": {"kubepods\n", "", ""},
	} {
		if gotUID, gotID := inCgroup(tt.text); gotUID != tt.uid || gotID != tt.id {
			t.Errorf("%s: got pod %q and container %q, want %q and %q", name, gotUID, gotID, tt.uid, tt.id)
		}
	}
}
