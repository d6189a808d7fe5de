// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// Ports of the servers in the pods.
const (
	httpPort  = 8080
	iperfPort = 5201
	plainPort = 5202 // a second iperf3: one serves one client, and haproxy keeps the first a moment longer
	idlePort  = 7000 // echoes
)

// bench is the lab with servers in it.
//
//	client, server     enrolled; one on each node
//	pclient, pserver   the same programs, not enrolled, and in each a haproxy and an nginx as proxies
//	outside            a host that is no pod
type bench struct {
	*lab.Lab
	*config
	ctx    context.Context
	report *report
	files  int // that each process may have open

	client, server, pclient, pserver *lab.Pod

	fresh map[string]int // bytes resident in a way's proxies before any traffic
}

// namespaces of the pods: who is in the mesh.
const manifest = `apiVersion: v1
kind: Namespace
metadata:
  name: mesh
  labels: {istio.io/dataplane-mode: ambient}
---
apiVersion: v1
kind: Namespace
metadata:
  name: plain
`

const nginxConf = `daemon off;
user root;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log stderr;
events { worker_connections 8192; }
http {
    access_log off;
    client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
    uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
    keepalive_requests 100000000;
    server {
        listen %[2]d backlog=4096;
        location / { default_type text/plain; return 200 "%[3]s"; }
    }
}
`

// pageBytes is the size of the page that requests fetch.
const pageBytes = 512

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.report.out, "bench: "+format+"\n", args...)
}

func (b *bench) up() error {
	b.say("two nodes, an agent and a ztunnel on each, pods, servers, pairs of proxies")
	if err := os.MkdirAll(b.Manifests(), 0o755); err != nil {
		return err
	}
	if err := b.Write("bench.yaml", manifest); err != nil {
		return err
	}
	if err := b.Up(); err != nil {
		return err
	}
	for _, p := range []struct {
		pod        **lab.Pod
		node       int
		name, home string
	}{
		{&b.server, 1, "server", "mesh"}, {&b.client, 0, "client", "mesh"},
		{&b.pserver, 1, "pserver", "plain"}, {&b.pclient, 0, "pclient", "plain"},
	} {
		var err error
		if *p.pod, err = b.Nodes[p.node].AddPod(lab.PodSpec{Name: p.name, Namespace: p.home}); err != nil {
			return err
		}
	}
	for _, ns := range []string{b.server.NS, b.pserver.NS, b.NS("outside")} {
		if err := b.startServers(ns); err != nil {
			return err
		}
	}
	if err := b.startPairs(); err != nil {
		return err
	}
	return b.rememberFresh()
}

func (b *bench) startServers(ns string) error {
	home := filepath.Join(b.Dir, "nginx-"+ns)
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	conf := filepath.Join(home, "nginx.conf")
	page := strings.Repeat("x", pageBytes)
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, home, httpPort, page), 0o644); err != nil {
		return err
	}
	if _, err := b.Start(ns, "nginx-"+ns, sbin("nginx"), "-p", home, "-c", conf, "-e", "stderr"); err != nil {
		return err
	}
	for _, port := range []int{iperfPort, plainPort} {
		if _, err := b.Start(ns, fmt.Sprintf("iperf3-%d-%s", port, ns), "iperf3", "-s", "-p", strconv.Itoa(port)); err != nil {
			return err
		}
	}
	return b.waitListening(ns, httpPort, iperfPort, plainPort)
}

// waitListening waits for servers without connecting to them.
func (b *bench) waitListening(ns string, ports ...int) error {
	return lab.Poll(10*time.Second, func() error {
		open, err := b.Listening(ns)
		for _, port := range ports {
			if err == nil && !open[port] {
				err = fmt.Errorf("nobody listens on port %d in %s", port, ns)
			}
		}
		return err
	})
}

// sbin finds a command that may not be on a user's PATH.
func sbin(name string) string {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	return name
}

// lastWords is the end of every log, for a run that failed.
func (b *bench) lastWords() string {
	var all strings.Builder
	logs, _ := filepath.Glob(filepath.Join(b.Logs(), "*.log"))
	for _, path := range logs {
		data, _ := os.ReadFile(path)
		if lines := strings.Split(strings.TrimSpace(string(data)), "\n"); len(data) > 0 {
			fmt.Fprintf(&all, "--- %s\n%s\n", filepath.Base(path), strings.Join(lines[max(0, len(lines)-5):], "\n"))
		}
	}
	return all.String()
}
