// SPDX-License-Identifier: Apache-2.0

package ztunnels

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/zds"
)

func newServer(t *testing.T, timeout time.Duration) *Server {
	t.Helper()
	s, err := Listen(Config{
		Path:    filepath.Join(t.TempDir(), "ztunnel.sock"),
		Timeout: timeout,
		Logger:  slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// currentNS stays open: pods that a test leaves behind are announced until its server has ended.
var currentNS = sync.OnceValues(netns.Current)

func pod(t *testing.T, uid string) Pod {
	t.Helper()
	ns, err := currentNS()
	if err != nil {
		t.Fatal(err)
	}
	return Pod{UID: uid, Namespace: "ns", Name: "pod-" + uid, ServiceAccount: "sa-" + uid, Netns: ns}
}

// fake is a ztunnel whose every move the test decides.
type fake struct {
	t    *testing.T
	conn *zds.Conn
}

func dial(t *testing.T, s *Server) *fake {
	t.Helper()
	c, err := zds.Dial(t.Context(), s.cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &fake{t, c}
}

func (f *fake) hello() *fake {
	f.t.Helper()
	if err := f.conn.Send(&zds.ZdsHello{Version: zds.Version_V1}); err != nil {
		f.t.Fatal(err)
	}
	return f
}

// next receives one request and describes it: "add u1", "del u1", "snapshot".
func (f *fake) next() string {
	f.t.Helper()
	if err := f.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		f.t.Fatal(err)
	}
	var r zds.WorkloadRequest
	fds, err := f.conn.Receive(&r)
	if err != nil {
		return "error: " + err.Error()
	}
	defer zds.CloseFDs(fds)
	switch p := r.Payload.(type) {
	case *zds.WorkloadRequest_Add:
		if len(fds) != 1 {
			f.t.Errorf("add brought %d descriptors, want 1", len(fds))
		}
		if p.Add.WorkloadInfo == nil || p.Add.WorkloadInfo.Name != "pod-"+p.Add.Uid || p.Add.WorkloadInfo.Namespace != "ns" {
			f.t.Errorf("add has workload info %v", p.Add.WorkloadInfo)
		}
		return "add " + p.Add.Uid
	case *zds.WorkloadRequest_Del:
		return "del " + p.Del.Uid
	case *zds.WorkloadRequest_SnapshotSent:
		return "snapshot"
	}
	return "unknown"
}

func (f *fake) ack(text string) {
	f.t.Helper()
	err := f.conn.Send(&zds.WorkloadResponse{Payload: &zds.WorkloadResponse_Ack{Ack: &zds.Ack{Error: text}}})
	if err != nil {
		f.t.Error(err)
	}
}

// expect receives and acks requests in order.
func (f *fake) expect(want ...string) *fake {
	f.t.Helper()
	for _, w := range want {
		if got := f.next(); got != w {
			f.t.Fatalf("request: got %q, want %q", got, w)
		}
		f.ack("")
	}
	return f
}

func waitProgress(t *testing.T, s *Server, p Pod, want Progress) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); s.Progress(p) != want; {
		if time.Now().After(end) {
			t.Fatalf("progress of %s: got %d, want %d", p.UID, s.Progress(p), want)
		}
		time.Sleep(time.Millisecond) // between two looks; the server tells nobody
	}
}

func (f *fake) expectEOF() {
	f.t.Helper()
	if got := f.next(); !strings.HasPrefix(got, "error: EOF") && !strings.Contains(got, "reset") {
		f.t.Fatalf("connection: got %q, want it closed", got)
	}
}

func waitConnected(t *testing.T, s *Server, n int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); s.Connected() != n; {
		if time.Now().After(end) {
			t.Fatalf("connected: got %d, want %d", s.Connected(), n)
		}
		time.Sleep(time.Millisecond) // between two looks; the server tells nobody
	}
}

func inBackground(fn func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	return done
}

func TestSnapshotIsAckedOneByOneThenSent(t *testing.T) {
	s := newServer(t, 0)
	s.Put(pod(t, "u1"))
	s.Put(pod(t, "u2"))
	f := dial(t, s).hello()
	if got := f.next(); got != "add u1" {
		t.Fatalf("first request: got %q", got)
	}
	// Nothing more may come before the ack.
	if err := f.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var r zds.WorkloadRequest
	if _, err := f.conn.Receive(&r); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("second request before the ack: got %v, %v", &r, err)
	}
	f.ack("")
	f.expect("add u2", "snapshot")
	if got := s.PIDs(); len(got) != 1 || got[0] != os.Getpid() {
		t.Errorf("ztunnel's process: got %v, want %d", got, os.Getpid())
	}
}

func TestNoHelloIsDropped(t *testing.T) {
	s := newServer(t, 50*time.Millisecond)
	dial(t, s).expectEOF()
	if n := s.Connected(); n != 0 {
		t.Errorf("connected: got %d, want 0", n)
	}
}

func TestAddWithNobodyConnected(t *testing.T) {
	s := newServer(t, 0)
	err := s.Add(t.Context(), pod(t, "u1"))
	if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "no ztunnel connected on this node") {
		t.Errorf("Add: got %v, want ErrNone", err)
	}
	dial(t, s).hello().expect("snapshot")
}

func TestAddIsDoneWhenAcked(t *testing.T) {
	s := newServer(t, 0)
	f := dial(t, s).hello().expect("snapshot")
	done := inBackground(func() error { return s.Add(t.Context(), pod(t, "u1")) })
	if got := f.next(); got != "add u1" {
		t.Fatalf("got %q", got)
	}
	select {
	case err := <-done:
		t.Fatalf("Add returned %v before the ack", err)
	default:
	}
	f.ack("")
	if err := <-done; err != nil {
		t.Errorf("Add: %v", err)
	}
}

func TestRefusedAddIsTakenBack(t *testing.T) {
	s := newServer(t, 0)
	f := dial(t, s).hello().expect("snapshot")
	done := inBackground(func() error { return s.Add(t.Context(), pod(t, "u1")) })
	if got := f.next(); got != "add u1" {
		t.Fatalf("got %q", got)
	}
	f.ack("bind: address in use")
	err := <-done
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "bind: address in use") {
		t.Errorf("Add: got %v, want ErrRefused with ztunnel's words", err)
	}
	f.expect("del u1")
	dial(t, s).hello().expect("snapshot")
}

func TestRefusalInSnapshotKeepsTheConnection(t *testing.T) {
	s := newServer(t, 0)
	s.Put(pod(t, "u1"))
	f := dial(t, s).hello()
	f.next()
	f.ack("no such device")
	f.expect("snapshot")
}

func TestConnectionDyingMidSnapshotLeavesOthersAlone(t *testing.T) {
	s := newServer(t, 0)
	s.Put(pod(t, "u1"))
	first := dial(t, s).hello().expect("add u1", "snapshot")
	second := dial(t, s).hello()
	if got := second.next(); got != "add u1" {
		t.Fatalf("got %q", got)
	}
	waitConnected(t, s, 2)
	_ = second.conn.Close()
	waitConnected(t, s, 1)
	done := inBackground(func() error { return s.Add(t.Context(), pod(t, "u2")) })
	first.expect("add u2")
	if err := <-done; err != nil {
		t.Errorf("Add: %v", err)
	}
}

func TestNewestGetsAddsAllGetDels(t *testing.T) {
	s := newServer(t, 0)
	first := dial(t, s).hello().expect("snapshot")
	second := dial(t, s).hello().expect("snapshot")
	done := inBackground(func() error { return s.Add(t.Context(), pod(t, "u1")) })
	second.expect("add u1")
	if err := <-done; err != nil {
		t.Fatalf("Add: %v", err)
	}
	done = inBackground(func() error { return s.Remove(t.Context(), "u1") })
	first.expect("del u1") // No "add u1" before it.
	second.expect("del u1")
	if err := <-done; err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func TestNewestLeavesPreviousResumes(t *testing.T) {
	s := newServer(t, 0)
	first := dial(t, s).hello().expect("snapshot")
	second := dial(t, s).hello().expect("snapshot")
	done := inBackground(func() error { return s.Add(t.Context(), pod(t, "u1")) })
	if got := second.next(); got != "add u1" {
		t.Fatalf("got %q", got)
	}
	_ = second.conn.Close()          // Without an answer: the same Add must go to the other.
	first.expect("add u1", "add u1") // To catch up, and for Add.
	if err := <-done; err != nil {
		t.Errorf("Add: %v", err)
	}
}

func TestNewestLeavesPreviousCatchesUp(t *testing.T) {
	s := newServer(t, 0)
	first := dial(t, s).hello().expect("snapshot")
	old := pod(t, "old")
	done := inBackground(func() error { return s.Add(t.Context(), old) })
	first.expect("add old")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	second := dial(t, s).hello().expect("add old", "snapshot")
	fresh, moved := pod(t, "fresh"), old
	moved.ServiceAccount = "moved"
	for _, p := range []Pod{fresh, moved} {
		done := inBackground(func() error { return s.Update(t.Context(), p) })
		second.expect("add " + p.UID)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := s.Progress(p); got != Served {
			t.Errorf("progress of %s: got %d, want served", p.UID, got)
		}
	}
	_ = second.conn.Close()
	waitConnected(t, s, 1)
	if got := s.Progress(fresh); got != Underway {
		t.Errorf("progress with the one before: got %d, want underway", got)
	}
	first.expect("add fresh", "add old")
	waitProgress(t, s, fresh, Served)
	waitProgress(t, s, moved, Served)
	if got := s.Progress(old); got != Unserved {
		t.Errorf("progress of the pod as it was: got %d, want unserved", got)
	}
}

func TestRefusedUpdateTakesNothingBack(t *testing.T) {
	s := newServer(t, 0)
	z := dial(t, s).hello().expect("snapshot")
	p := pod(t, "u1")
	done := inBackground(func() error { return s.Add(t.Context(), p) })
	z.expect("add u1")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.ServiceAccount = "other"
	done = inBackground(func() error { return s.Update(t.Context(), p) })
	if got := z.next(); got != "add u1" {
		t.Fatalf("got %q", got)
	}
	z.ack("no certificate")
	if err := <-done; !errors.Is(err, ErrRefused) {
		t.Errorf("Update: got %v, want a refusal", err)
	}
	if got := s.Progress(p); got != Unserved {
		t.Errorf("progress: got %d, want unserved", got)
	}
	_ = z.conn.Close()
	waitConnected(t, s, 0)
	dial(t, s).hello().expect("add u1", "snapshot") // No "del u1" came, and the pod is still on the list.
}

func TestRemoveWithNobodyConnectedReturns(t *testing.T) {
	s := newServer(t, 0)
	s.Put(pod(t, "u1"))
	if err := s.Remove(t.Context(), "u1"); err != nil {
		t.Errorf("Remove: %v", err)
	}
	dial(t, s).hello().expect("snapshot")
}

func TestLateAckDropsTheConnection(t *testing.T) {
	s := newServer(t, 50*time.Millisecond)
	f := dial(t, s).hello().expect("snapshot")
	err := s.Add(t.Context(), pod(t, "u1"))
	if !errors.Is(err, ErrNone) {
		t.Errorf("Add: got %v, want ErrNone once the silent ztunnel is dropped", err)
	}
	if got := f.next(); got != "add u1" {
		t.Errorf("got %q", got)
	}
	f.expectEOF()
	waitConnected(t, s, 0)
}

func TestUnaskedSpeechDropsTheConnection(t *testing.T) {
	s := newServer(t, 0)
	f := dial(t, s).hello().expect("snapshot")
	f.ack("")
	f.expectEOF()
	waitConnected(t, s, 0)
}

func TestGarbageAckDropsTheConnection(t *testing.T) {
	s := newServer(t, 0)
	f := dial(t, s).hello()
	if got := f.next(); got != "snapshot" {
		t.Fatalf("got %q", got)
	}
	if err := f.conn.SendRaw([]byte("\xff\xff\xff")); err != nil {
		t.Fatal(err)
	}
	f.expectEOF()
	waitConnected(t, s, 0)
}

func TestTooLongAckDropsTheConnection(t *testing.T) {
	s := newServer(t, 0)
	f := dial(t, s).hello().expect("snapshot")
	done := inBackground(func() error { return s.Add(t.Context(), pod(t, "u1")) })
	f.next()
	// SendRaw refuses what is too long, so get a truncated packet by too many descriptors.
	var fds []int
	for range 20 {
		fds = append(fds, int(os.Stderr.Fd()))
	}
	if err := f.conn.SendRaw([]byte("\x0a\x00"), fds...); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrNone) {
		t.Errorf("Add: got %v, want ErrNone", err)
	}
	f.expectEOF()
}

func TestIdleDisconnectIsNoticed(t *testing.T) {
	s := newServer(t, 0)
	f := dial(t, s).hello().expect("snapshot")
	waitConnected(t, s, 1)
	if d := s.Down(); d != 0 {
		t.Errorf("Down: got %v, want 0", d)
	}
	_ = f.conn.Close()
	waitConnected(t, s, 0)
	if d := s.Down(); d <= 0 {
		t.Errorf("Down: got %v, want more than 0", d)
	}
}

func TestAddGivesUpWithItsContext(t *testing.T) {
	s := newServer(t, 0)
	f := dial(t, s).hello().expect("snapshot")
	ctx, cancel := context.WithCancel(t.Context())
	done := inBackground(func() error { return s.Add(ctx, pod(t, "u1")) })
	if got := f.next(); got != "add u1" {
		t.Fatalf("got %q", got)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Add: got %v, want context.Canceled", err)
	}
	f.ack("") // In time for the session, so it stays, and the pod is taken back.
	f.expect("del u1")
}

func TestDescriptorsAreNotLeaked(t *testing.T) {
	s := newServer(t, 0)
	p := pod(t, "u1")
	f := dial(t, s).hello().expect("snapshot")
	before := openFDs(t)
	for range 20 {
		done := inBackground(func() error {
			if err := s.Add(t.Context(), p); err != nil {
				return err
			}
			return s.Remove(t.Context(), p.UID)
		})
		f.expect("add u1", "del u1")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if after := openFDs(t); after > before {
		t.Errorf("descriptors: %d before, %d after", before, after)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestRandomUpdatesReachTheNewestZtunnel lets pods come and go at once; in the end ztunnel must serve exactly those left.
func TestRandomUpdatesReachTheNewestZtunnel(t *testing.T) {
	s := newServer(t, 0)
	stay := dial(t, s).hello()
	have := make(chan []string, 1)
	go func() { have <- stay.serveUntil("u-last") }()
	waitConnected(t, s, 1)
	pods := make([]Pod, 8)
	for i := range pods {
		pods[i] = pod(t, "u"+string(rune('a'+i)))
	}
	errs := make(chan error, len(pods))
	for i, p := range pods {
		go func() {
			for range 30 {
				if err := s.Add(t.Context(), p); err != nil {
					errs <- err
					return
				}
				if err := s.Remove(t.Context(), p.UID); err != nil {
					errs <- err
					return
				}
			}
			if i%2 == 0 {
				errs <- s.Add(t.Context(), p)
				return
			}
			errs <- nil
		}()
	}
	for range pods {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if err := s.Add(t.Context(), pod(t, "u-last")); err != nil {
		t.Fatal(err)
	}
	want := []string{"u-last", "ua", "uc", "ue", "ug"}
	if got := <-have; !slices.Equal(got, want) {
		t.Errorf("pods at the ztunnel: got %v, want %v", got, want)
	}
}

// serveUntil acks everything until last is added and returns what is then served.
func (f *fake) serveUntil(last string) []string {
	serving := map[string]bool{}
	for {
		verb, uid, _ := strings.Cut(f.next(), " ")
		switch verb {
		case "add":
			serving[uid] = true
		case "del":
			delete(serving, uid)
		case "error:":
			f.t.Error(uid)
			return nil
		}
		f.ack("")
		if uid == last {
			break
		}
	}
	var uids []string
	for uid := range serving {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	return uids
}

func TestListenRefusesWhatIsNoSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(Config{Path: path}); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("Listen: got %v", err)
	}
}

func TestSocketIsForRootOnly(t *testing.T) {
	s := newServer(t, 0)
	var st unix.Stat_t
	if err := unix.Stat(s.cfg.Path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o777 != 0o600 {
		t.Errorf("mode: got %o, want 600", st.Mode&0o777)
	}
}
