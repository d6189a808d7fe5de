// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"errors"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/internal/zds"
)

func TestAddStartsProxyAndDelStopsIt(t *testing.T) {
	f := newFixture(t)
	ns := testutil.NetNS(t, "a")
	agent := f.accept()
	wantAck(t, "snapshot", agent.snapshotSent())
	wantAck(t, "add", agent.add("u1", ns))
	if got := f.proxy("u1").pod.String(); got != "default/pod" {
		t.Errorf("pod: got %s, want default/pod", got)
	}
	wantAck(t, "add again", agent.add("u1", ns))
	wantAck(t, "del", agent.del("u1"))
	f.eventually("the proxy is stopped", func() bool { return f.proxies["u1"].stopped })
	wantAck(t, "del unknown", agent.del("nobody"))
}

func TestFailingAddIsRetriedAndNotReadyMeanwhile(t *testing.T) {
	f := newFixture(t)
	ns := testutil.NetNS(t, "a")
	agent := f.accept()
	wantAck(t, "snapshot", agent.snapshotSent())
	f.eventually("ready", func() bool { return f.ready })

	f.set(func() { f.listenErr = errors.New("no sockets today") })
	if got := agent.add("u1", ns); !strings.Contains(got, "no sockets today") {
		t.Errorf("add: got ack %q, want the cause", got)
	}
	f.eventually("not ready", func() bool { return !f.ready && f.counts == [2]int{0, 1} })
	f.set(func() { f.listenErr = nil })
	f.eventually("the retry succeeds", func() bool { return f.ready && f.counts == [2]int{1, 0} })

	f.set(func() { f.listenErr = errors.New("again") })
	other := testutil.NetNS(t, "b")
	_ = agent.add("u2", other)
	f.eventually("not ready", func() bool { return !f.ready })
	wantAck(t, "del of a pending pod", agent.del("u2"))
	f.eventually("ready again", func() bool { return f.ready })
}

func TestSnapshotStopsUnmentionedAndKeepsRunning(t *testing.T) {
	f := newFixture(t)
	gone, stays, kept := testutil.NetNS(t, "a"), testutil.NetNS(t, "b"), testutil.NetNS(t, "c")
	first := f.accept()
	wantAck(t, "add", first.add("gone", gone))
	wantAck(t, "add", first.add("stays", stays))
	wantAck(t, "add", first.add("kept", kept))
	f.set(func() {
		if f.ready {
			t.Error("ready before the snapshot was complete")
		}
	})
	wantAck(t, "snapshot", first.snapshotSent())
	f.eventually("ready", func() bool { return f.ready })
	_ = first.conn.Close()

	second := f.accept()
	f.eventually("not ready while the agent has not spoken", func() bool { return !f.ready })
	if f.proxy("gone").stopped {
		t.Error("a lost connection stopped a pod")
	}
	wantAck(t, "add", second.add("stays", stays))
	wantAck(t, "keep", second.keep("kept"))
	wantAck(t, "snapshot", second.snapshotSent())
	f.eventually("the unmentioned pod is stopped", func() bool { return f.proxies["gone"].stopped && f.ready })
	if f.proxy("stays").stopped || f.proxy("kept").stopped {
		t.Error("a pod of the snapshot was stopped")
	}
}

func TestDelInSnapshotStopsAtItsEnd(t *testing.T) {
	f := newFixture(t)
	agent := f.accept()
	wantAck(t, "add", agent.add("u1", testutil.NetNS(t, "a")))
	wantAck(t, "del", agent.del("u1"))
	wantAck(t, "snapshot", agent.snapshotSent())
	f.eventually("stopped", func() bool { return f.proxies["u1"].stopped })
}

func TestSameUIDInOtherNetnsReplaces(t *testing.T) {
	f := newFixture(t)
	agent := f.accept()
	wantAck(t, "add", agent.add("u1", testutil.NetNS(t, "a")))
	f.mu.Lock()
	old := f.proxies["u1"]
	f.mu.Unlock()
	wantAck(t, "add", agent.add("u1", testutil.NetNS(t, "b")))
	f.eventually("the old proxy drains", func() bool { return old.drained && f.proxies["u1"] != old })
}

func TestBadRequestsAreNamed(t *testing.T) {
	ns := testutil.NetNS(t, "a")
	del := &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: "u1"}}}
	for _, tc := range []struct {
		name string
		send func(a *fakeAgent) string
		want string
	}{
		{"add without fd", func(a *fakeAgent) string { return a.ask(addRequest("u1")) }, `add "u1": no control message`},
		{"add with two fds", func(a *fakeAgent) string { return a.ask(addRequest("u1"), openNetns(t, ns), openNetns(t, ns)) }, `add "u1": 2 file descriptors, want 1`},
		{"add with an fd that is no netns", func(a *fakeAgent) string { return a.ask(addRequest("u1"), 0) }, "not a network namespace"},
		{"del with fd", func(a *fakeAgent) string { return a.ask(del, openNetns(t, ns)) }, "1 file descriptors with a request that has none"},
		{"unknown request", func(a *fakeAgent) string { a.sendRaw([]byte{0x7a, 0}); return a.answer() }, "unknown request"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t)
			agent := f.accept()
			agent.t = t
			if got := tc.send(agent); !strings.Contains(got, tc.want) {
				t.Errorf("ack: got %q, want %q in it", got, tc.want)
			}
			wantAck(t, "the connection goes on", agent.snapshotSent())
		})
	}
}

func TestUnreadablePacketsAreNamedAndEndTheConnection(t *testing.T) {
	for _, tc := range []struct {
		name   string
		packet []byte
		want   string
	}{
		{"not protobuf", []byte{0xff, 0xff, 0xff}, "malformed message"},
		{"too long", make([]byte, zds.MaxMessageBytes+1), "over 1024 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t)
			agent := f.accept()
			agent.sendRaw(tc.packet)
			if got := agent.answer(); !strings.Contains(got, tc.want) {
				t.Errorf("ack: got %q, want %q in it", got, tc.want)
			}
			wantAck(t, "ztunnel comes back", f.accept().snapshotSent())
		})
	}
}

func TestProtocolErrorsEndTheClient(t *testing.T) {
	noInfo := &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{Uid: "u1"}}}
	for _, tc := range []struct {
		name string
		send func(a *fakeAgent) string
		want string
	}{
		{"add without workload info", func(a *fakeAgent) string { return a.ask(noInfo) }, "without workload info"},
		{"keep after the snapshot", func(a *fakeAgent) string { a.snapshotSent(); return a.keep("u1") }, "after the snapshot"},
		{"second snapshot", func(a *fakeAgent) string { a.snapshotSent(); return a.snapshotSent() }, "second snapshot"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t)
			if got := tc.send(f.accept()); !strings.Contains(got, tc.want) {
				t.Errorf("ack: got %q, want %q in it", got, tc.want)
			}
			err := <-f.ended
			f.ended <- err
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("Run: got %v, want %v", err, ErrProtocol)
			}
		})
	}
}
