// SPDX-License-Identifier: Apache-2.0

package main

import (
	"embed"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
)

// Ports of the programs in the pods, and of the service in front of them.
const (
	httpPort    = 8080
	echoPort    = 7000
	iperfPort   = 5201
	servicePort = 80
	hbonePort   = 15008
)

// The service's addresses, as manifests/demo/mesh.yaml has them.
var (
	vip4 = netip.MustParseAddr("10.96.0.10")
	vip6 = netip.MustParseAddr("fd00:10:96::a")
)

//go:embed programs
var programs embed.FS

// scene is the lab with the demo's pods and programs in it.
type scene struct {
	*lab.Lab
	client, legacy, server *lab.Pod
	capture                *lab.Capture // of the wire, from before the first request

	manifests string // folder of the demo's YAML in the repository
	out       io.Writer
}

// up brings everything up to the point where the first request can be made.
func (s *scene) up() error {
	began := time.Now()
	s.say("two nodes, a wire, an agent and a ztunnel on each")
	if err := s.writePrograms(); err != nil {
		return err
	}
	if err := s.apply("mesh"); err != nil {
		return err
	}
	if err := s.Up(); err != nil {
		return err
	}
	s.say("pods through bridge/ptp, host-local, portmap and sluice-cni")
	if err := s.addPods(); err != nil {
		return err
	}
	if err := s.startPrograms(); err != nil {
		return err
	}
	s.say("up after %.1f s", time.Since(began).Seconds())
	return os.WriteFile(s.upMark(), nil, 0o644)
}

func (s *scene) say(format string, args ...any) { fmt.Fprintf(s.out, "demo: "+format+"\n", args...) }

// apply copies one of the demo's manifests into the folder that the agents watch.
func (s *scene) apply(name string) error {
	data, err := os.ReadFile(filepath.Join(s.manifests, name+".yaml"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.Manifests(), 0o755); err != nil {
		return err
	}
	return s.Write(name+".yaml", string(data))
}

// withdraw takes a manifest away again.
func (s *scene) withdraw(name string) error { return s.Remove(name + ".yaml") }

func (s *scene) addPods() error {
	for _, p := range []struct {
		pod  **lab.Pod
		node int
		spec lab.PodSpec
	}{
		{&s.server, 1, lab.PodSpec{Name: "server", Namespace: "demo", HostPort: 18080, ContainerPort: httpPort}},
		{&s.client, 0, lab.PodSpec{Name: "client", Namespace: "demo"}},
		{&s.legacy, 0, lab.PodSpec{Name: "legacy", Namespace: "legacy"}},
	} {
		var err error
		if *p.pod, err = s.Nodes[p.node].AddPod(p.spec); err != nil {
			return err
		}
		s.say("  %s on %s: %s, %s (ADD took %d ms)", (*p.pod).NS, s.Nodes[p.node].Name, (*p.pod).Addr4, (*p.pod).Addr6, (*p.pod).AddTook.Milliseconds())
	}
	return nil
}

// startPrograms starts servers, none of which knows of the mesh, and waits until they listen.
func (s *scene) startPrograms() error {
	outside := s.NS("outside")
	for _, ns := range []string{s.server.NS, outside} {
		if err := s.startNginx(ns); err != nil {
			return err
		}
	}
	for _, ns := range []string{s.server.NS, s.legacy.NS} {
		if _, err := s.Start(ns, "echo-"+ns, s.python(), s.program("echo.py"), strconv.Itoa(echoPort)); err != nil {
			return err
		}
	}
	if err := s.startIperf(s.server.NS); err != nil {
		return err
	}
	return s.waitListening(map[string][]int{
		s.server.NS: {httpPort, echoPort, iperfPort}, s.legacy.NS: {echoPort}, outside: {httpPort}})
}

// waitListening waits for servers without connecting to them.
func (s *scene) waitListening(ports map[string][]int) error {
	for ns, list := range ports {
		err := lab.Poll(10*time.Second, func() error {
			open, err := s.Listening(ns)
			for _, port := range list {
				if err == nil && !open[port] {
					err = fmt.Errorf("nobody listens on port %d", port)
				}
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("servers in %s: %w", ns, err)
		}
	}
	return nil
}

// podVerdicts reads what the programs of a pod counted.
func (s *scene) podVerdicts(n *lab.Node, p *lab.Pod) (map[bpf.Verdict]uint64, error) {
	node, err := bpf.OpenNode(n.PinRoot())
	if err != nil {
		return nil, err
	}
	defer node.Close()
	infos, err := node.Pods()
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		if info.ContainerID != p.ContainerID {
			continue
		}
		pod, err := node.Pod(info.ID)
		if err != nil {
			return nil, err
		}
		defer pod.Close()
		return pod.Verdicts()
	}
	return nil, fmt.Errorf("no pins of %s on %s", p.NS, n.Name)
}

// enrolled reports whether the pod has programs attached.
func (s *scene) enrolled(n *lab.Node, p *lab.Pod) bool {
	_, err := s.podVerdicts(n, p)
	return err == nil
}

func (s *scene) hints() string {
	server := s.Nodes[1].Pods4.Addr().Next().Next()
	return fmt.Sprintf(`
Try it (as root):
  ip netns exec %[1]s curl -i http://%[2]s/       # through the service address, in mTLS
  ip netns exec %[3]s curl -i http://%[4]s:%[5]d/   # the same server from a pod that is not in the mesh, in clear
  ip netns exec %[6]s tcpdump -ni %[7]s -A tcp        # what passes between the nodes meanwhile
  cp manifests/demo/strict.yaml %[8]s/      # from now on mTLS only: %[3]s is refused
  cp manifests/demo/deny-client.yaml %[8]s/ # from now on %[1]s is refused as well
  rm %[8]s/strict.yaml %[8]s/deny-client.yaml
  tail -f %[9]s/ztunnel-node2.log           # one line per connection, with both identities
  %[10]s status --run-dir %[11]s
make demo-down removes all of it.
`, s.NS("client"), vip4, s.NS("legacy"), server, httpPort, s.NS("node1"), lab.WireIf, s.Manifests(), s.Logs(),
		s.Bin("sluice-installer"), s.Nodes[1].RunDir())
}
