// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestNobodyWaitsForeverForAPod: one stopped process must not stop the others.
func TestNobodyWaitsForeverForAPod(t *testing.T) {
	w := newWorld(t)
	pod := w.host.Pod(t, "pod")
	lock, err := w.lockPod(pod.Name, true)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.release()
	start := time.Now()
	var wg sync.WaitGroup
	for name, call := range map[string]func() error{
		"AttachPod": func() error { _, err := w.tryAttach(pod); return err },
		"DetachPod": func() error { return w.DetachPod(pod.Name) },
		"release":   func() error { return w.ReleaseInterface(pod.Name, "eth0") },
	} {
		wg.Go(func() {
			err := call()
			if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), pod.Name) || !strings.Contains(err.Error(), lock.dir) {
				t.Errorf("%s: got %v, want it to name the pod and %s", name, err, lock.dir)
			}
			if took := time.Since(start); took > lockTimeout+2*time.Second {
				t.Errorf("%s: gave up after %v, want %v", name, took, lockTimeout)
			}
		})
	}
	wg.Wait()
}
