// SPDX-License-Identifier: Apache-2.0

package nodeapi

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type handlerFunc func(context.Context, *Request, []int) (Answer, *Error)

func (f handlerFunc) Handle(ctx context.Context, r *Request, fds []int) (Answer, *Error) {
	return f(ctx, r, fds)
}

func serve(t *testing.T, h handlerFunc) Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	s, err := Listen(path, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("socket after Serve: %v, want it gone", err)
		}
	})
	return Client{Socket: path}
}

func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

var pod = &Pod{UID: "u1", Namespace: "ns", Name: "p", ContainerID: "c1", Netns: "/run/netns/p"}

func TestDescriptorsTravelBothWays(t *testing.T) {
	c := serve(t, func(_ context.Context, r *Request, fds []int) (Answer, *Error) {
		if len(fds) != 1 || r.Slots[0] != "in" {
			return Answer{}, Errorf(CodeBadRequest, "got %d descriptors, slots %v", len(fds), r.Slots)
		}
		dup, err := unix.Dup(fds[0])
		if err != nil {
			return Answer{}, Errorf(CodeInternal, "%w", err)
		}
		return Answer{Response: Response{Slots: []string{"out"}}, FDs: []int{dup}, CloseAfter: true}, nil
	})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	resp, fds, err := c.Do(timeout(t, 5*time.Second), &Request{Verb: VerbListeners, Pod: pod, Slots: []string{"in"}}, int(w.Fd()))
	if err != nil || len(fds) != 1 || len(resp.Slots) != 1 || resp.Slots[0] != "out" {
		t.Fatalf("got %+v, %v, %v", resp, fds, err)
	}
	back := os.NewFile(uintptr(fds[0]), "back")
	if _, err := back.WriteString("hi"); err != nil {
		t.Fatal(err)
	}
	_ = back.Close()
	b := make([]byte, 2)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "hi" {
		t.Fatalf("got %q, %v", b, err)
	}
}

func TestRefusalKeepsItsCode(t *testing.T) {
	c := serve(t, func(context.Context, *Request, []int) (Answer, *Error) {
		return Answer{}, Errorf(CodeTryAgain, "no ztunnel connected")
	})
	_, _, err := c.Do(timeout(t, 5*time.Second), &Request{Verb: VerbServe, Pod: pod})
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeTryAgain || err.Error() != "agent: no ztunnel connected" {
		t.Fatalf("got %v", err)
	}
}

func TestBadRequestsAreNamed(t *testing.T) {
	c := serve(t, func(context.Context, *Request, []int) (Answer, *Error) {
		t.Error("handler called")
		return Answer{}, nil
	})
	for name, tc := range map[string]struct {
		req  Request
		want string
	}{
		"unknown verb":          {Request{Verb: "dance"}, `unknown verb "dance"`},
		"no pod":                {Request{Verb: VerbServe}, "pod is missing"},
		"no container id":       {Request{Verb: VerbServe, Pod: &Pod{Netns: "/x"}}, "pod.containerID is missing"},
		"id that leaves folder": {Request{Verb: VerbRelease, Pod: &Pod{ContainerID: "../../etc"}}, "is not an id"},
		"id of dots":            {Request{Verb: VerbRelease, Pod: &Pod{ContainerID: ".."}}, "is not an id"},
		"namespace with slash":  {Request{Verb: VerbRelease, Pod: &Pod{ContainerID: "c", Namespace: "x/../../y"}}, "pod.namespace"},
		"name with slash":       {Request{Verb: VerbRelease, Pod: &Pod{ContainerID: "c", Name: "x/../../y"}}, "pod.name"},
		"interface of dots":     {Request{Verb: VerbDecide, Pod: &Pod{ContainerID: "c", Netns: "/x", Interfaces: []Interface{{Name: ".."}}}}, "not an interface name"},
		"relative netns":        {Request{Verb: VerbDecide, Pod: &Pod{ContainerID: "c", Netns: "x"}}, "not an absolute path"},
		"interface with slash":  {Request{Verb: VerbDecide, Pod: &Pod{ContainerID: "c", Netns: "/x", Interfaces: []Interface{{Name: "a/b"}}}}, "not an interface name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := c.Do(timeout(t, 5*time.Second), &tc.req)
			var e *Error
			if !errors.As(err, &e) || e.Code != CodeBadRequest || !strings.Contains(e.Message, tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestUnreachableSaysWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stream := filepath.Join(dir, "stream")
	sln, err := net.Listen("unix", stream)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sln.Close() }()
	answering := func(name string, answer []byte) string {
		path := filepath.Join(dir, name)
		ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer func() { _ = c.Close() }()
			if answer != nil {
				_, _ = c.Write(answer)
			}
			_, _ = io.Copy(io.Discard, c) // Until the caller gives up.
		}()
		return path
	}
	for name, tc := range map[string]struct{ socket, want string }{
		"missing":        {filepath.Join(dir, "missing"), "no such socket"},
		"file":           {file, "not a socket but a file"},
		"directory":      {dir, "not a socket but a directory"},
		"other kind":     {stream, "socket of another kind"},
		"hangs":          {answering("hangs", nil), "no answer in time"},
		"garbage":        {answering("garbage", []byte("\x00\x01HTTP/1.1 400")), "not the agent"},
		"other version":  {answering("version", []byte(`{"version":99}`)), "version 99, want 1"},
		"too long":       {answering("long", make([]byte, MaxMessageBytes+1)), "message too long"},
		"trailing bytes": {answering("trailing", []byte(`{"version":1}{}`)), "data after the message"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := Client{Socket: tc.socket}.Do(timeout(t, 500*time.Millisecond), &Request{Verb: VerbDecide, Pod: pod})
			var u *UnreachableError
			if !errors.As(err, &u) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.socket) {
				t.Fatalf("got %v, want an UnreachableError with %q", err, tc.want)
			}
		})
	}
}

func TestMissingPermissionIsToldAsSuch(t *testing.T) {
	err := Client{Socket: "/run/x"}.unreachable(&net.OpError{Op: "dial", Net: "unixpacket", Err: os.NewSyscallError("connect", unix.EACCES)})
	if !strings.Contains(err.Error(), "permission denied; only root") {
		t.Errorf("got %v", err)
	}
}

func TestOversizedRequestIsNotBlamedOnTheAgent(t *testing.T) {
	c := serve(t, func(context.Context, *Request, []int) (Answer, *Error) { return Answer{}, nil })
	req := &Request{Verb: VerbGC, Valid: make([]Attachment, MaxMessageBytes/20)}
	_, _, err := c.Do(timeout(t, 5*time.Second), req)
	if !errors.Is(err, ErrTooLong) || strings.Contains(err.Error(), "not the agent") {
		t.Fatalf("got %v", err)
	}
}

func TestListenRefusesToReplaceAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, nil, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "there is a file already, not a socket") {
		t.Fatalf("got %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Fatalf("file after Listen: %q, %v", b, err)
	}
}

func TestLastKnownSurvivesAndFailsClosed(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadLastKnown(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without a file: got %v, want %v", err, fs.ErrNotExist)
	}
	want := LastKnown{Namespaces: []string{"a"}}
	if err := want.Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := LoadLastKnown(dir)
	if err != nil || !got.MayBeEnrolled("a") || got.MayBeEnrolled("b") {
		t.Fatalf("got %+v, %v", got, err)
	}
	all := LastKnown{Namespaces: []string{"a"}, All: []string{"a", "b"}}
	if err := all.Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err = LoadLastKnown(dir)
	if err != nil || !got.Equal(&all) || got.Equal(&want) || !got.MayBeEnrolled("a") || got.MayBeEnrolled("b") || !got.MayBeEnrolled("c") {
		t.Fatalf("with all namespaces: got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "{}", `{"version":1}`, `{"version":2,"namespaces":[]}`, `{"version":1,"namespaces":["a"`, "null"} {
		if err := os.WriteFile(filepath.Join(dir, LastKnownFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadLastKnown(dir); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestReadyMarkerKnowsTheBoot(t *testing.T) {
	dir := t.TempDir()
	check := func(want bool) {
		t.Helper()
		if got, err := ReadySinceBoot(dir); err != nil || got != want {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
	}
	check(false)
	if err := MarkReady(dir); err != nil {
		t.Fatal(err)
	}
	check(true)
	if err := os.WriteFile(filepath.Join(dir, readyFile), []byte("another-boot\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	check(false)
}
