// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// The calls that find guard by the calling thread's namespace, on the node's thread.

func (w *world) DetachPod(id string) error {
	return w.host.Do(func() error { return w.Node.DetachPod(id) })
}

func (w *world) Collect(keep func(PodInfo) bool) (removed []string, err error) {
	err = w.host.Do(func() (err error) {
		removed, err = w.Node.Collect(keep)
		return err
	})
	return removed, err
}

func (w *world) AttachPod(cfg PodConfig) (p *Pod, err error) {
	err = w.host.Do(func() (err error) {
		p, err = w.Node.AttachPod(cfg)
		return err
	})
	return p, err
}

// attached says what is wrong with one attachment of a pod.
func (w *world) attached(pod *testutil.Pod, p *Pod, pin string) error {
	h, err := p.info.hookOf(pin)
	if err != nil {
		return err
	}
	ns := pod.NS
	if isGuardPin(pin) {
		ns = w.host.NS
	}
	return ns.Do(func() error { return p.checkLink(pin, uint64(h.ifindex)) })
}

// detachPin takes one attachment of a pod away, behind the back of all who know of it.
func (w *world) detachPin(pod *enrolled, pin string) error {
	s, err := siteOf(&pod.bpf.info)
	if err != nil {
		return err
	}
	defer s.close()
	return w.host.Do(func() error { return s.detach(pod.bpf.dir, pin) })
}

func mustID(t *testing.T, prog *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

// isClsact says what the suite runs in: it has to be told, as this kernel's own choice is tcx.
func isClsact() bool { return os.Getenv(AttachModeEnv) == string(AttachClsact) }

func TestAttachModesHaveNames(t *testing.T) {
	for name, want := range map[string]AttachMode{"": AttachAuto, "auto": AttachAuto, "tcx": AttachTCX, "clsact": AttachClsact} {
		if got, err := ParseAttachMode(name); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", name, got, err, want)
		}
	}
	if _, err := ParseAttachMode("xdp"); err == nil || !strings.Contains(err.Error(), "xdp") {
		t.Errorf("got %v, want an error that names it", err)
	}
}

func TestAttachModeIsProbed(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, "6.6", "tcx")
	t.Setenv(AttachModeEnv, "")
	if got, err := AttachAuto.resolve(); err != nil || got != AttachTCX {
		t.Errorf("got %q, %v, want %q", got, err, AttachTCX)
	}
	t.Setenv(AttachModeEnv, "clsact")
	if got, err := AttachAuto.resolve(); err != nil || got != AttachClsact {
		t.Errorf("by environment: got %q, %v, want %q", got, err, AttachClsact)
	}
	if got, err := AttachTCX.resolve(); err != nil || got != AttachTCX {
		t.Errorf("by caller: got %q, %v, want %q", got, err, AttachTCX)
	}
	t.Setenv(AttachModeEnv, "xdp")
	if _, err := AttachAuto.resolve(); err == nil || !strings.Contains(err.Error(), AttachModeEnv) {
		t.Errorf("got %v, want an error that names %s", err, AttachModeEnv)
	}
}

func TestAttachModeIsTheNodes(t *testing.T) {
	w := newWorld(t)
	for _, mode := range []AttachMode{AttachClsact, AttachTCX} {
		n, err := LoadNode(w.root, WithAttachMode(mode))
		if err != nil {
			t.Fatal(err)
		}
		_ = n.Close()
		other, err := OpenNode(w.root)
		if err != nil {
			t.Fatal(err)
		}
		if got := other.AttachMode(); got != mode {
			t.Errorf("got %q, want %q", got, mode)
		}
		_ = other.Close()
	}
}
