// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCgroup2IsFoundInMountinfo(t *testing.T) {
	for name, want := range map[string][]cgroupMount{
		"v2":        {{"/sys/fs/cgroup", "/"}},
		"hybrid":    {{"/sys/fs/cgroup/unified", "/"}},
		"container": {{"/sys/fs/cgroup", "/kubepods.slice/kubepods-pod1.slice/cri-containerd-2.scope"}, {"/host cgroup", "/../../.."}},
		"hidden":    {{"/sys/fs/cgroup2", "/"}},
	} {
		got, err := parseCgroupMounts(mustMountinfo(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for name, wantV1 := range map[string]bool{"v1": true, "none": false} {
		got, err := parseCgroupMounts(mustMountinfo(t, name))
		var none *noCgroup2Error
		if !errors.As(err, &none) || none.v1 != wantV1 || len(got) > 0 {
			t.Errorf("%s: got %v, %v, want none, v1 %v", name, got, err, wantV1)
		}
	}
}

func mustMountinfo(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "mountinfo", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func FuzzParseCgroupMounts(f *testing.F) {
	files, err := filepath.Glob("testdata/mountinfo/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(`1 2 0:1 \04 /a\ - cgroup2 c rw`)
	f.Fuzz(func(t *testing.T, text string) {
		mounts, err := parseCgroupMounts(text)
		if (err == nil) != (len(mounts) > 0) {
			t.Errorf("got %v, %v", mounts, err)
		}
	})
}

func TestKubeletsOwnCgroupIsFound(t *testing.T) {
	netns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	const own, host = "system.slice/kubelet.service", "host:[1]"
	for _, c := range []struct {
		name, comm, netns, cgroup, root string
		procs                           string
		want                            string
		pid, mnt                        string // not the host's, if set
	}{
		{name: "hostNetwork pod's", comm: "kubelet", netns: netns, cgroup: "0::/" + own, root: "/", procs: "7\n", mnt: "pod:[2]"},
		{name: "hostNetwork pod's, processes of its own", comm: "kubelet", netns: netns, cgroup: "0::/" + own, root: "/", procs: "7\n", pid: "pod:[2]"},
		{"own", "kubelet", netns, "1:cpu:/x\n0::/" + own, "/", "7\n", own, "", ""},
		{"own, seen from a cgroup namespace", "kubelet", netns, "0::/../../" + own, "/../..", "7\n", own, "", ""},
		{"the root", "kubelet", netns, "0::/", "/", "7\n", "", "", ""},
		{"outside of the mount", "kubelet", netns, "0::/" + own, "/kubepods", "7\n", "", "", ""},
		{"not listed there", "kubelet", netns, "0::/" + own, "/", "71\n17\n", "", "", ""},
		{"another program", "kubelet2", netns, "0::/" + own, "/", "7\n", "", "", ""},
		{"a pod's process of that name", "kubelet", "net:[1]", "0::/" + own, "/", "7\n", "", "", ""},
		{"cgroup v1 only", "kubelet", netns, "1:cpu:/x\n", "/", "7\n", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			proc, mount := t.TempDir(), cgroupMount{t.TempDir(), c.root}
			for path, text := range map[string]string{
				filepath.Join(proc, "7/comm"):                  c.comm + "\n",
				filepath.Join(proc, "7/cgroup"):                c.cgroup + "\n",
				filepath.Join(mount.Path, own, "cgroup.procs"): c.procs,
				filepath.Join(mount.Path, "cgroup.procs"):      "7\n",
			} {
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			for link, id := range map[string]string{
				"7/ns/net": c.netns, "7/ns/pid": orElse(c.pid, host), "7/ns/mnt": orElse(c.mnt, host), "1/ns/pid": host, "1/ns/mnt": host,
			} {
				path := filepath.Join(proc, link)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.Symlink(id, path)); err != nil {
					t.Fatal(err)
				}
			}
			want := ""
			if c.want != "" {
				want = filepath.Join(mount.Path, c.want)
			}
			if got := kubeletCgroup(proc, mount); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestOnlyTheHierarchysRootIsTheRoot(t *testing.T) {
	root := cgroupRoot(t)
	if !isCgroupRoot(root) {
		t.Errorf("%q: not taken for the root", root)
	}
	for _, path := range []string{mustCgroup(t), t.TempDir()} {
		if isCgroupRoot(path) {
			t.Errorf("%q: taken for the root", path)
		}
	}
	if id, err := cgroupID(root); err != nil || id == 0 {
		t.Errorf("got %d, %v", id, err)
	}
	if _, err := cgroupID("/"); err == nil || err.Error() != fmt.Sprintf("%q is not a cgroup2 folder", "/") {
		t.Errorf("got %v", err)
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
