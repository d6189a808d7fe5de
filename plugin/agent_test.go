// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// agent answers as the real one does: it decides by namespace, and serving a pod means real listening sockets in its
// namespace and in the slots. The test may put a function in the place of any verb.
type agent struct {
	t    *testing.T
	node *bpf.Node
	stop func()

	mu       sync.Mutex // guards all below
	enrolled []string
	instead  map[nodeapi.Verb]func(*nodeapi.Request) (nodeapi.Answer, *nodeapi.Error)
	calls    []nodeapi.Request
	sockets  map[string][]int // by container id
}

// startAgent listens until the test ends or stop is called. Namespace "mesh" is enrolled.
func startAgent(t *testing.T, socket string, node *bpf.Node) *agent {
	t.Helper()
	a := &agent{
		t: t, node: node, enrolled: []string{"mesh"},
		instead: map[nodeapi.Verb]func(*nodeapi.Request) (nodeapi.Answer, *nodeapi.Error){},
		sockets: map[string][]int{},
	}
	server, err := nodeapi.Listen(socket, a, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		a.stop()
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, fds := range a.sockets {
			nodeapi.CloseFDs(fds)
		}
	})
	return a
}

// Handle implements nodeapi.Handler.
func (a *agent) Handle(_ context.Context, req *nodeapi.Request, _ []int) (nodeapi.Answer, *nodeapi.Error) {
	a.mu.Lock()
	a.calls = append(a.calls, *req)
	instead := a.instead[req.Verb]
	enrolled := req.Pod != nil && slices.Contains(a.enrolled, req.Pod.Namespace)
	a.mu.Unlock()
	if instead != nil {
		return instead(req)
	}
	switch req.Verb {
	case nodeapi.VerbDecide:
		d := &nodeapi.Decision{Enrolled: enrolled, Reason: "test"}
		if enrolled {
			d.PinID = req.Pod.UID
		}
		return nodeapi.Answer{Response: nodeapi.Response{Decision: d}}, nil
	case nodeapi.VerbServe:
		if err := a.serve(req.Pod); err != nil {
			return nodeapi.Answer{}, nodeapi.Errorf(nodeapi.CodeInternal, "%w", err)
		}
	case nodeapi.VerbRelease:
		a.release(req.Pod.ContainerID)
	}
	return nodeapi.Answer{}, nil
}

func (a *agent) put(verb nodeapi.Verb, f func(*nodeapi.Request) (nodeapi.Answer, *nodeapi.Error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.instead[verb] = f
}

func (a *agent) refuse(verb nodeapi.Verb, code nodeapi.Code, msg string) {
	a.put(verb, func(*nodeapi.Request) (nodeapi.Answer, *nodeapi.Error) {
		return nodeapi.Answer{}, nodeapi.Errorf(code, "%s", msg)
	})
}

// verbs returns what was asked so far, in order, and forgets it.
func (a *agent) verbs() []nodeapi.Verb {
	var verbs []nodeapi.Verb
	for _, r := range a.requests() {
		verbs = append(verbs, r.Verb)
	}
	return verbs
}

func (a *agent) requests() []nodeapi.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	calls := a.calls
	a.calls = nil
	return calls
}

func (a *agent) wantVerbs(want ...nodeapi.Verb) {
	a.t.Helper()
	if got := a.verbs(); !slices.Equal(got, want) {
		a.t.Errorf("agent was asked %v, want %v", got, want)
	}
}

func (a *agent) release(containerID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// A command that another test just starts may hold copies for a moment: closing alone does not end the sockets.
	for _, fd := range a.sockets[containerID] {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	}
	nodeapi.CloseFDs(a.sockets[containerID])
	delete(a.sockets, containerID)
}

// listenerAddr is where the listeners of a pod are, by slot.
var listenerAddr = map[bpf.Slot]string{
	bpf.SlotOutbound4: "203.0.113.1:15001", bpf.SlotOutbound6: "[100::1]:15001",
	bpf.SlotInbound4: "203.0.113.1:15006", bpf.SlotInbound6: "[100::1]:15006",
	bpf.SlotHBONE4: "203.0.113.1:15008", bpf.SlotHBONE6: "[100::1]:15008",
}

// serve finds the pod by its pins, which must be there by now, and fills its slots.
func (a *agent) serve(pod *nodeapi.Pod) error {
	pins, err := a.node.Pod(pod.UID)
	if err != nil {
		return err
	}
	defer func() { _ = pins.Close() }()
	ns, err := netns.Open(pod.Netns)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	a.release(pod.ContainerID) // served again: new sockets take the place of the old ones
	for slot, addr := range listenerAddr {
		var fd int
		if err := ns.Do(func() (err error) { fd, err = listen(netip.MustParseAddrPort(addr)); return err }); err != nil {
			return fmt.Errorf("%s: %w", slot, err)
		}
		a.mu.Lock()
		a.sockets[pod.ContainerID] = append(a.sockets[pod.ContainerID], fd)
		a.mu.Unlock()
		if err := pins.SetListener(slot, fd); err != nil {
			return fmt.Errorf("%s: %w", slot, err)
		}
	}
	return nil
}

func listen(addr netip.AddrPort) (int, error) {
	var family, transparent, freebind, level int
	var sa unix.Sockaddr
	if addr.Addr().Is4() {
		family, transparent, freebind, level = unix.AF_INET, unix.IP_TRANSPARENT, unix.IP_FREEBIND, unix.SOL_IP
		sa = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	} else {
		family, transparent, freebind, level = unix.AF_INET6, unix.IPV6_TRANSPARENT, unix.IPV6_FREEBIND, unix.SOL_IPV6
		sa = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, level, transparent, 1), unix.SetsockoptInt(fd, level, freebind, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if err == nil {
		err = errors.Join(unix.Bind(fd, sa), unix.Listen(fd, 16))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listen %s: %w", addr, err)
	}
	return fd, nil
}
