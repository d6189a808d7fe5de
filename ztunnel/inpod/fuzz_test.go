// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-mesh/sluice/internal/zds"
)

// idleProxy is a Proxy and an Observer that has nothing to do.
type idleProxy struct{}

func (idleProxy) Replace(*Listeners)    {}
func (idleProxy) Drain(context.Context) {}
func (idleProxy) Stop()                 {}
func (idleProxy) Counts(int, int)       {}
func (idleProxy) Started()              {}
func (idleProxy) Stopped()              {}

// packet is one of the agent's in a fuzzed session: how many descriptors, how many bytes, the bytes.
func packet(fds int, b []byte) []byte { return append([]byte{byte(fds), byte(len(b))}, b...) }

func request(f *testing.F, m *zds.WorkloadRequest) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// FuzzSession: whatever an agent sends, with whatever descriptors, each request gets one answer or ends the connection, and
// no descriptor is left when it is over.
func FuzzSession(f *testing.F) {
	add := request(f, &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{
		Uid: "u", WorkloadInfo: &zds.WorkloadInfo{Name: "n", Namespace: "s", ServiceAccount: "a"}}}})
	bare := request(f, &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{Uid: "u"}}})
	keep := request(f, &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Keep{Keep: &zds.KeepWorkload{Uid: "u"}}})
	del := request(f, &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: "u"}}})
	sent := request(f, &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}})
	for _, packets := range [][][]byte{
		{packet(1, add), packet(0, sent), packet(0, del)}, {packet(0, add)}, {packet(3, add)}, {packet(1, bare)},
		{packet(0, keep), packet(2, sent), packet(0, sent), packet(0, sent)}, {packet(0, sent), packet(0, keep)},
		{packet(1, []byte("GET / HTTP/1.1"))}, {packet(1, nil)}, {packet(133, add)},
	} {
		var script []byte
		for _, p := range packets {
			script = append(script, p...)
		}
		f.Add(script)
	}
	log := slog.New(slog.DiscardHandler)
	path := filepath.Join(f.TempDir(), "z.sock")
	agents, err := zds.Listen(path, log)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = agents.Close() })
	f.Fuzz(func(t *testing.T, script []byte) {
		before := namespacesHeld(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		m := &Manager{Sockets: &Sockets{}, Observer: idleProxy{}, Log: log,
			Listen: func(context.Context, *Pod, *Listeners) (*Listeners, error) { return &Listeners{}, nil },
			Start:  func(*Pod, *Listeners) Proxy { return idleProxy{} }}
		c := &Client{Manager: m, Log: log, Ready: func(bool) {}, RetryInterval: time.Hour}
		conn, err := zds.Dial(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		agent, err := agents.Accept()
		if err != nil {
			t.Fatal(err)
		}
		over := make(chan struct{})
		go func() {
			defer close(over)
			_, _ = c.session(ctx, conn)
		}()
		play(t, agent, script)
		_ = agent.Close()
		<-over
		m.Drain(ctx)
		if after := namespacesHeld(t); after > before { // other tests' may have been closed meanwhile
			t.Errorf("%d descriptors of namespaces are open, want at most %d", after, before)
		}
	})
}

// play sends the packets of script and takes the answer to each, until one ends the connection.
func play(t *testing.T, agent *zds.Conn, script []byte) {
	if err := agent.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Receive(&zds.ZdsHello{}); err != nil {
		t.Fatalf("no hello: %v", err)
	}
	for len(script) >= 2 {
		n := min(int(script[1]), len(script)-2)
		path := "/proc/thread-self/ns/net"
		if script[0] >= 128 {
			path = "/proc/thread-self/ns/uts" // no namespace of a network
		}
		fds := openAll(t, path, int(script[0])%12) // above what a packet may bring, too
		err := agent.SendRaw(script[2:2+n], fds...)
		zds.CloseFDs(fds)
		if err != nil {
			return
		}
		script = script[2+n:]
		var answer zds.WorkloadResponse
		if _, err := agent.Receive(&answer); err != nil {
			if os.IsTimeout(err) || strings.Contains(err.Error(), "malformed") {
				t.Fatalf("neither an answer nor an end: %v", err)
			}
			return
		}
		if answer.GetAck() == nil {
			t.Fatalf("answer is no ack: %v", &answer)
		}
	}
}

func openAll(t *testing.T, path string, n int) (fds []int) {
	for range n {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// namespacesHeld counts this process's descriptors of namespaces.
func namespacesHeld(t *testing.T) (n int) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && (strings.HasPrefix(to, "net:") || strings.HasPrefix(to, "uts:")) {
			n++
		}
	}
	return n
}
