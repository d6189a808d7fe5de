// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListenersThatWouldLoseConnectionsAreRefused(t *testing.T) {
	w := newWorld(t)
	pod := w.enrol(t, w.host.Pod(t, "pod"))
	other := w.host.Pod(t, "other")
	socket := func(domain, kind, proto int) (fd int) {
		pod.MustDo(t, func() (err error) {
			fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, proto)
			return err
		})
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	var mptcp net.Listener
	pod.MustDo(t, func() (err error) {
		mptcp, err = lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
		return err
	})
	defer func() { _ = mptcp.Close() }()
	plain := fdOf(t, pod.Listen(t, "tcp", "127.0.0.1:0"))
	for _, tt := range []struct {
		name string
		slot Slot
		fd   int
		want string
	}{
		{"MPTCP", SlotInbound4, fdOf(t, mptcp), "protocol is not plain TCP but 262"},
		{"UDP", SlotInbound4, socket(unix.AF_INET, unix.SOCK_DGRAM, 0), "protocol is not plain TCP but 17"},
		{"not listening", SlotInbound4, socket(unix.AF_INET, unix.SOCK_STREAM, 0), "not listening"},
		{"other family", SlotInbound6, plain, "family is not the slot's but 2"},
		{"not transparent", SlotOutbound4, plain, "not transparent: IP_TRANSPARENT 0"},
		{"not transparent, IPv6", SlotOutbound6, fdOf(t, pod.Listen(t, "tcp", "[::1]:0")), "not transparent: IPV6_TRANSPARENT 0"},
		{"other namespace", SlotInbound4, fdOf(t, other.Listen(t, "tcp", "127.0.0.1:0")), "of another network namespace"},
		{"no socket", SlotInbound4, 1 << 20, "bad file descriptor"},
		{"unknown slot", Slot(99), plain, "slot-99"},
	} {
		t.Run(tt.name, func(t *testing.T) { wantError(t, pod.bpf.SetListener(tt.slot, tt.fd), tt.want) })
	}
}

func TestListenersComeAndGo(t *testing.T) {
	w := newWorld(t)
	pod := w.enrol(t, w.host.Pod(t, "pod"))
	for slot, l := range pod.proxy.listeners {
		want, err := unix.GetsockoptUint64(fdOf(t, l), unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok, err := pod.bpf.ListenerCookie(slot); got != want || !ok || err != nil {
			t.Errorf("%v: cookie: got %d, %v, %v, want %d", slot, got, ok, err, want)
		}
	}
	_ = pod.proxy.listeners[SlotInbound4].Close()
	for range 2 {
		if err := pod.bpf.ClearListener(SlotHBONE6); err != nil {
			t.Error(err)
		}
	}
	for _, slot := range []Slot{SlotInbound4, SlotHBONE6} {
		if got, ok, err := pod.bpf.ListenerCookie(slot); got != 0 || ok || err != nil {
			t.Errorf("%v: got %d, %v, %v, want empty", slot, got, ok, err)
		}
	}
}

func TestSocketTags(t *testing.T) {
	w := newWorld(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	for _, tag := range []Tag{TagNone, TagProxy, TagNone} {
		if err := w.TagSocket(fd, tag); err != nil {
			t.Errorf("tag %v: %v", tag, err)
		}
		if got, err := w.SocketTag(fd); got != tag || err != nil {
			t.Errorf("got %v, %v, want %v", got, err, tag)
		}
	}
	wantError(t, w.TagSocket(fd, TagPass), "tag pass is not for sockets to be given")
	wantError(t, w.TagSocket(1<<20, TagProxy), "bad file descriptor")
	_, err = w.SocketTag(1 << 20)
	wantError(t, err, "bad file descriptor")
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	wantError(t, w.TagSocket(int(file.Fd()), TagProxy), "tag socket proxy: ")
}
