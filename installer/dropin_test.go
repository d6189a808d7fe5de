// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-mesh/sluice/installer/cniconf"
)

// said is a runtime that says what it is told to.
type said struct {
	runtime.UnimplementedRuntimeServiceServer
	mu       sync.Mutex
	version  string
	conf     string // its folder of configuration
	bin      string
	plugins  []string // its chain
	statuses int      // how often it was asked
	stop     func()
}

func (s *said) change(f func(*said)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *said) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.statuses
}

func (s *said) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &runtime.VersionResponse{RuntimeName: "said", RuntimeVersion: s.version}, nil
}

func (s *said) Status(context.Context, *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.statuses++
	type object map[string]any
	var chain []object
	for _, kind := range s.plugins {
		chain = append(chain, object{"Network": object{"type": kind}})
	}
	text, err := json.Marshal(object{
		"PluginDirs": []string{s.bin}, "PluginConfDir": s.conf,
		"Networks": []object{{"IFName": "eth0", "Config": object{"Plugins": chain}}},
	})
	return &runtime.StatusResponse{Info: map[string]string{"cniconfig": string(text)}}, err
}

// serve has it listen at one of the usual sockets below root, whose folder is there.
func (s *said) serve(t *testing.T, root, socket string) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(root, socket))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtime.RegisterRuntimeServiceServer(server, s)
	go func() { _ = server.Serve(l) }()
	s.stop = server.Stop
	t.Cleanup(server.Stop)
}

const containerd = "run/containerd/containerd.sock"

// dropInNode is a node with a runtime that has only ptp in its chain.
func dropInNode(t *testing.T) (*cniConfig, *said) {
	t.Helper()
	c := rooted(t, map[string]string{
		"etc/cni/net.d/10-net.conflist": keptConf, "opt/cni/bin/ptp": "", "plugin/sluice-cni": "#!/bin/false\n", "run/containerd/keep": "",
	})
	c.Plugin, c.Mode = filepath.Join(c.HostRoot, "plugin/sluice-cni"), modeDropIn
	s := &said{version: "1", conf: "/etc/cni/net.d", bin: "/opt/cni/bin", plugins: []string{"ptp"}}
	s.serve(t, c.HostRoot, containerd)
	return c, s
}

// A file that an earlier agent left says nothing of the runtime.
func TestDropInIsInPlaceOnlyOnceTheRuntimeReadsIt(t *testing.T) {
	c, s := dropInNode(t)
	log := slog.New(slog.DiscardHandler)
	install := func() (*places, error) {
		t.Helper()
		at, err := c.locate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.installInto(t.Context(), at, &paths{}, log)
		return at, err
	}
	for i := range 2 {
		if _, err := install(); err == nil || !strings.Contains(err.Error(), "its chain is [ptp]") {
			t.Errorf("start %d: got %v, want that the runtime does not have the plugin", i+1, err)
		}
	}
	s.change(func(s *said) { s.plugins = []string{"ptp", cniconf.PluginType} })
	at, err := install()
	if err != nil {
		t.Fatalf("a runtime that has the plugin: %v", err)
	}
	before := s.asked()
	if _, err := c.installInto(t.Context(), at, &paths{}, log); err != nil {
		t.Error(err)
	}
	if got := s.asked(); got != before {
		t.Errorf("asked %d times for what was seen already", got-before)
	}
}

// An agent that ended for a runtime that reads late would leave the node without one.
func TestKeeperWaitsForARuntimeThatReadsLate(t *testing.T) {
	c, s := dropInNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	log := &output{}
	installed, ended := make(chan struct{}), make(chan error, 1)
	k := newKeeper(c, &paths{}, slog.New(slog.NewTextHandler(log, nil)), func(bool) {})
	go func() { ended <- k.run(ctx, installed) }()
	waitLog(t, log, errNotLoaded.Error())
	s.change(func(s *said) { s.plugins = []string{"ptp", cniconf.PluginType} })
	select {
	case <-installed:
	case err := <-ended:
		t.Fatalf("the keeper ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("not installed once the runtime has read the entry")
	}
	cancel()
	<-ended
}
