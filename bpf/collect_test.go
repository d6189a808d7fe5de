// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestSeveredPodsAreCollected(t *testing.T) {
	w := newWorld(t)
	gone, stays := w.host.Pod(t, "gone"), w.host.Pod(t, "stays")
	w.attach(t, gone)
	w.attach(t, stays)
	if removed, err := w.Collect(nil); err != nil || len(removed) > 0 {
		t.Errorf("Collect: got %v, %v, want none", removed, err)
	}
	gone.Delete(t)
	testutil.Eventually(t, 20*time.Second, func() error { // namespaces die in the background
		removed, err := w.Collect(nil)
		if err == nil && !slices.Equal(removed, []string{gone.Name}) {
			err = fmt.Errorf("removed: got %v, want %s", removed, gone.Name)
		}
		return err
	})
	if err := w.DetachPod(gone.Name); err != nil {
		t.Errorf("detach what was collected: %v", err)
	}
	removed, err := w.Collect(func(info PodInfo) bool { return info.ID != stays.Name })
	if err != nil || !slices.Equal(removed, []string{stays.Name}) {
		t.Errorf("Collect: got %v, %v, want %s", removed, err, stays.Name)
	}
	w.wantNoPins(t)
}

// A pod that a newer release attached, or that cannot be read just now, goes on capturing.
func TestPodsOfAnotherBootAreCollectedAndUnreadableOnesAreNot(t *testing.T) {
	w := newWorld(t)
	old, broken := w.host.Pod(t, "old"), w.host.Pod(t, "broken")
	p := w.attach(t, old)
	info := p.Info()
	info.BootID = "another"
	if err := writeInfo(p.maps.Info, &info); err != nil {
		t.Fatal(err)
	}
	mustPut(t, w.attach(t, broken).maps.Info, uint32(0), make([]byte, maxInfoBytes))
	pods, err := w.Pods()
	if len(pods) != 1 || err == nil || !strings.Contains(err.Error(), broken.Name) {
		t.Errorf("Pods: got %v, %v, want one, and an error that names the other", pods, err)
	}
	removed, err := w.Collect(nil)
	if !slices.Equal(removed, []string{old.Name}) || err == nil || !strings.Contains(err.Error(), broken.Name) {
		t.Errorf("Collect: got %v, %v, want %s gone and an error that names %s", removed, err, old.Name, broken.Name)
	}
	if _, err := w.AttachPod(w.config(broken)); err == nil {
		t.Error("AttachPod replaced what it could not read")
	}
	if target, err := linkTarget(filepath.Join(w.root, podsDir, broken.Name, dispatchLink)); err != nil || target == 0 {
		t.Errorf("the unreadable pod's link: target %d, %v, want it attached", target, err)
	}
	// Its namespace is another matter: with that gone the kernel says that there is nothing to keep.
	broken.Delete(t)
	testutil.Eventually(t, 20*time.Second, func() error {
		_, err := w.Collect(nil)
		return err
	})
	w.wantNoPins(t)
}

// TestPodsAreReadWhileTheyComeAndGo: one that goes meanwhile is gone, and nothing that cannot be read.
func TestPodsAreReadWhileTheyComeAndGo(t *testing.T) {
	w := newWorld(t)
	stays, goes := w.host.Pod(t, "stays"), w.host.Pod(t, "goes")
	w.attach(t, stays)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			pods, err := w.Pods()
			if err != nil || !slices.ContainsFunc(pods, func(i PodInfo) bool { return i.ID == stays.Name }) {
				done <- fmt.Errorf("Pods: %v, %w", pods, err)
				return
			}
			p, err := w.Pod(goes.Name)
			if err == nil {
				_ = p.Close()
			} else if !errors.Is(err, ErrNotAttached) {
				done <- fmt.Errorf("Pod: %w", err)
				return
			}
		}
	}()
	for range 10 {
		_ = w.attach(t, goes).Close()
		if err := w.DetachPod(goes.Name); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestCollectTakesOnlyWhatIsKnownToBeGarbage: each of these pods still captures.
func TestCollectTakesOnlyWhatIsKnownToBeGarbage(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, p *Pod)
		want  string
	}{
		"a newer release's": {func(t *testing.T, p *Pod) {
			text, err := json.Marshal(infoRecord{infoVersion + 1, p.info})
			if err != nil {
				t.Fatal(err)
			}
			value := make([]byte, maxInfoBytes)
			copy(value, text)
			mustPut(t, p.maps.Info, uint32(0), value)
		}, "run the release that attached the pod, or recreate the pod"},
		"no record": {func(t *testing.T, p *Pod) { mustRemove(t, filepath.Join(p.dir, infoMap)) }, "no such file"},
		"no pin of dispatch": {func(t *testing.T, p *Pod) { mustRemove(t, filepath.Join(p.dir, dispatchLink)) },
			"no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pod := w.host.Pod(t, "pod")
			p := w.attach(t, pod)
			tt.spoil(t, p)
			mustMkdir(t, filepath.Join(w.root, workDir, pod.Name)) // half-made beside it, which is garbage
			mustMkdir(t, filepath.Join(w.root, workDir, pod.Name, "new"))
			removed, err := w.Collect(func(PodInfo) bool { return true })
			if len(removed) > 0 || err == nil || !strings.Contains(err.Error(), pod.Name) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Collect: got %v, %v, want an error that names %s and says %q", removed, err, pod.Name, tt.want)
			}
			if err := w.attached(pod, p, capturePin(pod.Ifindex(t, "eth0"))); err != nil {
				t.Errorf("capture: %v", err)
			}
			if half, err := w.ids(workDir); err != nil || len(half) > 0 {
				t.Errorf("half-made: got %v, %v, want none", half, err)
			}
			if name == "no record" && isClsact() {
				// A link is detached by its pin alone. A filter is in a namespace that nobody knows any more.
				if err := w.DetachPod(pod.Name); err == nil || !strings.Contains(err.Error(), "no record says where its filter is") {
					t.Errorf("DetachPod: got %v, want it to say what is missing", err)
				}
				pod.Delete(t)
				testutil.Eventually(t, 20*time.Second, func() error { return w.DetachPod(pod.Name) })
			}
			if err := w.DetachPod(pod.Name); err != nil {
				t.Errorf("DetachPod, which is told to: %v", err)
			}
			w.wantNoPins(t)
		})
	}
}

func mustRemove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func mustMkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

// dieHalfWay leaves what a process leaves that is killed just before its commit.
func (w *world) dieHalfWay(t *testing.T, pod *testutil.Pod) {
	t.Helper()
	ns, err := netns.Open(pod.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	lock, err := w.lockPod(pod.Name, true)
	if err != nil {
		t.Fatal(err)
	}
	cfg := w.config(pod)
	a := &attachment{node: w.Node, cfg: cfg, info: cfg.info(), ns: ns, lock: lock}
	a.info.Captured = []Capture{{"eth0", pod.Ifindex(t, "eth0")}}
	w.host.MustDo(t, func() error {
		if err := ns.Do(func() error { return inspectNetns(ns, &a.info) }); err != nil {
			return err
		}
		if a.info.HostCookie, err = currentNetnsCookie(); err != nil {
			return err
		}
		if err := os.Mkdir(lock.newDir(), 0o700); err != nil {
			return err
		}
		return a.build(lock.newDir())
	})
	_ = lock.file.Close() // unlocks, as the end of a process does
}

func TestHalfMadePodsAreTakenAway(t *testing.T) {
	for name, cleanUp := range map[string]func(*world, *testutil.Pod) error{
		"by Collect": func(w *world, pod *testutil.Pod) error {
			removed, err := w.Collect(nil)
			if err == nil && !slices.Equal(removed, []string{pod.Name}) {
				err = fmt.Errorf("removed: got %v", removed)
			}
			return err
		},
		"by DetachPod": func(w *world, pod *testutil.Pod) error { return w.DetachPod(pod.Name) },
		"by AttachPod": func(w *world, pod *testutil.Pod) error {
			p, err := w.tryAttach(pod)
			if err != nil {
				return err
			}
			_ = p.Close()
			return w.DetachPod(pod.Name)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pod := w.host.Pod(t, "pod")
			before := w.trace(t, pod)
			w.dieHalfWay(t, pod)
			if _, err := w.Pod(pod.Name); !errors.Is(err, ErrNotAttached) {
				t.Errorf("Pod: got %v, want %v", err, ErrNotAttached)
			}
			if err := cleanUp(w, pod); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(before, w.trace(t, pod)); diff != "" {
				t.Errorf("(-before +after):\n%s", diff)
			}
			w.wantNoPins(t)
		})
	}
}

func TestCollectLeavesPodsAloneThatAreBeingAttached(t *testing.T) {
	w := newWorld(t)
	lock, err := w.lockPod("busy", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(lock.newDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if removed, err := w.Collect(nil); err != nil || len(removed) > 0 {
		t.Errorf("Collect: got %v, %v, want none", removed, err)
	}
	if _, err := os.Stat(lock.newDir()); err != nil {
		t.Error(err)
	}
	if err := os.Remove(lock.newDir()); err != nil {
		t.Error(err)
	}
	lock.release()
	w.wantNoPins(t)
}
