// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

var allSlots = []string{"outbound4", "inbound4", "hbone4"}

// handingAgent answers listeners requests with what hand returns, and keeps what it was offered.
type handingAgent struct {
	mu      sync.Mutex
	slots   []string
	fds     []int
	offered []string
}

func (a *handingAgent) Handle(_ context.Context, req *nodeapi.Request, _ []int) (nodeapi.Answer, *nodeapi.Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.offered = slices.Sorted(slices.Values(req.Slots))
	return nodeapi.Answer{Response: nodeapi.Response{Slots: a.slots}, FDs: a.fds}, nil
}

func (a *handingAgent) wasOffered() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.offered
}

func (a *handingAgent) serve(t *testing.T) nodeapi.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	server, err := nodeapi.Listen(path, a, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return nodeapi.Client{Socket: path}
}

// listening returns duplicates of n fresh listening sockets.
func listening(t *testing.T, n int) []int {
	t.Helper()
	var fds []int
	for range n {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		fd, err := dup(l.(*net.TCPListener))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		fds = append(fds, fd)
	}
	return fds
}

func TestAgentHandsListenersOver(t *testing.T) {
	agent := &handingAgent{slots: allSlots, fds: listening(t, 3)}
	var tagged atomic.Int32
	listen := AskAgent(agent.serve(t), func(int) error { tagged.Add(1); return nil })
	pod := &Pod{Info: Info{UID: "u1"}}
	first, err := listen(t.Context(), pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if len(agent.wasOffered()) != 0 || tagged.Load() != 3 || !first.Shared {
		t.Errorf("offered %q, tagged %d, shared %v; want nothing, 3, true", agent.wasOffered(), tagged.Load(), first.Shared)
	}
	again, err := listen(t.Context(), pod, first)
	if err != nil || again != first {
		t.Errorf("the same sockets again: got %p, %v, want what is held", again, err)
	}
	if got, want := agent.wasOffered(), []string{"hbone4", "inbound4", "outbound4"}; !slices.Equal(got, want) {
		t.Errorf("offered %q, want %q", got, want)
	}
	agent.mu.Lock()
	agent.fds = listening(t, 3)
	agent.mu.Unlock()
	other, err := listen(t.Context(), pod, first)
	if err != nil || other == first {
		t.Fatalf("other sockets: got what is held, %v", err)
	}
	other.Close()
}

func TestWrongListenersAreRefused(t *testing.T) {
	files := func(t *testing.T) []int {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(p[0]); _ = unix.Close(p[1]) })
		return []int{p[0], p[1], p[0]}
	}
	for _, tc := range []struct {
		name  string
		slots []string
		fds   func(t *testing.T) []int
		want  string
	}{
		{"no HBONE", []string{"outbound4", "inbound4"}, func(t *testing.T) []int { return listening(t, 2) }, "need outbound, inbound and hbone"},
		{"more names than sockets", allSlots, func(t *testing.T) []int { return listening(t, 2) }, "3 names for 2 descriptors"},
		{"unknown slot", []string{"outbound4", "inbound4", "dns4"}, func(t *testing.T) []int { return listening(t, 3) }, "dns4: unknown slot"},
		{"not sockets", allSlots, files, "outbound4: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			agent := &handingAgent{slots: tc.slots, fds: tc.fds(t)}
			l, err := AskAgent(agent.serve(t), func(int) error { return nil })(t.Context(), &Pod{Info: Info{UID: "u1"}}, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, %v, want an error with %q", l, err, tc.want)
			}
		})
	}
}
