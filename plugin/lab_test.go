// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestMain lets the test binary be the plugin, race detector included, when it is started under the plugin's name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "sluice-cni" {
		main()
	}
	// Tests wait for processes, timeouts and the kernel more than they compute.
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	// The race detector has every process sleep for a second at exit, and there are hundreds.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil {
		panic(err)
	}
	code := m.Run()
	if chainDir.path != "" {
		_ = os.RemoveAll(chainDir.path)
	}
	os.Exit(code)
}

// chainDir holds the plugins that go before ours, built once.
var chainDir struct {
	once sync.Once
	path string
	err  error
}

// chainPlugins returns the folder of bridge and host-local as this module pins them. It builds them unless make has.
func chainPlugins(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("SLUICE_BUILD"); dir != "" {
		return filepath.Join(dir, "cni")
	}
	chainDir.once.Do(func() {
		if chainDir.path, chainDir.err = os.MkdirTemp("", "sluice-cni-test-"); chainDir.err != nil {
			return
		}
		const module = "github.com/containernetworking/plugins/plugins/"
		build := exec.Command("go", "build", "-o", chainDir.path+"/", module+"main/bridge", module+"ipam/host-local")
		if out, err := build.CombinedOutput(); err != nil {
			chainDir.err = fmt.Errorf("%v: %w\n%s", build.Args, err, out)
		}
	})
	if chainDir.err != nil {
		t.Fatal(chainDir.err)
	}
	return chainDir.path
}

// lab is a node to create pods on: a namespace for the host, pins on a bpffs of its own, an agent that the test controls.
//
//	node netns:  runtime (libcni or cni()) ─exec─► sluice-cni ──► agent
//	                  │ cni0 or the pod's veth           └──► pins
//	pod netns:   eth0
type lab struct {
	t        *testing.T
	node     *testutil.Node
	agent    *agent
	dir      string // holds run/, state/ and bin/
	pinRoot  string
	bpfNode  *bpf.Node
	settings map[string]any // the entry of sluice-cni
	pods     []*testutil.Pod
}

func newLab(t *testing.T) *lab {
	t.Helper()
	testutil.RequireRoot(t)
	t.Parallel()
	dir := t.TempDir()
	l := &lab{t: t, node: testutil.NewNode(t), dir: dir, pinRoot: filepath.Join(testutil.BPFFS(t), "sluice", "v1")}
	l.settings = map[string]any{
		"type": "sluice-cni", "agentSocket": dir + "/run/agent.sock", "pinRoot": l.pinRoot, "stateDir": dir + "/state", "logLevel": "debug",
	}
	for _, d := range []string{"run", "state", "bin"} {
		l.must(os.Mkdir(filepath.Join(dir, d), 0o700))
	}
	self, err := os.Executable()
	l.must(err)
	l.must(os.Symlink(self, filepath.Join(dir, "bin", "sluice-cni")))
	l.bpfNode, err = bpf.LoadNode(l.pinRoot)
	l.must(err)
	t.Cleanup(func() { _ = l.bpfNode.Close() })
	l.agent = startAgent(t, l.settings["agentSocket"].(string), l.bpfNode)
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// detach takes a pod's programs away behind the back of all others, on the node's thread.
func (l *lab) detach(id string) {
	l.t.Helper()
	l.must(l.node.Do(func() error { return l.bpfNode.DetachPod(id) }))
}

// knows writes what the agent last knew.
func (l *lab) knows(namespaces ...string) {
	l.t.Helper()
	l.must((&nodeapi.LastKnown{Namespaces: namespaces}).Save(l.dir + "/state"))
}

// sandbox is one sandbox of a pod, as a runtime sees it.
type sandbox struct {
	containerID, namespace, name, uid string
	netns                             string
	prev                              string // prevResult, "" for none
	ifName                            string // CNI_IFNAME, "" for eth0
}

// sandbox makes a pod with a veth to the node, as if the plugins before ours had run.
func (l *lab) sandbox(namespace, name string) (*sandbox, *testutil.Pod) {
	l.t.Helper()
	pod := l.node.Pod(l.t, name)
	l.pods = append(l.pods, pod)
	s := &sandbox{containerID: "c-" + pod.Name, namespace: namespace, name: name, uid: "uid-" + pod.Name, netns: pod.Path}
	s.prev = fmt.Sprintf(`{"cniVersion":"1.1.0","interfaces":[{"name":%q},{"name":"eth0","sandbox":%q,"mtu":1500}],
		"ips":[{"interface":1,"address":"%s/32"},{"interface":1,"address":"%s/128"}],"dns":{"domain":"x"}}`,
		pod.HostIf, pod.Path, pod.Addr4, pod.Addr6)
	return s, pod
}

func (s *sandbox) args() string {
	if s.namespace == "" {
		return "IgnoreUnknown=1"
	}
	return fmt.Sprintf("IgnoreUnknown=1;K8S_POD_UID=%s;K8S_POD_INFRA_CONTAINER_ID=%s;K8S_POD_NAME=%s;K8S_POD_NAMESPACE=%s",
		s.uid, s.containerID, s.name, s.namespace)
}

// outcome is what the runtime gets from one run of the plugin.
type outcome struct {
	stdout, stderr string
	code           int
	err            types.Error // when code is not 0
}

// stdin is the configuration as libcni would hand it over. extra keys overwrite.
func (l *lab) stdin(s *sandbox, extra map[string]any) []byte {
	conf := map[string]any{"cniVersion": "1.1.0", "name": "pods"}
	for _, m := range []map[string]any{l.settings, extra} {
		for k, v := range m {
			conf[k] = v
		}
	}
	if s.prev != "" && conf["prevResult"] == nil {
		conf["prevResult"] = json.RawMessage(s.prev)
	}
	b, err := json.Marshal(conf)
	l.must(err)
	return b
}

// cni runs the plugin once, in the node's namespace.
func (l *lab) cni(verb string, s *sandbox, extra map[string]any) outcome {
	l.t.Helper()
	return l.cniTo(verb, s, l.stdin(s, extra), nil)
}

// cniTo is cni with stdin as given and, if stdout is not nil, another standard output.
func (l *lab) cniTo(verb string, s *sandbox, stdin []byte, stdout *os.File) outcome {
	l.t.Helper()
	var out, errs bytes.Buffer
	cmd := l.command(verb, s, stdin)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if stdout != nil {
		cmd.Stdout = stdout
	}
	err := l.node.Do(cmd.Run)
	o := outcome{stdout: out.String(), stderr: errs.String(), code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		l.t.Fatal(err)
	}
	if o.code != 0 && stdout == nil {
		if err := oneValue(o.stdout, &o.err); err != nil {
			l.t.Fatalf("%s: stdout is not one CNI error: %v\n%s\n%s", verb, err, o.stdout, o.stderr)
		}
	}
	return o
}

func (l *lab) command(verb string, s *sandbox, stdin []byte) *exec.Cmd {
	cmd := exec.Command(filepath.Join(l.dir, "bin", "sluice-cni"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+s.containerID, "CNI_NETNS="+s.netns,
		"CNI_IFNAME="+cmp.Or(s.ifName, "eth0"), "CNI_PATH="+l.dir+"/bin", "CNI_ARGS="+s.args())
	cmd.Stdin = bytes.NewReader(stdin)
	return cmd
}

// oneValue wants nothing but one JSON value.
func oneValue(s string, v any) error {
	d := json.NewDecoder(strings.NewReader(s))
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("more than one value: %v", err)
	}
	return nil
}

func (o outcome) wantOK(t *testing.T) outcome {
	t.Helper()
	if o.code != 0 {
		t.Fatalf("got exit %d, %+v\n%s", o.code, o.err, o.stderr)
	}
	return o
}

// wantError wants a CNI error with the code, whose message and details together contain all of words.
func (o outcome) wantError(t *testing.T, code uint, words ...string) {
	t.Helper()
	if o.code == 0 || o.err.Code != code {
		t.Errorf("got exit %d, %+v, want code %d\n%s", o.code, o.err, code, o.stderr)
	}
	for _, w := range words {
		if !strings.Contains(o.err.Error(), w) {
			t.Errorf("got  %q\nwant it to contain %q", o.err.Error(), w)
		}
	}
}

// attached returns the container ids that have pins.
func (l *lab) attached() []string {
	l.t.Helper()
	pods, err := l.bpfNode.Pods()
	l.must(err)
	var ids []string
	for _, p := range pods {
		ids = append(ids, p.ContainerID)
	}
	return ids
}

func (l *lab) wantAttached(want ...string) {
	l.t.Helper()
	if got := l.attached(); strings.Join(got, " ") != strings.Join(want, " ") {
		l.t.Errorf("attached: got %v, want %v", got, want)
	}
}

// snapshot describes all that an ADD of ours may change: the pod's links, programs, rules, routes and sysctls, the
// host ends' programs, and the pins.
func (l *lab) snapshot(pod *testutil.NS) string {
	l.t.Helper()
	var b strings.Builder
	for _, ns := range []*testutil.NS{pod, l.node.NS} {
		for _, args := range []string{"-o link", "-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"} {
			fmt.Fprintf(&b, "%s %s\n%s", ns.Name, args, settled(ns.Run(l.t, "ip", strings.Fields(args)...)))
		}
		ns.MustDo(l.t, func() error { return programs(&b) })
		fmt.Fprintf(&b, "accept_local %s", ns.Run(l.t, "cat", "/proc/sys/net/ipv4/conf/lo/accept_local", "/proc/sys/net/ipv4/conf/all/accept_local"))
	}
	l.must(filepath.WalkDir(filepath.Join(l.pinRoot, "pods"), func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		fmt.Fprintln(&b, strings.TrimPrefix(path, l.pinRoot))
		return err
	}))
	return b.String()
}

// settled drops what the kernel does in its own time: its own routes, the carrier of a link; and ip's complaint about a
// namespace that went while it looked, which is another test's.
func settled(ipOutput string) string {
	var b strings.Builder
	for line := range strings.Lines(ipOutput) {
		line, _, _ = strings.Cut(line, ": <")
		byKernel := strings.Contains(line, "proto kernel") || strings.Contains(line, "ff00:")
		if !byKernel && !strings.HasPrefix(line, "Error: Peer netns") {
			b.WriteString(strings.TrimSpace(line) + "\n")
		}
	}
	return b.String()
}

func wantSame(t *testing.T, what, got, want string) {
	t.Helper()
	if diff := gocmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// runtime is libcni with the conflist bridge, host-local, sluice-cni on the lab's node.
type runtime struct {
	*lab
	config *libcni.CNIConfig
	list   *libcni.NetworkConfigList
}

func (l *lab) runtime(version string, sluiceDir string) *runtime {
	l.t.Helper()
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":%q,"name":"pods","plugins":[
		{"type":"bridge","bridge":"cni0","isGateway":true,"ipam":{"type":"host-local","dataDir":%q,
			"ranges":[[{"subnet":"10.78.0.0/24"}],[{"subnet":"fd78::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
		%s]}`, version, l.dir+"/ipam", l.entry()))
	l.must(err)
	return &runtime{
		lab:    l,
		config: libcni.NewCNIConfigWithCacheDir([]string{chainPlugins(l.t), sluiceDir}, l.dir+"/cache", nil),
		list:   list,
	}
}

func (l *lab) entry() []byte {
	b, err := json.Marshal(l.settings)
	l.must(err)
	return b
}

func (s *sandbox) runtimeConf() *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: s.containerID, NetNS: s.netns, IfName: "eth0"}
	for pair := range strings.SplitSeq(s.args(), ";") {
		k, v, _ := strings.Cut(pair, "=")
		rt.Args = append(rt.Args, [2]string{k, v})
	}
	return rt
}

// bare is a sandbox whose namespace has nothing but lo.
func (l *lab) bare(namespace, name string) (*sandbox, *testutil.NS) {
	l.t.Helper()
	ns := testutil.NetNS(l.t, name)
	return &sandbox{containerID: "c-" + ns.Name, namespace: namespace, name: name, uid: "uid-" + ns.Name, netns: ns.Path}, ns
}

func (r *runtime) add(s *sandbox) (result types.Result, err error) {
	err = r.node.Do(func() (err error) {
		result, err = r.config.AddNetworkList(context.Background(), r.list, s.runtimeConf())
		return err
	})
	return result, err
}

func (r *runtime) del(s *sandbox) error {
	return r.node.Do(func() error { return r.config.DelNetworkList(context.Background(), r.list, s.runtimeConf()) })
}

func (r *runtime) check(s *sandbox) error {
	return r.node.Do(func() error { return r.config.CheckNetworkList(context.Background(), r.list, s.runtimeConf()) })
}
