// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

func connected(t *testing.T) (agent, ztunnel *Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "z.sock")
	l, err := Listen(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if ztunnel, err = Dial(context.Background(), path); err != nil {
		t.Fatal(err)
	}
	if agent, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Conn{agent, ztunnel} {
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	}
	return agent, ztunnel
}

// The bytes are the protocol; another implementation's agent and ztunnel send and expect them so.
func TestWireFormat(t *testing.T) {
	for name, tc := range map[string]struct {
		m    proto.Message
		want string
	}{
		"hello": {&ZdsHello{Version: Version_V1}, "\x08\x01"},
		"add": {&WorkloadRequest{Payload: &WorkloadRequest_Add{Add: &AddWorkload{
			Uid: "u", WorkloadInfo: &WorkloadInfo{Name: "n", Namespace: "s", ServiceAccount: "a"}}}},
			"\x0a\x0e\x0a\x01u\x12\x09\x0a\x01n\x12\x01s\x1a\x01a"},
		"del has its uid in field 2": {&WorkloadRequest{Payload: &WorkloadRequest_Del{Del: &DelWorkload{Uid: "u"}}}, "\x12\x03\x12\x01u"},
		"snapshot sent":              {&WorkloadRequest{Payload: &WorkloadRequest_SnapshotSent{SnapshotSent: &SnapshotSent{}}}, "\x1a\x00"},
		"keep is field 5":            {&WorkloadRequest{Payload: &WorkloadRequest_Keep{Keep: &KeepWorkload{Uid: "u"}}}, "\x2a\x03\x0a\x01u"},
		"success":                    {&WorkloadResponse{Payload: &WorkloadResponse_Ack{Ack: &Ack{}}}, "\x0a\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := proto.Marshal(tc.m); err != nil || string(got) != tc.want {
				t.Errorf("got %x, %v, want %x", got, err, tc.want)
			}
		})
	}
}

func TestMessageArrivesWithItsDescriptor(t *testing.T) {
	agent, ztunnel := connected(t)
	want := &WorkloadRequest{Payload: &WorkloadRequest_Add{Add: &AddWorkload{Uid: "u"}}}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := agent.Send(want, int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	var got WorkloadRequest
	fds, err := ztunnel.Receive(&got)
	if err != nil || len(fds) != 1 {
		t.Fatalf("got descriptors %v, error %v", fds, err)
	}
	CloseFDs(fds)
	if d := cmp.Diff(want, &got, protocmp.Transform()); d != "" {
		t.Error(d)
	}
	_ = agent.Close()
	if _, err := ztunnel.Receive(&got); !errors.Is(err, io.EOF) {
		t.Errorf("after the peer closed: got %v, want EOF", err)
	}
}

func TestBadPacketsAreNamed(t *testing.T) {
	agent, ztunnel := connected(t)
	if err := agent.SendRaw(make([]byte, MaxMessageBytes+1)); !errors.Is(err, ErrTooLong) {
		t.Errorf("sending too much: got %v, want %v", err, ErrTooLong)
	}
	var many []int
	for range maxFDs + 1 {
		many = append(many, 0)
	}
	if err := agent.SendRaw([]byte{0x1a, 0}, many...); err != nil {
		t.Fatal(err)
	}
	if _, err := ztunnel.Receive(&WorkloadRequest{}); !errors.Is(err, ErrTooLong) {
		t.Errorf("too many descriptors: got %v, want %v", err, ErrTooLong)
	}
	if err := agent.SendRaw([]byte("GET / HTTP/1.1")); err != nil {
		t.Fatal(err)
	}
	if _, err := ztunnel.Receive(&WorkloadRequest{}); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "receive zds: malformed message") {
		t.Errorf("garbage: got %v, want %v", err, ErrMalformed)
	}
}
