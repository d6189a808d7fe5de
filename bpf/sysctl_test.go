// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// TestSteeringWithReadOnlySysctls: so container runtimes give /proc/sys to the agent.
func TestSteeringWithReadOnlySysctls(t *testing.T) {
	testutil.RequireRoot(t)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its namespaces
		done <- steerBehindReadOnlySysctls()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func steerBehindReadOnlySysctls() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_FS); err != nil {
		return err
	}
	const sys = "/proc/sys"
	for _, m := range []struct {
		source, target string
		flags          uintptr
	}{
		{"", "/", unix.MS_REC | unix.MS_PRIVATE},
		{sys, sys, unix.MS_BIND},
		{"", sys, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY},
	} {
		if err := unix.Mount(m.source, m.target, "", m.flags, ""); err != nil {
			return err
		}
	}
	if err := os.WriteFile(acceptLocalPath, []byte("1"), 0); !errors.Is(err, unix.EROFS) {
		return errors.New("the test's own sysctls are not read-only")
	}
	if err := steer(); err != nil {
		return err
	}
	if open, err := loopbackIsOpen(); err != nil || !open {
		return errors.Join(errors.New("accept_local of lo is not set"), err)
	}
	if err := unsteer(false); err != nil {
		return err
	}
	if open, err := loopbackIsOpen(); err != nil || open {
		return errors.Join(errors.New("accept_local of lo is still set"), err)
	}
	return nil
}
